"""Reading claims: who is reading a study now. A claim is a lease, so that a closed browser holds nothing for long."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from db import audit
from db.base import database_now
from db.models import ReadingClaim
from db.upsert import insert

LEASE_MINUTES = 15
LEASE = timedelta(minutes=LEASE_MINUTES)


def claim(session: Session, study_id: int, *, reader: str) -> ReadingClaim:
    """The claim on a study: this reader's, new or renewed, unless somebody else holds one that still runs."""
    now = database_now(session)
    statement = insert(session, ReadingClaim).values(
        study_id=study_id, reader=reader, claimed_at=now, lease_expires_at=now + LEASE
    )
    given = statement.excluded
    free = or_(ReadingClaim.lease_expires_at <= now, ReadingClaim.reader == reader)
    values = {name: given[name] for name in ("reader", "claimed_at", "lease_expires_at")}
    taken = statement.on_conflict_do_update(
        index_elements=["study_id"], set_={**values, "taken_from": None, "taken_because": None}, where=free
    )
    won = session.scalar(taken.returning(ReadingClaim.study_id)) is not None
    if won:
        audit.record(session, actor=reader, action="study claimed", study_ids=[study_id])
    found = select(ReadingClaim).where(ReadingClaim.study_id == study_id)
    return session.scalars(found.execution_options(populate_existing=True)).one()


def take_over(session: Session, study_id: int, *, reader: str, reason: str) -> None:
    """Make a claim this reader's, whoever holds it; the one before sees by whom and why."""
    now, before = database_now(session), holder(session, study_id)
    values = {
        "reader": reader,
        "claimed_at": now,
        "lease_expires_at": now + LEASE,
        "taken_from": None if before is None else before.reader,
        "taken_because": reason,
    }
    statement = insert(session, ReadingClaim).values(study_id=study_id, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["study_id"], set_=values))
    audit.record(session, actor=reader, action="study taken over", study_ids=[study_id],
                 taken_from=values["taken_from"], reason=reason)  # fmt: skip


def renew(session: Session, study_id: int, *, reader: str) -> bool:
    """Lengthen this reader's lease from now; False when the claim is not this reader's any more."""
    now = database_now(session)
    own = (ReadingClaim.study_id == study_id, ReadingClaim.reader == reader, ReadingClaim.lease_expires_at > now)
    renewed = update(ReadingClaim).where(*own).values(lease_expires_at=now + LEASE).returning(ReadingClaim.study_id)
    return session.scalar(renewed) is not None


def release(session: Session, study_id: int, *, reader: str) -> None:
    """Give a study back, if this reader holds it."""
    own = delete(ReadingClaim).where(ReadingClaim.study_id == study_id, ReadingClaim.reader == reader)
    if session.scalar(own.returning(ReadingClaim.study_id)) is not None:
        audit.record(session, actor=reader, action="study released", study_ids=[study_id])


def holder(session: Session, study_id: int) -> ReadingClaim | None:
    """The claim on a study that runs now, or None."""
    return holders(session, [study_id]).get(study_id)


def holders(session: Session, study_ids: Sequence[int]) -> dict[int, ReadingClaim]:
    """Study id -> the claim that runs now, of those that have one."""
    running = ReadingClaim.lease_expires_at > database_now(session)
    rows = session.scalars(select(ReadingClaim).where(ReadingClaim.study_id.in_(study_ids), running))
    return {row.study_id: row for row in rows}
