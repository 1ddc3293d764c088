"""INSERT ... ON CONFLICT, which PostgreSQL and SQLite share and SQLAlchemy spells once per dialect."""

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session


def insert(session: Session, table: Any) -> postgresql.Insert | sqlite.Insert:
    """An INSERT for the session's database on which `on_conflict_do_nothing` and `on_conflict_do_update` work."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
