"""Engines and transactions, the same on PostgreSQL and on SQLite.

The ORM is imported with the first Session: `nightread worklist`, which reads by `reading`, starts without it.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

BUSY_TIMEOUT_SECONDS = 60

# libpq's words. A network that swallows packets is noticed within half a minute, not after the kernel's quarter of an
# hour; and a process frozen inside a transaction loses its locks before the others have waited for long.
POSTGRES_PATIENCE = {
    "client_encoding": "utf8",  # a database in SQL_ASCII would else answer in bytes, and could not be refused in words
    "connect_timeout": "10",  # seconds
    "keepalives_idle": "10",  # seconds
    "keepalives_interval": "5",  # seconds
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # milliseconds
    "options": "-c idle_in_transaction_session_timeout=60s",
}


def make_engine(url: str) -> Engine:
    """An engine for `url`; nothing is connected yet.

    PostgreSQL gets POSTGRES_PATIENCE, of which the URL may set any otherwise. SQLite gets WAL (readers never block the
    writer), a busy timeout and foreign keys; its folder is made if missing.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        # pre_ping: a connection that PostgreSQL's restart cut is replaced before it costs a batch.
        # hide_parameters: an error's text must not carry a UID or an accession number into a log.
        patience = {name: value for name, value in POSTGRES_PATIENCE.items() if name not in parsed.query}
        return create_engine(
            parsed, connect_args=patience, pool_pre_ping=True, pool_size=4, max_overflow=4, hide_parameters=True
        )
    if parsed.database:
        Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def is_away(error: BaseException) -> bool:
    """Whether the server did not answer, or went away: worth another try. SQLite, a file, is never away."""
    return isinstance(error, OperationalError) and type(error.orig).__module__.startswith("psycopg")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" event opens transactions, not the driver
    _use_write_ahead_log(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_write_ahead_log(connection: Any) -> None:
    """Where several connections change a new database to WAL at once, SQLite tells all but one that it is locked."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the code may be an extended one
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that starts by reading and then writes can fail as "busy" half-way through when another process
    # wrote in between, whatever the timeout; one that takes the write lock at its start waits its turn instead.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def session_scope(engine: Engine) -> Iterator["Session"]:
    """One transaction that commits at the end of the block and rolls back if it raises."""
    from sqlalchemy.orm import Session

    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that only reads, without the ORM; on SQLite it never waits for a writer."""
    with engine.connect().execution_options(read_only=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        yield connection


@contextmanager
def read_scope(engine: Engine) -> Iterator["Session"]:
    """One transaction that only reads, as a session."""
    from sqlalchemy.orm import Session

    with reading(engine) as connection, Session(connection, expire_on_commit=False) as session:
        yield session
