"""Findings and priorities: written whole, in bulk, and the same however often they are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.arrivals import OTHER_PATIENT, TWO_PATIENTS
from db.base import database_now
from db.bulk import in_parts, update_many, upsert_many
from db.models import FINDING_COLUMNS, FilmScore, Instance, SettledState, StudyPriority


@dataclass(frozen=True)
class FilmResult:
    """Result of one film: state scored (with probabilities in vocabulary order), skipped or quarantined."""

    instance_id: int
    state: SettledState
    reason: str | None = None
    evidence: str | None = None
    pixel_digest: str | None = None
    file_digest: str | None = None
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
    # A film's evidence is the view's; only a film that failed has another story to tell.
    explained = [_state(film) | {"evidence": film.evidence} for film in films if film.evidence is not None]
    update_many(session, Instance, explained, key="id", same={})
    update_many(session, Instance, [_state(film) for film in films if film.evidence is None], key="id", same={})
    scores = [(film.instance_id, film.probabilities) for film in films if film.state == "scored"]
    record_scores(session, scores, checkpoint_id=checkpoint_id, run_id=run_id)


def record_scores(
    session: Session, scores: Sequence[tuple[int, tuple[float, ...]]], *, checkpoint_id: int, run_id: int | None
) -> None:
    """Write what a checkpoint saw on films, each (instance id, probabilities in vocabulary order), and nothing else."""
    rows = [
        {"instance_id": instance_id, **dict(zip(FINDING_COLUMNS, probabilities, strict=True))}
        for instance_id, probabilities in scores
    ]
    same = {"checkpoint_id": checkpoint_id, "run_id": run_id, "scored_at": database_now(session)}
    upsert_many(session, FilmScore, rows, unique=["instance_id", "checkpoint_id"], same=same)


def _state(film: FilmResult) -> dict[str, Any]:
    return {
        "id": film.instance_id,
        "state": film.state,
        "reason": film.reason,
        "pixel_digest": film.pixel_digest,
        "file_digest": film.file_digest,
    }


def record_priorities(session: Session, priorities: Sequence[PriorityResult], *, policy_id: int) -> None:
    """Write where studies stand. Arrival, STAT and reading stay as intake and people set them, and so does the flag of
    a study under whose UID two patients came."""
    rows = [
        vars(priority) | {"category_a": priority.category == "A"}
        for priority in sorted(priorities, key=lambda priority: priority.study_id)  # one order for all: no deadlock
    ]
    same = {"policy_id": policy_id, "ranked_at": database_now(session)}
    update_many(session, StudyPriority, rows, key="study_id", same=same)
    for part in in_parts([row["study_id"] for row in rows]):
        apart = select(Instance.id).where(Instance.study_id == StudyPriority.study_id, Instance.reason == OTHER_PATIENT)
        flagged = update(StudyPriority).where(StudyPriority.study_id.in_(part), apart.exists())
        session.execute(flagged.values(flag=TWO_PATIENTS))
