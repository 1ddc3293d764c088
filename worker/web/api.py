"""JSON for a RIS: the worklist and a study, with the names that the SQL views have."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import version
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
from training.findings import FINDINGS
from worker.reasons import FLAG_SENTENCES
from worker.web.passwords import digest_of
from worker.web.requests import Person, Visit, places_of, require_text, whole_number
from worker.web.study import may_see_scores
from worker.web.worklist import filter_of, hidden_from, page_of

log = structlog.get_logger()

PER_PAGE, MOST_PER_PAGE = 50, 500  # studies

# What the model saw, of the columns of worklist and study_place.
SCORES = ("urgency", "top_finding", "top_probability", "top_lift", "top_share", "above_next_because")
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
    query, engine = visit.request.query_params, visit.site.context.engine
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
    with session_scope(visit.site.context.engine) as session:
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
    return visit.site.context.settings.web.review_first and visit.me.may("reader")


def _hidden_from(session: Session, visit: Visit, study_ids: list[int]) -> set[int]:
    return hidden_from(session, visit, study_ids) if _review_first(visit) else set()


def _told(row: Mapping[str, Any], *, hidden: bool) -> dict[str, Any]:
    """The row, without what the model saw where that is hidden."""
    return {name: None if hidden and name in SCORES else value for name, value in row.items()}


def _reviews(session: Session, study_id: int) -> list[dict[str, Any]]:
    names = ("finding", "verdict", "reader", "reviewed_at")
    return [{name: getattr(row, name) for name in names} for row in reading.reviews_of(session, study_id)]


def _findings(session: Session, study_id: int) -> list[dict[str, Any]]:
    names = ("finding", "category", "probability", "lift", "share", "threshold", "weight", "contribution", "counts")
    return [{name: row[name] for name in names} for row in worklist.parts(session, study_id)]


# ------------------------------------------------------------------------------------------------------------- OpenAPI


def description(visit: Visit) -> Response:
    """The OpenAPI document."""
    with read_scope(visit.site.context.engine) as session:
        return _json(openapi(worklist.columns(session)))


def page(visit: Visit) -> Response:
    """The same for people."""
    with read_scope(visit.site.context.engine) as session:
        columns = worklist.columns(session)
    return visit.page("api.html.j2", document=openapi(columns), columns=columns)


_TYPES: Mapping[str, Mapping[str, Any]] = {
    "priority_rank": {"type": "integer"},
    "study_id": {"type": "integer"},
    "policy_version": {"type": "integer"},
    "urgency": {"type": "number"},
    "top_probability": {"type": "number"},
    "top_lift": {"type": "number"},
    "top_share": {"type": "number"},
    "stat": {"type": "boolean"},
    "overdue": {"type": "boolean"},
    "acquired_at": {"type": "string", "format": "date-time"},
    "received_at": {"type": "string", "format": "date-time"},
}
_ERRORS = {"401": {"description": "no valid token"}, "503": {"description": "the database does not answer; try again"}}


def openapi(columns: list[str]) -> dict[str, Any]:
    """The API's description (OpenAPI 3.1); `columns` are those of the view worklist."""

    def parameter(name: str, text: str, **schema: Any) -> dict[str, Any]:
        return {"name": name, "in": "query", "description": text, "schema": schema}

    row = {name: _TYPES.get(name, {"type": "string"}) for name in columns}
    listed = {"type": "array", "items": {"type": "object", "properties": row}}
    counts = {name: {"type": "integer"} for name in ("page", "per_page", "total")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nightread", "version": version("nightread")},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
        "paths": {
            "/api/worklist": {
                "get": {
                    "summary": "The unread studies in reading order; a study has the columns of the view worklist.",
                    "parameters": [
                        parameter("page", "from 1", type="integer"),
                        parameter("per_page", f"at most {MOST_PER_PAGE}", type="integer", default=PER_PAGE),
                        parameter("category", "only this one", enum=["A", "B", "C", "D"]),
                        parameter("finding", "only with this top finding", enum=list(FINDINGS)),
                        parameter("flag", "only with this flag", enum=list(FLAG_SENTENCES)),
                        parameter("stat", "1: only STAT", enum=["1"]),
                        parameter("overdue", "1: only overdue", enum=["1"]),
                        parameter("accession", "how the accession number begins", type="string"),
                    ],
                    "responses": {
                        "200": _ok({"type": "object", "properties": {**counts, "studies": listed}}),
                        "400": {"description": "per_page is out of range, or a filter may not be used here"},
                        **_ERRORS,
                    },
                }
            },
            "/api/studies/{study_instance_uid}": {
                "get": {
                    "summary": "One study: state, place, findings with their part of the urgency, reviews. A study of "
                    "the blind share has no findings; nor has one that a reader must review first.",
                    "parameters": [
                        parameter("study_instance_uid", "its UID (0020,000D)", type="string")
                        | {"in": "path", "required": True}
                    ],
                    "responses": {
                        "200": _ok({"type": "object"}),
                        "404": {"description": "no study has this UID"},
                        **_ERRORS,
                    },
                }
            },
        },
    }


def _ok(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": "done", "content": {"application/json": {"schema": schema}}}
