"""Forgetting on time: settled studies received before a date go, with everything that hangs on them.

What still waits never goes, whatever its age; a study that a radiologist reviewed stays unless asked for, since its
verdicts are the labels that retraining trusts.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import SETTLED, Audit, Instance, RejectedFile, Review, Study, StudyPriority


@dataclass(frozen=True)
class Prunable:
    """Counts of what a pruning would delete; `unread` of its studies are still on the worklist."""

    studies: int
    unread: int
    instances: int
    rejected_files: int


def prunable(session: Session, *, before: datetime, reviewed: bool = False) -> Prunable:
    """Count what `prune` with the same arguments takes away."""
    chosen = _old(before, reviewed=reviewed)
    unread = select(func.count()).select_from(StudyPriority).join(Study).where(*chosen, StudyPriority.read_at.is_(None))
    instances = select(func.count()).select_from(Instance).join(Study).where(*chosen)
    rejected = select(func.count()).select_from(RejectedFile).where(RejectedFile.received_at < before)
    return Prunable(
        studies=session.scalar(select(func.count()).select_from(Study).where(*chosen)) or 0,
        unread=session.scalar(unread) or 0,
        instances=session.scalar(instances) or 0,
        rejected_files=session.scalar(rejected) or 0,
    )


def prune_studies(session: Session, *, before: datetime, limit: int, reviewed: bool = False) -> int:
    """Delete up to `limit` studies with their instances, scores, places, reviews and kept ranks; returns how many."""
    chosen = select(Study.id).where(*_old(before, reviewed=reviewed)).order_by(Study.id).limit(limit)
    ids = list(session.scalars(chosen.with_for_update(skip_locked=True)))
    session.execute(delete(Study).where(Study.id.in_(ids)))  # the rest follows by its foreign keys
    return len(ids)


def prune_rejected_files(session: Session, *, before: datetime) -> int:
    """Forget the files that were refused before the date; returns how many."""
    old = RejectedFile.received_at < before
    count = session.scalar(select(func.count()).select_from(RejectedFile).where(old)) or 0
    session.execute(delete(RejectedFile).where(old))
    return count


def note_pruning(session: Session, pruned: Prunable, *, before: datetime, by: str) -> None:
    """Write to the audit who pruned what."""
    detail = {"before": before.isoformat(), **vars(pruned)}
    session.add(Audit(at=database_now(session), actor=by, action="prune", detail=detail))


def _old(before: datetime, *, reviewed: bool) -> list[ColumnElement[bool]]:
    """A study that was received or settled anew since the date is not old."""
    old = [Study.state.in_(SETTLED), Study.received_at < before, Study.settled_at < before]
    return old if reviewed else [*old, ~select(Review.id).where(Review.study_id == Study.id).exists()]
