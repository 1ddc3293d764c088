"""The reading order, read only. Ranks are computed by the views when they are asked for, so they are never stale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Connection, RowMapping, bindparam, text
from sqlalchemy.types import TypeEngine

from db.columns import UtcDateTime

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

HEAD = 50  # what the view next_to_read holds: the head of the list, at a cost that does not grow with it
ROWS_AT_ONCE = 1000

# SQLite keeps moments as text and truth as 0 or 1; only a typed column turns them back.
_TYPES: dict[str, TypeEngine[Any]] = {
    "acquired_at": UtcDateTime(),
    "received_at": UtcDateTime(),
    "stat": Boolean(),
    "overdue": Boolean(),
}
_SHARED = "SELECT accession_number FROM study WHERE accession_number IN :numbers GROUP BY 1 HAVING count(*) > 1"
_HEAD = "SELECT * FROM next_to_read ORDER BY priority_rank LIMIT :n OFFSET :at"
_UNREAD = "SELECT count(*) FROM study_priority WHERE read_at IS NULL"

# All unread studies are ranked, but by what study_priority holds; what lies in other tables is looked up for the part's
# rows alone.
_PART = """
    SELECT p.priority_rank, l.study_instance_uid, l.accession_number, p.category, p.urgency, l.top_finding,
           l.top_probability, l.top_lift, l.top_share, l.acquired_at, p.received_at, p.overdue, p.stat, p.flag,
           l.checkpoint_digest, l.policy_version, p.study_id, p.total
    FROM (SELECT priority_rank, category, urgency, received_at, overdue, stat, flag, study_id, count(*) OVER () AS total
          FROM worklist{where} ORDER BY priority_rank LIMIT :n OFFSET :at) p
    JOIN study_log l ON l.study_id = p.study_id
    ORDER BY p.priority_rank"""


def worklist(session: "Session", *, limit: int | None = None) -> Sequence[RowMapping]:
    """The unread studies in reading order: all, or the first `limit`."""
    return list(stream(session, limit=limit))


def stream(source: "Session | Connection", *, limit: int | None = None) -> Iterator[RowMapping]:
    """The same, a few rows in memory at a time: a backlog of a million studies is printed, not held."""
    view = "next_to_read" if limit is not None and limit <= HEAD else "worklist"
    bound = "" if limit is None else " LIMIT :limit"
    statement = text(f"SELECT * FROM {view} ORDER BY priority_rank{bound}").columns(**_TYPES)  # noqa: S608 - two names
    rows = source.execute(statement, {"limit": limit} if bound else {}, execution_options={"yield_per": ROWS_AT_ONCE})
    yield from rows.mappings()


def shared_numbers(connection: Connection, accession_numbers: Sequence[str | None]) -> set[str]:
    """Those of these accession numbers that more than one study has, read or not: they name none."""
    statement = text(_SHARED).bindparams(bindparam("numbers", expanding=True))
    return set(connection.scalars(statement, {"numbers": [number for number in accession_numbers if number]}))


@dataclass(frozen=True)
class Filter:
    """Part of the worklist; each condition that is given must hold. `accession_number`: how it begins."""

    category: str | None = None
    finding: str | None = None
    flag: str | None = None
    stat: bool = False
    overdue: bool = False
    accession_number: str | None = None


@dataclass(frozen=True)
class Part:
    """Some consecutive rows of the (filtered) worklist, and how many there are in all."""

    rows: Sequence[RowMapping]
    total: int


def part(session: "Session", wanted: Filter, *, offset: int, limit: int) -> Part:
    """The rows from `offset` on in reading order, each with its rank in the whole list."""
    cut = {"n": limit, "at": offset}
    if wanted == Filter() and offset + limit <= HEAD:
        return Part(session.execute(text(_HEAD).columns(**_TYPES), cut).mappings().all(), unread(session))
    where, values = _conditions(wanted)
    found = session.execute(text(_PART.format(where=where)).columns(**_TYPES), {**values, **cut}).mappings().all()
    if found or not offset:
        return Part(found, found[0]["total"] if found else 0)
    return Part([], session.scalar(text(f"SELECT count(*) FROM worklist{where}"), values) or 0)  # noqa: S608


def _conditions(wanted: Filter) -> tuple[str, dict[str, Any]]:
    """A WHERE clause for the columns of the view, and its values."""
    conditions = ["stat"] if wanted.stat else []
    conditions += ["overdue"] if wanted.overdue else []
    names = {"category": wanted.category, "top_finding": wanted.finding, "flag": wanted.flag}
    values: dict[str, Any] = {name: value for name, value in names.items() if value is not None}
    conditions += [f"{name} = :{name}" for name in values]
    if wanted.accession_number is not None:
        conditions.append("substr(accession_number, 1, length(:begins)) = :begins")
        values["begins"] = wanted.accession_number
    return (f" WHERE {' AND '.join(conditions)}" if conditions else ""), values


def unread(session: "Session") -> int:
    """How many studies wait to be read."""
    return session.scalar(text(_UNREAD)) or 0


def columns(source: "Session | Connection") -> list[str]:
    """The names of the reading order's columns, which an empty list has too."""
    return list(source.execute(text("SELECT * FROM worklist LIMIT 0")).keys())


def contributions(session: "Session") -> dict[str, list[RowMapping]]:
    """Study Instance UID -> its rows of the view study_contribution: first what counts, the best category first, and
    in each what adds most to the urgency."""
    order = "NOT counts, CASE WHEN counts THEN category END, contribution DESC, finding"
    studies: dict[str, list[RowMapping]] = {}
    statement = text(f"SELECT * FROM study_contribution ORDER BY {order}")  # noqa: S608 - a constant
    for row in session.execute(statement).mappings():
        studies.setdefault(row["study_instance_uid"], []).append(row)
    return studies


def parts(session: "Session", study_id: int) -> Sequence[RowMapping]:
    """One study's rows of the view study_contribution, the largest part of its urgency first."""
    statement = text(
        "SELECT * FROM study_contribution WHERE study_id = :study_id ORDER BY contribution DESC, finding"
    ).columns(counts=Boolean())
    return session.execute(statement, {"study_id": study_id}).mappings().all()


def place(session: "Session", study_id: int) -> RowMapping | None:
    """One study's row of the view study_place, counted along the indexes instead of ranking the whole list; None when
    it has been read or was never on the list."""
    statement = text("SELECT * FROM study_place WHERE study_id = :study_id").columns(**_TYPES)
    return session.execute(statement, {"study_id": study_id}).mappings().one_or_none()
