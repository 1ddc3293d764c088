"""The page of a study: its film, why it stands where it stands, who is reading it, what was said of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sqlalchemy import RowMapping
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import Response

from db import audit, claims, deliveries, lookup, morning, reading, worklist
from db.models import Checkpoint, PolicyRow, ReadingClaim, Review, Study, StudyPriority
from db.morning import Film
from db.session import read_scope, session_scope
from training.findings import FINDINGS
from worker.explain import explain_named
from worker.ranking import priority
from worker.ranking.priority import BLIND
from worker.web.requests import Visit, local_address
from worker.web.visibility import can_be_shown, hidden_from, may_see_scores, without_map
from worker.wording import viewer_address

EARLIER = 10  # studies of the same patient


@dataclass(frozen=True)
class Facts:
    """The rows of one study. `scores`: whether this person may see what the model saw."""

    study: Study
    priority: StudyPriority | None
    place: RowMapping | None  # None when it has been read, or was never on the list
    policy: PolicyRow | None
    checkpoint: Checkpoint | None
    films: Sequence[Film]  # that can be shown
    claim: ReadingClaim | None
    reviews: Sequence[Review]
    earlier: Sequence[RowMapping]
    parts: Sequence[RowMapping]
    sent: Sequence[RowMapping]
    scores: bool

    @property
    def blind(self) -> bool:
        return self.priority is not None and self.priority.flag == BLIND


def facts_of(session: Session, visit: Visit, study_id: int) -> Facts:
    """The rows of a study that this person may see. Raises HTTPException where there is none."""
    study = study_with(session, study_id)
    found = lookup.place_of(session, study)
    place, policy, checkpoint = found or (None, None, None)
    scores = may_see_scores(place) and not hidden_from(session, visit, [study_id])
    films = [film for film in morning.films_of(session, [study_id])[study_id] if can_be_shown(film)]
    return Facts(
        study=study,
        priority=place,
        place=worklist.place(session, study_id),
        policy=policy,
        checkpoint=checkpoint,
        films=films,
        claim=claims.holder(session, study_id),
        reviews=reading.reviews_of(session, study_id),
        earlier=lookup.earlier_studies(session, study, limit=EARLIER) if study.patient_key else [],
        parts=worklist.parts(session, study_id) if scores else [],
        sent=deliveries.of_study(session, study_id),
        scores=scores,
    )


def show(visit: Visit) -> Response:
    """The page of a study."""
    return page_of(visit, visit.number("study_id"))


def page_of(visit: Visit, study_id: int, *, problem: str = "", status: int = 200) -> Response:
    """The page as it is now, with the sentence that says why something was not done; each look is noted."""
    with session_scope(visit.engine) as session:
        study_with(session, study_id)
        audit.record(session, actor=visit.me.name, action="study viewed", study_ids=[study_id])
    with read_scope(visit.engine) as session:
        facts = facts_of(session, visit, study_id)
    query = visit.request.query_params
    film, without = _chosen(facts.films, query.get("film")), without_map(facts.parts, facts.checkpoint)
    explained = explain_named(visit.site.context, facts.study.study_instance_uid) if facts.scores else None
    return visit.page(
        "study.html.j2",
        status=status,
        facts=facts,
        problem=problem,
        film=film,
        heat=_heat(facts, query.get("heat"), without),
        without_map=without,
        standing=explained.facts if explained else _standing(facts),
        viewer=_viewer(visit, facts.study),
        mine={review.finding: review.verdict for review in facts.reviews if review.reader == visit.me.name},
        findings=FINDINGS,
        back=local_address(query.get("back") or visit.form.get("back")),
        saved=query.get("saved") == "1",
        review_first=visit.settings.web.review_first,
        can_read=visit.me.may("reader"),
    )


def _viewer(visit: Visit, study: Study) -> str | None:
    template = visit.settings.viewer_url
    uid, number = study.study_instance_uid, study.accession_number
    return viewer_address(template, study_instance_uid=uid, accession_number=number)


def _chosen(films: Sequence[Film], wanted: str | None) -> Film | None:
    named = [film for film in films if str(film.instance_id) == wanted]
    return next(iter([*named, *films]), None)


def _heat(facts: Facts, wanted: str | None, without: Mapping[str, str]) -> str | None:
    """The finding whose heat map is shown: the one that was asked for, or the first that may have one."""
    top = facts.priority.top_finding if facts.priority else None
    shown = [part["finding"] for part in facts.parts if part["finding"] not in without]
    return wanted if wanted in shown else min(shown, key=lambda finding: finding != top, default=None)


def _standing(facts: Facts) -> list[tuple[str, str]]:
    """Where a study stands, as far as it tells nothing of what the model saw."""
    place = facts.place
    if place is None:
        return [("rank", "none: it has been read" if facts.priority else "none: it was never on the list")]
    standing = [("rank", f"{place['priority_rank']}"), ("has waited", f"{place['waited_minutes']:.0f} min")]
    standing += [("STAT", "yes, by a human")] if place["stat"] else []
    standing += [("overdue", "yes")] if place["overdue"] else []
    if place["flag"] == BLIND and place["above_next_because"] is not None:
        standing.append(("before the next", priority.RULES[place["above_next_because"]]))
    return standing


def study_with(session: Session, study_id: int) -> Study:
    """The study with this row id. Raises HTTPException where there is none."""
    study = lookup.study_of(session, study_id)
    if study is None:
        raise HTTPException(404)
    return study


def study_address(visit: Visit, study_id: int, **query: Any) -> str:
    """The address of a study's page, which keeps the way back to the list."""
    back = local_address(visit.form.get("back"))
    pairs = {**({"back": back} if back != "/" else {}), **query}
    text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in pairs.items())
    return f"/studies/{study_id}" + (f"?{text}" if text else "")
