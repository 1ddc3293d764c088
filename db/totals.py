"""The totals: how many studies came, and where each of them stands."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from db.models import SETTLED, Instance, RejectedFile, Study, StudyState


@dataclass
class Totals:
    """The sums that must balance: received = scored + skipped + quarantined + waiting."""

    received: int = 0
    scored: int = 0
    skipped: int = 0
    quarantined: int = 0
    waiting: int = 0  # waiting or claimed
    claimed: int = 0
    films: int = 0
    rejected_files: int = 0
    contradictions: int = 0  # studies whose state and films do not fit together; none, ever
    reasons: dict[str, dict[str | None, int]] = field(default_factory=dict)

    @property
    def balance(self) -> bool:
        ended = self.scored + self.skipped + self.quarantined
        return self.received == ended + self.waiting and not self.contradictions


def read_totals(session: Session, *, since: datetime | None = None, until: datetime | None = None) -> Totals:
    """The sums over all studies, or those received after `since` and up to `until`; and why some are not scored."""
    period = _received(Study, since, until)
    totals = Totals(received=session.scalar(select(func.count()).select_from(Study).where(*period)) or 0)
    states = select(Study.state, func.count()).where(*period).group_by(Study.state)
    count: Counter[StudyState] = Counter(dict(session.execute(states).all()))
    totals.scored, totals.skipped, totals.quarantined = (count[state] for state in SETTLED)
    totals.claimed, totals.waiting = count["claimed"], count["claimed"] + count["waiting"]
    films = select(func.count()).where(Instance.state == "scored", *_received(Instance, since, until))
    totals.films = session.scalar(films) or 0
    totals.contradictions = session.scalar(_contradictions(period)) or 0
    for kind, statement in _reason_counts(since, until).items():
        totals.reasons[kind] = dict(session.execute(statement).all())
    totals.rejected_files = sum(totals.reasons["rejected files"].values())
    return totals


def _contradictions(period: list[Any]) -> Select[int]:
    """Settled studies with a film that nobody has read, and scored ones of which no film was scored."""
    film = select(Instance.id).where(Instance.study_id == Study.id)
    unread = film.where(Instance.state == "waiting", Instance.view.is_not(None)).exists()
    scored = film.where(Instance.state == "scored").exists()
    settled = Study.state.in_(SETTLED)
    wrong = or_(and_(settled, unread), and_(Study.state == "scored", ~scored))
    return select(func.count()).select_from(Study).where(wrong, *period)


def _received(
    table: type[Study | Instance | RejectedFile], since: datetime | None, until: datetime | None
) -> list[Any]:
    """The conditions that keep a table's rows of one period."""
    after = [] if since is None else [table.received_at > since]
    return after if until is None else [*after, table.received_at <= until]


def _reason_counts(since: datetime | None, until: datetime | None) -> dict[str, Select[str | None, int]]:
    by_state: dict[str, Select[str | None, int]] = {
        f"{state} {noun}": select(table.reason, func.count())
        .where(table.state == state, table.reason.is_not(None), *_received(table, since, until))
        .group_by(table.reason)
        for state, table, noun in (
            ("skipped", Study, "studies"),
            ("quarantined", Study, "studies"),
            ("waiting", Study, "studies"),
            ("skipped", Instance, "instances"),
            ("quarantined", Instance, "films"),
        )
    }
    rejected = select(RejectedFile.reason, func.count()).where(*_received(RejectedFile, since, until))
    return {**by_state, "rejected files": rejected.group_by(RejectedFile.reason)}


def rejected_files(session: Session) -> Sequence[RowMapping]:
    """Path, reason and sentence of every file that could not become an instance, newest first."""
    columns = (RejectedFile.path, RejectedFile.reason, RejectedFile.detail, RejectedFile.received_at)
    return session.execute(select(*columns).order_by(RejectedFile.received_at.desc(), RejectedFile.id)).mappings().all()
