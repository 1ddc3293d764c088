"""INSERT ... ON CONFLICT, which PostgreSQL and SQLite share and SQLAlchemy spells once per dialect."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

Insert = postgresql.Insert | sqlite.Insert


def insert(session: Session, table: Any) -> Insert:
    """An INSERT for the session's database on which `on_conflict_do_nothing` and `on_conflict_do_update` work."""
    return _insert(session.get_bind().dialect.name, table)


def insert_missing(session: Session, table: Any, values: Mapping[str, Any], *, unique: str) -> int | None:
    """Insert one row unless there is one with its value of the column `unique`; returns its id, None where there is.

    Without the ORM, by one statement object for all rows: several times as fast.
    """
    statement = _insert_missing(session.get_bind().dialect.name, table.__table__, unique)
    added: int | None = session.connection().scalar(statement, values)
    return added


@cache
def _insert_missing(dialect: str, table: Any, unique: str) -> Any:
    return _insert(dialect, table).on_conflict_do_nothing(index_elements=[unique]).returning(*table.primary_key)


def _insert(dialect: str, table: Any) -> Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
