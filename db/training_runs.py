"""Retrainings: one at a time, each with a row that is its lock, its progress and in the end its record.

The lock is the running row's lease. It survives a crash: whoever finds it expired resumes the same run.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db import audit, registry
from db.base import DocumentedError, database_now
from db.models import TrainingRun

RESUME = "resume"


class Busy(Exception):
    """Another retraining is under way."""


class Lost(DocumentedError):
    """The run is no longer ours: its lease ran out and another process took it."""


@dataclass(frozen=True)
class Held:
    """A run that this process holds."""

    run_id: int
    holder: str
    resumed: bool


class Wanted(NamedTuple):
    """A run to begin: why, from which checkpoint, and with which settings."""

    cause: str
    parent_id: int
    settings: dict[str, Any]


def take(
    session: Session, wanted: Wanted, *, holder: str, lease_minutes: float, max_attempts: int, died: bool = True
) -> Held | None:
    """Begin a run, or resume the one whose process ended. Raises Busy while another process is at work.

    A run that died `max_attempts` times is ended as failed; one that was only cut off from the database has not `died`,
    and that attempt does not count. Where only an end of what was begun is asked for (the cause is RESUME) no new one
    begins: then, without one to resume, None.
    """
    registry.lock_promotions(session)
    now = database_now(session)
    lease = now + timedelta(minutes=lease_minutes)
    run = running(session)
    if run is not None and run.lease_expires_at is not None and run.lease_expires_at > now:
        raise Busy(f"retraining {run.id} is under way (stage: {run.stage}): wait for its end")
    if run is not None and (run.attempts < max_attempts or not died):
        run.held_by, run.lease_expires_at, run.attempts = holder, lease, run.attempts + died
        return Held(run.id, holder, resumed=True)
    if run is not None:
        run.state, run.finished_at, run.reason = "failed", now, f"its process died {run.attempts} times ({run.stage})"
        session.flush()
    if wanted.cause == RESUME:
        return None
    run = TrainingRun(
        state="running", stage="begin", cause=wanted.cause, attempts=1, held_by=holder, lease_expires_at=lease,
        started_at=now, parent_checkpoint_id=wanted.parent_id, settings=wanted.settings, counts={}, metrics={},
    )  # fmt: skip
    session.add(run)
    session.flush()
    return Held(run.id, holder, resumed=False)


def note(session: Session, held: Held, *, lease_minutes: float | None = None, **facts: Any) -> None:
    """Write facts of a run that is still ours, and renew its lease. Raises Lost."""
    if lease_minutes is not None:
        facts["lease_expires_at"] = database_now(session) + timedelta(minutes=lease_minutes)
    own = (TrainingRun.id == held.run_id, TrainingRun.held_by == held.holder, TrainingRun.state == "running")
    written = session.execute(update(TrainingRun).where(*own).values(facts).returning(TrainingRun.id)).all()
    if not written:
        raise Lost


def finish(session: Session, held: Held, state: str, *, reason: str | None, **facts: Any) -> None:
    """End a run that is still ours. Raises Lost."""
    ended = database_now(session)
    note(session, held, state=state, reason=reason, finished_at=ended, lease_expires_at=None, **facts)
    audit.record(session, actor=held.holder, action=f"retraining {state}", training_run=held.run_id, reason=reason)


def let_go(session: Session, held: Held) -> None:
    """Stop without an end: the next one resumes at once instead of waiting for the lease, and this was no death."""
    note(session, held, lease_expires_at=database_now(session), attempts=TrainingRun.attempts - 1)


def by_id(session: Session, run_id: int) -> TrainingRun:
    """The run's row."""
    return session.get_one(TrainingRun, run_id)


def of_checkpoint(session: Session, checkpoint_id: int) -> TrainingRun | None:
    """The run that made a checkpoint, or None for one that came as a file."""
    made = select(TrainingRun).where(TrainingRun.checkpoint_id == checkpoint_id).order_by(TrainingRun.id.desc())
    return session.scalars(made.limit(1)).first()


def same_before(session: Session, held: Held, *, data_digest: str, recipe: Collection[str]) -> TrainingRun | None:
    """An earlier run, judged to its end, that learned the same from the same films; None if there is none.

    recipe: the settings of the group `retrain` that decide what is learned.
    """
    run = by_id(session, held.run_id)
    judged = select(TrainingRun).where(
        TrainingRun.state.in_(("passed", "undecided", "refused")),
        TrainingRun.data_digest == data_digest,
        TrainingRun.parent_checkpoint_id == run.parent_checkpoint_id,
        TrainingRun.id != run.id,
    )
    for one in session.scalars(judged):
        before, now = (row.settings["retrain"] for row in (one, run))
        if all(before.get(name) == now.get(name) for name in recipe):
            return one
    return None


def running(session: Session) -> TrainingRun | None:
    """The run that is under way, or was left."""
    return session.scalars(select(TrainingRun).where(TrainingRun.state == "running")).one_or_none()


def forsaken(session: Session) -> bool:
    """Whether a run waits for somebody to resume it."""
    run = running(session)
    return run is not None and run.lease_expires_at is not None and run.lease_expires_at < database_now(session)


def everything(session: Session) -> Sequence[TrainingRun]:
    """All runs, newest first."""
    return session.scalars(select(TrainingRun).order_by(TrainingRun.id.desc())).all()
