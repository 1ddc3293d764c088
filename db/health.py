"""Health of the ledger: the totals, how long the oldest study waits, and when something last moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import deliveries, drift
from db.base import database_now
from db.ledger import PRESSING, pressing
from db.models import Drift, Run, Study
from db.totals import Totals, kept_totals


@dataclass(frozen=True)
class Health:
    """The state of the ledger at one moment, by the database's clock."""

    totals: Totals
    oldest_waiting_seconds: float  # 0 when none waits
    seconds_since_settled: float | None  # None before the first study was settled
    drift: Sequence[Drift]  # of the last day that was judged
    seconds_since_drift: float | None  # since the end of that day
    deliveries: Mapping[tuple[str, str], int]  # by kind and state
    oldest_delivery_seconds: float  # of those that are not out yet; 0 when none waits


def health(session: Session) -> Health:
    now = database_now(session)
    oldest = _oldest_unsettled(session)
    figures = drift.latest(session)
    return Health(
        totals=kept_totals(session),
        oldest_waiting_seconds=(now - oldest).total_seconds() if oldest else 0.0,
        seconds_since_settled=seconds_since_settled(session),
        drift=figures,
        seconds_since_drift=(now - _end_of(figures[0].day)).total_seconds() if figures else None,
        deliveries=deliveries.counts(session),
        oldest_delivery_seconds=deliveries.oldest_waiting_seconds(session),
    )


def _oldest_unsettled(session: Session) -> datetime | None:
    """When the oldest study came that was never settled. One that waits again (requeued, rescored) is old without being
    late.

    Looks at the two heads of the index of waiting studies and at all claimed ones, in the order of theirs. For a
    minimum of `received_at`, or an order by it alone, databases would walk through the settled studies.
    """
    unsettled = select(Study.received_at).where(Study.settled_at.is_(None))
    waiting = unsettled.where(Study.state == "waiting").order_by(*PRESSING).limit(1)
    claimed = unsettled.where(Study.state == "claimed").order_by(Study.lease_expires_at)
    looks = (waiting.where(Study.stat.is_(True)), waiting.where(Study.stat.is_(False)), claimed)
    return min((received for look in looks for received in session.scalars(look)), default=None)


def seconds_since_settled(session: Session) -> float | None:
    """How long ago a run last settled a study; None before the first one. Reads the runs and no study."""
    settled = session.scalar(select(func.max(Run.last_settled_at)))
    return (database_now(session) - settled).total_seconds() if settled else None


def _end_of(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1)


@dataclass(frozen=True)
class Head:
    """The study that should be claimed next: how long it could have been, and how long ago its message was sent."""

    waits_seconds: float
    unnotified_seconds: float


def head_of_queue(session: Session) -> Head | None:
    """The most pressing study that may be tried now, or None."""
    now = database_now(session)
    row = session.execute(
        pressing(now).with_only_columns(Study.received_at, Study.not_before, Study.notified_at).limit(1)
    ).one_or_none()
    if row is None:
        return None
    ready = max(moment for moment in (row.received_at, row.not_before) if moment is not None)
    notified = max(moment for moment in (ready, row.notified_at) if moment is not None)
    return Head((now - ready).total_seconds(), (now - notified).total_seconds())
