"""JSON for a RIS: the worklist and a study, with the names that the SQL views have."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from db import api_tokens, audit, lookup, reading, worklist
from db.session import is_away, read_scope, session_scope
from worker.web.openapi import MOST_PER_PAGE, PER_PAGE, openapi
from worker.web.passwords import digest_of
from worker.web.requests import Person, Visit, places_of, require_text, whole_number
from worker.web.visibility import hidden_from, may_see_scores
from worker.web.worklist import filter_of, page_of

log = structlog.get_logger()

# The columns of worklist and study_place that tell nothing of what the model saw but the category and the order.
OPEN = frozenset({
    "priority_rank", "study_id", "study_instance_uid", "accession_number", "category", "stat", "overdue", "flag",
    "acquired_at", "received_at", "waited_minutes", "checkpoint_digest", "policy_version",
})  # fmt: skip
TELLS = "the filter finding tells what the model saw, which this site shows a reader after their own review"

Answer = Callable[[Visit], Mapping[str, Any]]


def json_route(path: str, answer: Answer) -> Route:
    """A JSON page for who brings a token: its user is the visit's person."""

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(_respond, answer, request)

    return Route(path, endpoint, methods=["GET"], name=answer.__name__)


def _respond(answer: Answer, request: Request) -> Response:
    try:
        require_text(request)
        return _json(answer(Visit(request, request.app.state.site, _person_of(request))))
    except HTTPException as error:
        headers = {"WWW-Authenticate": "Bearer"} if error.status_code == 401 else None
        return _json({"error": error.detail}, error.status_code, headers)
    except Exception as error:  # noqa: BLE001 - a program must get an answer that it can read
        if isinstance(error, DBAPIError) and is_away(error):
            return _json({"error": "the database does not answer"}, 503, {"Retry-After": "10"})
        log.error("api_failed", error=type(error).__name__, places=places_of(error))
        return _json({"error": "internal error; the service's log says what"}, 500)


def _json(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(value, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))
    return Response(text, status, headers, "application/json")


def _person_of(request: Request) -> Person:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        with read_scope(request.app.state.site.context.engine) as session:
            user = api_tokens.user_of(session, digest_of(token.strip()))
            if user is not None:
                return Person(user.name, user.role)
    raise HTTPException(401, "send a valid token: Authorization: Bearer ...")


def api_worklist(visit: Visit) -> Mapping[str, Any]:
    """The unread studies in reading order, some at a time."""
    query, engine = visit.request.query_params, visit.engine
    page, limit = page_of(query), whole_number(query.get("per_page", str(PER_PAGE)))
    if limit is None or not 1 <= limit <= MOST_PER_PAGE:
        raise HTTPException(400, f"per_page is a number from 1 to {MOST_PER_PAGE}")
    wanted = filter_of(query)
    if wanted.finding is not None and _review_first(visit):
        raise HTTPException(400, TELLS)
    with read_scope(engine) as session:
        part = worklist.part(session, wanted, offset=(page - 1) * limit, limit=limit)
        names = worklist.columns(session)
        hidden = _hidden_from(session, visit, [row["study_id"] for row in part.rows])
    studies = [_told({name: row[name] for name in names}, hidden=row["study_id"] in hidden) for row in part.rows]
    return {"page": page, "per_page": limit, "total": part.total, "studies": studies}


def api_study(visit: Visit) -> Mapping[str, Any]:
    """One study: its place, what the model saw if the study stands by it, and what readers confirmed."""
    with session_scope(visit.engine) as session:
        study = lookup.study_with_uid(session, visit.request.path_params["uid"])
        if study is None:
            raise HTTPException(404, "no study has this Study Instance UID")
        audit.record(session, actor=visit.me.name, action="study viewed", study_ids=[study.id])
        found = lookup.place_of(session, study)
        place, hidden = worklist.place(session, study.id), bool(_hidden_from(session, visit, [study.id]))
        scores = may_see_scores(found[0] if found else None) and not hidden
        return {
            "study_instance_uid": study.study_instance_uid,
            "accession_number": study.accession_number,
            "study_id": study.id,
            "state": study.state,
            "reason": study.reason,
            "stat": study.stat,
            "acquired_at": study.acquired_at,
            "received_at": study.received_at,
            "read_at": found[0].read_at if found else None,
            "read_by": found[0].read_by if found else None,
            "place": None if place is None else _told(dict(place), hidden=hidden),
            "findings": _findings(session, study.id) if scores else None,
            "reviews": None if hidden else _reviews(session, study.id),
        }


def _review_first(visit: Visit) -> bool:
    """Whether this token's user reviews before they see scores. A viewer reviews nothing: such a token is a program's,
    as that of a RIS."""
    return visit.settings.web.review_first and visit.me.may("reader")


def _hidden_from(session: Session, visit: Visit, study_ids: list[int]) -> set[int]:
    return hidden_from(session, visit, study_ids) if _review_first(visit) else set()


def _told(row: Mapping[str, Any], *, hidden: bool) -> dict[str, Any]:
    """The row, without what the model saw where that is hidden."""
    return {name: value if name in OPEN or not hidden else None for name, value in row.items()}


def _reviews(session: Session, study_id: int) -> list[dict[str, Any]]:
    names = ("finding", "verdict", "reader", "reviewed_at")
    return [{name: getattr(row, name) for name in names} for row in reading.reviews_of(session, study_id)]


def _findings(session: Session, study_id: int) -> list[dict[str, Any]]:
    names = ("finding", "category", "probability", "lift", "share", "threshold", "weight", "contribution", "counts")
    return [{name: row[name] for name in names} for row in worklist.parts(session, study_id)]


# ------------------------------------------------------------------------------------------------------------- OpenAPI


def description(visit: Visit) -> Response:
    """The OpenAPI document."""
    with read_scope(visit.engine) as session:
        return _json(openapi(worklist.columns(session)))


def page(visit: Visit) -> Response:
    """The same for people."""
    with read_scope(visit.engine) as session:
        columns = worklist.columns(session)
    return visit.page("api.html.j2", document=openapi(columns), columns=columns)
