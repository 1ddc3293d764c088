"""Basis of every table: names for constraints, the database's clock, numbers as they are kept."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import MetaData, func, select
from sqlalchemy.orm import DeclarativeBase, Session

from db.columns import UtcDateTime

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

_SQLITE_NOW, _POSTGRES_NOW = select(func.strftime("%Y-%m-%dT%H:%M:%f", "now")), select(func.clock_timestamp())
DECIMALS = 6  # of a stored probability or urgency: what differs beyond them is the order of additions, not the film


class Base(DeclarativeBase):
    """The declarative base of every table."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy reads this class attribute as it is


def rounded(number: Any) -> float:
    """A probability or an urgency as it is ranked with and kept: REAL holds more, not everywhere the same."""
    return round(float(number), DECIMALS)


class DocumentedError(Exception):
    """An error whose message, where it is given none, is its docstring's first line as a clause."""

    def __init__(self, message: str = "") -> None:
        line = (self.__doc__ or "").partition("\n")[0].removesuffix(".")
        super().__init__(message or line[:1].lower() + line[1:])


def short(digest: str) -> str:
    """The first characters of a digest: enough for people, and for commands that take one."""
    return digest[:12]


def database_now(session: Session) -> datetime:
    """The database's own clock, in UTC.

    Leases and waiting times are compared across workers whose clocks may differ, so only this clock counts.
    """
    if session.get_bind().dialect.name == "sqlite":
        text: str = session.connection().scalar(_SQLITE_NOW) or ""
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    moment: Any = session.connection().scalar(_POSTGRES_NOW)
    return moment.astimezone(UTC)  # type: ignore[no-any-return]
