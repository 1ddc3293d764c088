"""The totals: how many studies came, and where each of them stands.

They are kept as sums of changes, which triggers write in the transaction that changes what is counted, so that to ask
costs the same however many studies there are. `read_totals` counts the rows themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Label,
    RowMapping,
    Select,
    SQLColumnExpression,
    String,
    and_,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import Session

from db.models import SETTLED, Delivery, Instance, RejectedFile, Site, Study, StudyState, TotalChange

KIND = ("counted", "state", "reason", "decided_under")  # columns of total_change
_KIND = [getattr(TotalChange, name) for name in KIND]
MOST_CHANGES = 1000  # that are left apart: to add up 1000 takes a millisecond

# As whom a reason is told: (name, what is counted, state).
_REASONS = (
    ("skipped studies", "study", "skipped"),
    ("quarantined studies", "study", "quarantined"),
    ("waiting studies", "study", "waiting"),
    ("skipped instances", "instance", "skipped"),
    ("quarantined films", "instance", "quarantined"),
    ("rejected files", "rejected_file", "rejected"),
)


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


def kept_totals(session: Session) -> Totals:
    """The sums over all studies and why some are not scored, as they are kept.

    Contradictions are settled studies with a film that nobody has decoded: others only `read_totals` finds.
    """
    sums: Counter[tuple[str, str]] = Counter()
    reasons: defaultdict[tuple[str, str], dict[str | None, int]] = defaultdict(dict)
    kinds = (TotalChange.counted, TotalChange.state, TotalChange.reason)
    for counted, state, reason, count in session.execute(select(*kinds, func.sum(TotalChange.change)).group_by(*kinds)):
        sums[counted, state] += int(count)
        if reason is not None and count:
            reasons[counted, state][reason] = int(count)
    studies = {state: count for (counted, state), count in sums.items() if counted == "study"}
    scored, skipped, quarantined = (studies.get(state, 0) for state in SETTLED)
    claimed, waiting = studies.get("claimed", 0), studies.get("waiting", 0)
    return Totals(
        received=sum(studies.values()),
        scored=scored,
        skipped=skipped,
        quarantined=quarantined,
        waiting=waiting + claimed,
        claimed=claimed,
        films=sums["instance", "scored"],
        rejected_files=sums["rejected_file", "rejected"],
        contradictions=session.scalar(_settled_undecoded()) or 0,
        reasons={name: reasons[counted, state] for name, counted, state in _REASONS},
    )


def _settled_undecoded() -> Select[int]:
    """Settled studies with an undecoded film, by the indexes of what waits: no settled study is looked at, unless one
    has such a film."""
    unsettled = select(Study.id).where(Study.id == Instance.study_id, Study.state.in_(("waiting", "claimed")))
    undecoded = (Instance.state == "waiting", Instance.view.is_not(None))
    return select(func.count(Instance.study_id.distinct())).where(*undecoded, ~unsettled.exists())


def add_up(session: Session, *, most: int = MOST_CHANGES) -> None:
    """Make one row of each kind of what writers have appended, if there are more than `most`. Writers wait for nothing,
    and what another transaction adds up at this moment is left to it."""
    if (session.scalar(select(func.count()).select_from(TotalChange)) or 0) <= most:
        return
    free = select(TotalChange.id).with_for_update(skip_locked=True)
    appended = delete(TotalChange).where(TotalChange.id.in_(free)).returning(*_KIND, TotalChange.change)
    sums: Counter[tuple[Any, ...]] = Counter()
    for *kind, change in session.execute(appended, execution_options={"synchronize_session": False}):
        sums[tuple(kind)] += change
    rows = [dict(zip(KIND, kind, strict=True)) | {"change": change} for kind, change in sums.items() if change]
    if rows:
        session.execute(insert(TotalChange), rows)


def recount(session: Session) -> int:
    """Count every row anew and mend the totals that are kept; returns how many kinds had a wrong sum.

    One statement sees rows and changes at one moment, so no writer need stop; two of these take turns.
    """
    session.execute(select(Site.id).with_for_update())
    nothing, instance = cast(null(), String), (Instance.state, Instance.reason, Instance.decided_under)
    there_is = (
        _counted(literal("study"), Study.state, Study.reason, nothing),
        _counted(literal("instance"), *instance),
        _counted(literal("rejected_file"), literal("rejected"), RejectedFile.reason, nothing),
        _counted(literal("delivery"), Delivery.state, Delivery.kind, nothing),
    )
    kept = select(*_KIND, (-func.sum(TotalChange.change)).label("change")).group_by(*_KIND)
    both = union_all(*there_is, kept).subquery()
    kind, difference = [both.c[name] for name in KIND], func.sum(both.c.change)
    wrong = select(*kind, difference).group_by(*kind).having(difference != 0)
    mend = insert(TotalChange).from_select([*KIND, "change"], wrong).returning(TotalChange.id)
    mended = session.scalars(mend).all()
    add_up(session, most=0)
    return len(mended)


def _counted(*kind: SQLColumnExpression[Any]) -> Select[Any]:
    """How many rows there are of each kind."""
    named: list[Label[Any]] = [value.label(name) for name, value in zip(KIND, kind, strict=True)]
    return select(*named, func.count().label("change")).group_by(*named)


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
    tables: dict[str, type[Study | Instance]] = {"study": Study, "instance": Instance}
    by_state: dict[str, Select[str | None, int]] = {
        name: select(table.reason, func.count())
        .where(table.state == state, table.reason.is_not(None), *_received(table, since, until))
        .group_by(table.reason)
        for name, counted, state in _REASONS
        if (table := tables.get(counted)) is not None
    }
    rejected = select(RejectedFile.reason, func.count()).where(*_received(RejectedFile, since, until))
    return {**by_state, "rejected files": rejected.group_by(RejectedFile.reason)}


def rejected_files(session: Session) -> Sequence[RowMapping]:
    """Path, reason and sentence of every file that could not become an instance, newest first."""
    columns = (RejectedFile.path, RejectedFile.reason, RejectedFile.detail, RejectedFile.received_at)
    return session.execute(select(*columns).order_by(RejectedFile.received_at.desc(), RejectedFile.id)).mappings().all()
