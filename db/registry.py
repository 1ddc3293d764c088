"""Registered checkpoints, and which of them ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import audit
from db.base import database_now
from db.models import Checkpoint, CheckpointState, Site
from db.reference import keep_reference
from db.upsert import insert

AFTERWARDS: dict[CheckpointState, CheckpointState] = {
    "champion": "retired",
    "shadow": "challenger",
}  # what the one before becomes, of each only one


class UnknownCheckpoint(LookupError):
    """No checkpoint with this digest is registered."""


def lock_promotions(session: Session) -> None:
    """Wait for whoever else is about to change what ranks, or to begin a retraining; the others wait for our commit.

    On SQLite every writing transaction takes turns from its beginning.
    """
    session.execute(select(Site.id).with_for_update())


def champion(session: Session) -> Checkpoint | None:
    """The checkpoint that ranks, or None before the first."""
    return _only(session, "champion")


def shadow(session: Session) -> Checkpoint | None:
    """The checkpoint that looks at what the champion reads and ranks nothing, or None."""
    return _only(session, "shadow")


def _only(session: Session, state: CheckpointState) -> Checkpoint | None:
    return session.scalars(select(Checkpoint).where(Checkpoint.state == state)).one_or_none()


def by_id(session: Session, checkpoint_id: int) -> Checkpoint:
    """The checkpoint of a row that names it."""
    return session.get_one(Checkpoint, checkpoint_id)


def by_digest(session: Session, digest: str) -> Checkpoint:
    """The one checkpoint whose digest begins with `digest` (8 characters or more are enough for people)."""
    found = session.scalars(select(Checkpoint).where(Checkpoint.digest.startswith(digest, autoescape=True))).all()
    if len(found) != 1:
        how_many = "several registered checkpoints have" if found else "no registered checkpoint has"
        raise UnknownCheckpoint(f"{how_many} a digest that begins with {digest!r}: see `nightread models list`")
    return found[0]


def register(
    session: Session,
    *,
    digest: str,
    path: str,
    network: str,
    header: dict[str, Any],
    reference: Mapping[str, Any],
    by: str,
) -> Checkpoint:
    """Record a checkpoint as a challenger with its reference distribution, or find it; its path follows the file."""
    now = database_now(session)
    statement = insert(session, Checkpoint).values(
        digest=digest,
        path=path,
        network=network,
        header=header,
        state="challenger",
        state_changed_at=now,
        state_changed_by=by,
        registered_at=now,
    )
    session.execute(statement.on_conflict_do_update(index_elements=["digest"], set_={"path": path}))
    checkpoint = session.scalars(select(Checkpoint).where(Checkpoint.digest == digest)).one()
    keep_reference(session, checkpoint.id, reference)
    return checkpoint


def set_state(
    session: Session, checkpoint: Checkpoint, state: CheckpointState, *, by: str, reason: str | None = None
) -> None:
    """Move a checkpoint to `state`; the champion or shadow that it replaces moves on in the same transaction."""
    now = database_now(session)
    old = _only(session, state) if state in AFTERWARDS else None
    if old is not None and old.id != checkpoint.id:
        _move(old, AFTERWARDS[state], now, by, f"replaced by {checkpoint.short}")
        session.flush()  # the unique indexes allow one champion and one shadow at a time
    _move(checkpoint, state, now, by, reason)
    audit.record(session, actor=by, action=f"checkpoint {state}", digest=checkpoint.digest, reason=reason)


def _move(checkpoint: Checkpoint, state: CheckpointState, now: Any, by: str, reason: str | None) -> None:
    checkpoint.state, checkpoint.state_changed_at = state, now
    checkpoint.state_changed_by, checkpoint.state_reason = by, reason


def everything(session: Session) -> Sequence[Checkpoint]:
    """All registered checkpoints, newest first."""
    return session.scalars(select(Checkpoint).order_by(Checkpoint.id.desc())).all()


def last_retired(session: Session) -> Checkpoint | None:
    """The champion before this one, or None. One that a rollback took back is refused, and does not come again."""
    return next(iter(retired(session)), None)


def retired(session: Session) -> Sequence[Checkpoint]:
    """Former champions, the last one first."""
    rows = select(Checkpoint).where(Checkpoint.state == "retired")
    return session.scalars(rows.order_by(Checkpoint.state_changed_at.desc(), Checkpoint.id.desc())).all()
