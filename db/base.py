"""Basis of every table: names for constraints, UTC time, portable big keys."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, MetaData, func, select
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

DECIMALS = 6  # of a stored probability or urgency: what differs beyond them is the order of additions, not the film

# SQLite gives row ids only to INTEGER PRIMARY KEY; PostgreSQL needs 64 bits for archives of many years.
BigKey = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: timestamptz on PostgreSQL, ISO text without zone on SQLite, always aware in Python."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime has no place in the database: give it a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


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
        text: str = session.scalar(select(func.strftime("%Y-%m-%dT%H:%M:%f", "now"))) or ""
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    moment: Any = session.scalar(select(func.clock_timestamp()))
    return moment.astimezone(UTC)  # type: ignore[no-any-return]
