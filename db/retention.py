"""Retention: delete finished studies received before a date, with everything that hangs on them.

A study that still waits for the model never goes, whatever its age. One that nobody has read yet, or that a radiologist
reviewed, stays unless it is asked for: the first is work still to be done, the second holds the labels that retraining
trusts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, func, not_, select
from sqlalchemy.orm import Session

from db import audit
from db.bulk import in_parts
from db.models import SETTLED, Delivery, Instance, InstanceVersion, RejectedFile, Review, Study, StudyPriority


@dataclass(frozen=True)
class Prunable:
    """Counts of what a pruning would delete; `unread` of its studies are still on the worklist, `unread_kept` stay."""

    studies: int
    unread: int
    unread_kept: int
    instances: int
    rejected_files: int


def prunable(session: Session, *, before: datetime, reviewed: bool = False, unread: bool = False) -> Prunable:
    """Count what `prune` with the same arguments takes away."""
    chosen = _old(before, reviewed=reviewed, unread=unread)
    rejected = select(func.count()).select_from(RejectedFile).where(RejectedFile.received_at < before)
    unread_old = _count(session, Study, *_old(before, reviewed=reviewed, unread=True), _unread())
    return Prunable(
        studies=_count(session, Study, *chosen),
        unread=unread_old if unread else 0,
        unread_kept=0 if unread else unread_old,
        instances=_count(session, Instance, Instance.study_id.in_(select(Study.id).where(*chosen))),
        rejected_files=session.scalar(rejected) or 0,
    )


def prunable_paths(session: Session, *, before: datetime, reviewed: bool = False, unread: bool = False) -> set[str]:
    """The files, earlier ones included, of the studies that `prune` with the same arguments takes away."""
    studies = select(Study.id).where(*_old(before, reviewed=reviewed, unread=unread))
    of_them = select(Instance.path).where(Instance.study_id.in_(studies))
    versions = select(InstanceVersion.path).join(Instance, Instance.id == InstanceVersion.instance_id)
    earlier = versions.where(Instance.study_id.in_(studies))
    return set(session.scalars(of_them)) | set(session.scalars(earlier))


def prunable_rejected_paths(session: Session, *, before: datetime) -> set[str]:
    """The files that were refused before the date."""
    return set(session.scalars(select(RejectedFile.path).where(RejectedFile.received_at < before)))


def staying(
    session: Session, study_ids: Sequence[int], *, before: datetime, reviewed: bool = False, unread: bool = False
) -> set[int]:
    """Those of these studies that are there and that `prune` with the same arguments leaves there."""
    stays = not_(and_(*_old(before, reviewed=reviewed, unread=unread)))
    found: set[int] = set()
    for part in in_parts(study_ids):
        found |= set(session.scalars(select(Study.id).where(Study.id.in_(part), stays)))
    return found


def prune_studies(
    session: Session, *, before: datetime, limit: int, reviewed: bool = False, unread: bool = False
) -> int:
    """Delete up to `limit` studies with their instances, scores, places, reviews and kept ranks; returns how many."""
    # The oldest first, by their index: in the order of ids the last call would look at every study that stays.
    oldest = select(Study.id).where(*_old(before, reviewed=reviewed, unread=unread)).order_by(Study.received_at)
    ids = list(session.scalars(oldest.limit(limit).with_for_update(skip_locked=True)))
    for part in in_parts(ids):
        session.execute(delete(Study).where(Study.id.in_(part)))  # the rest follows by its foreign keys
    return len(ids)


def prune_rejected_files(session: Session, *, before: datetime) -> int:
    """Forget the files that were refused before the date; returns how many."""
    old = RejectedFile.received_at < before
    count = session.scalar(select(func.count()).select_from(RejectedFile).where(old)) or 0
    session.execute(delete(RejectedFile).where(old))
    return count


def note_pruning(session: Session, counts: Mapping[str, int], *, before: datetime, by: str) -> None:
    """Write to the audit who pruned how much."""
    audit.record(session, actor=by, action="prune", before=before.isoformat(), **counts)


def _count(session: Session, table: type[Study | Instance], *conditions: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0


def _unread() -> ColumnElement[bool]:
    on_list = select(StudyPriority.study_id)
    return on_list.where(StudyPriority.study_id == Study.id, StudyPriority.read_at.is_(None)).exists()


def _old(before: datetime, *, reviewed: bool, unread: bool) -> list[ColumnElement[bool]]:
    """A study that was received or settled anew since the date is not old, and neither is one whose result is not out
    yet: a delivery needs its film."""
    undelivered = select(Delivery.id).where(Delivery.study_id == Study.id, Delivery.state.in_(("waiting", "sending")))
    old = [Study.state.in_(SETTLED), Study.received_at < before, Study.settled_at < before, ~undelivered.exists()]
    if not reviewed:
        old.append(~select(Review.id).where(Review.study_id == Study.id).exists())
    if not unread:
        old.append(~_unread())
    return old
