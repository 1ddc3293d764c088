"""What a monitor asks of the ledger: the books, how long the oldest study waits, and when something last moved."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import ledger
from db.base import database_now
from db.models import Run, Study


@dataclass(frozen=True)
class Vitals:
    """The state of the house at one moment, by the database's clock."""

    books: ledger.Books
    oldest_waiting_seconds: float  # 0 when none waits
    seconds_since_settled: float | None  # None before the first study was settled


def vitals(session: Session) -> Vitals:
    now = database_now(session)
    # A study that was settled before and waits again (requeued, rescored) is old without being late.
    unsettled = select(func.min(Study.received_at)).where(
        Study.state.in_(("waiting", "claimed")), Study.settled_at.is_(None)
    )
    oldest = session.scalar(unsettled)
    settled = session.scalar(select(func.max(Run.last_settled_at)))
    return Vitals(
        books=ledger.books(session),
        oldest_waiting_seconds=(now - oldest).total_seconds() if oldest else 0.0,
        seconds_since_settled=(now - settled).total_seconds() if settled else None,
    )
