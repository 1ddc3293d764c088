"""PostgreSQL roles: who may do what. `nightread db roles` makes them once; every upgrade grants what it added.

nightread_migrate owns the tables and changes the schema; nightread_worker reads and writes rows; nightread_reader sees
the views and nothing else. SQLite has no roles: there the file's permissions decide.
"""

from collections.abc import Mapping
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Engine, inspect, text

MIGRATE, WORKER, READER = "nightread_migrate", "nightread_worker", "nightread_reader"
ROLES = (MIGRATE, WORKER, READER)

# What a role's sessions start with; a reader's slow query must not hold back the clean-up of old rows all day.
SESSION_SETTINGS = (
    (WORKER, "idle_in_transaction_session_timeout", "5min"),
    (READER, "default_transaction_read_only", "on"),
    (READER, "statement_timeout", "60s"),
    (READER, "idle_in_transaction_session_timeout", "60s"),
)

READERS = 20  # connections that nightread_reader may hold at once: it must leave the workers theirs

APPEND_ONLY = ("audit", "instance_version")
NOT_FOR_WORKERS = ("alembic_version",)


def create_roles(engine: Engine, passwords: Mapping[str, str]) -> None:
    """Create the three roles, or give them new passwords, and shut everyone else out of this database.

    `passwords` maps each of ROLES to its password; the server gets them hashed (SCRAM), so that none reaches its log.
    The engine must connect as a superuser, to the database that Nightread will use. Raises KeyError for a missing role.
    """
    with engine.begin() as connection:
        for role in ROLES:
            _create_role(connection, role, passwords[role])
        database = sql.Identifier(connection.engine.url.database or "")
        members = sql.SQL(", ").join(map(sql.Identifier, ROLES))
        for statement in (
            sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database),
            sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, members),
            sql.SQL("REVOKE ALL ON SCHEMA public FROM PUBLIC"),
            sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(members),
            sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(MIGRATE)),
        ):
            _execute(connection, statement)


def grant(connection: Connection) -> None:
    """Grant the roles that exist what is theirs of the tables and views that exist; run by their owner.

    A database without these roles (one user for everything), or SQLite, is left as it is.
    """
    if connection.dialect.name != "postgresql":
        return
    found = set(connection.scalars(text("SELECT rolname FROM pg_roles")))
    schema = inspect(connection)
    if WORKER in found:
        _grant_worker(connection, tables=schema.get_table_names(), views=schema.get_view_names())
    if READER in found:
        for view in schema.get_view_names():
            _grant(connection, "SELECT", view, READER)


def _grant_worker(connection: Connection, *, tables: list[str], views: list[str]) -> None:
    for table in tables:
        rights = "SELECT, INSERT, UPDATE, DELETE"
        if table in APPEND_ONLY:
            rights = "SELECT, INSERT"
        if table in NOT_FOR_WORKERS:
            rights = "SELECT"
        _grant(connection, rights, table, WORKER)
    for view in views:
        _grant(connection, "SELECT", view, WORKER)
    _execute(
        connection,
        sql.SQL("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}").format(sql.Identifier(WORKER)),
    )


def _grant(connection: Connection, rights: str, relation: str, role: str) -> None:
    statement = sql.SQL("GRANT {} ON {} TO {}")
    _execute(connection, statement.format(sql.SQL(rights), sql.Identifier(relation), sql.Identifier(role)))


def _create_role(connection: Connection, role: str, password: str) -> None:
    name = sql.Identifier(role)
    if not connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}):
        _execute(connection, sql.SQL("CREATE ROLE {} LOGIN").format(name))
    hashed = _driver(connection).pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    _execute(connection, sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(hashed.decode())))
    if role == READER:
        _execute(connection, sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(name, sql.Literal(READERS)))
    for member, setting, value in SESSION_SETTINGS:
        if member == role:
            statement = sql.SQL("ALTER ROLE {} SET {} = {}")
            _execute(connection, statement.format(name, sql.Identifier(setting), sql.Literal(value)))


def _execute(connection: Connection, statement: sql.Composed | sql.SQL) -> None:
    connection.exec_driver_sql(statement.as_string(_driver(connection)))


def _driver(connection: Connection) -> Any:
    """psycopg's own connection, which quotes names and literals and hashes passwords."""
    return connection.connection.driver_connection
