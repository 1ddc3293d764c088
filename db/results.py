"""Findings and priorities: written whole, in bulk, and the same however often they are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import update
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import FINDING_COLUMNS, FilmScore, Instance, StudyPriority
from db.upsert import insert


@dataclass(frozen=True)
class FilmResult:
    """What became of one film: state scored (with probabilities in vocabulary order), skipped or quarantined."""

    instance_id: int
    state: str
    reason: str | None = None
    evidence: str | None = None
    pixel_digest: str | None = None
    probabilities: tuple[float, ...] = field(default=())


@dataclass(frozen=True)
class PriorityResult:
    """Where one study stands now."""

    study_id: int
    category: str
    urgency: float
    flag: str | None
    top_finding: str | None
    top_probability: float | None
    checkpoint_id: int | None


def record_films(session: Session, films: Sequence[FilmResult], *, checkpoint_id: int, run_id: int | None) -> None:
    """Write film states and scores; unique on (instance, checkpoint), so a second writing replaces the first."""
    now = database_now(session)
    states = [
        {
            "id": film.instance_id,
            "state": film.state,
            "reason": film.reason,
            "pixel_digest": film.pixel_digest,
            # A film's evidence is the view's; only a film that failed has another story to tell.
            **({"evidence": film.evidence} if film.evidence is not None else {}),
        }
        for film in films
    ]
    for with_evidence in (True, False):  # one statement per shape of row
        chosen = [row for row in states if ("evidence" in row) is with_evidence]
        if chosen:
            session.execute(update(Instance), chosen)
    scores = [
        {
            "instance_id": film.instance_id,
            "checkpoint_id": checkpoint_id,
            "run_id": run_id,
            "scored_at": now,
            **dict(zip(FINDING_COLUMNS, film.probabilities, strict=True)),
        }
        for film in films
        if film.state == "scored"
    ]
    if scores:
        statement = insert(session, FilmScore)
        replaced = {name: statement.excluded[name] for name in ("run_id", "scored_at", *FINDING_COLUMNS)}
        key = ["instance_id", "checkpoint_id"]
        session.execute(statement.on_conflict_do_update(index_elements=key, set_=replaced), scores)


def record_priorities(session: Session, priorities: Sequence[PriorityResult], *, policy_id: int) -> None:
    """Write where studies stand. Arrival, STAT and reading stay as intake and people set them."""
    if not priorities:
        return
    now = database_now(session)
    session.execute(
        update(StudyPriority),
        [
            {
                "study_id": priority.study_id,
                "category": priority.category,
                "category_a": priority.category == "A",
                "urgency": priority.urgency,
                "flag": priority.flag,
                "top_finding": priority.top_finding,
                "top_probability": priority.top_probability,
                "checkpoint_id": priority.checkpoint_id,
                "policy_id": policy_id,
                "ranked_at": now,
            }
            for priority in priorities
        ],
    )
