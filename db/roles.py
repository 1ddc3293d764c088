"""PostgreSQL roles: who may do what. `nightread db roles` makes or mends them; every upgrade grants what it added.

nightread_migrate owns the tables and changes the schema; nightread_worker reads and writes rows; nightread_web reads
what its pages show and writes what readers do; nightread_reader sees the views and nothing else; nightread_scaler
sees how many studies wait. SQLite has no roles: there the file's permissions decide.

PostgreSQL lets every role change its own password and the settings its sessions start with, and nobody can take that
away. So one who holds the reader's password can shut the other readers out, until `nightread db roles` mends it.
"""

from collections.abc import Mapping
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Engine, inspect, text

from db.schema import require_utf8

MIGRATE, WORKER, WEB, READER = "nightread_migrate", "nightread_worker", "nightread_web", "nightread_reader"
SCALER = "nightread_scaler"  # what adds workers when many studies wait, such as KEDA
ROLES = (MIGRATE, WORKER, WEB, READER, SCALER)

# What a role's sessions start with; a reader's slow query must not hold back the clean-up of old rows all day.
SESSION_SETTINGS = (
    (WORKER, "idle_in_transaction_session_timeout", "5min"),
    (WEB, "idle_in_transaction_session_timeout", "60s"),
    (WEB, "statement_timeout", "60s"),
    (READER, "default_transaction_read_only", "on"),
    (READER, "statement_timeout", "60s"),
    (READER, "idle_in_transaction_session_timeout", "60s"),
    (SCALER, "default_transaction_read_only", "on"),
    (SCALER, "statement_timeout", "10s"),
)

READERS = 20  # connections that nightread_reader may hold at once: it must leave the workers theirs
SCALERS = 3
UNLIMITED = -1
CONNECTION_LIMITS = {MIGRATE: UNLIMITED, WORKER: UNLIMITED, WEB: UNLIMITED, READER: READERS, SCALER: SCALERS}
SCALER_READS = "waiting_studies"

APPEND_ONLY = ("audit", "instance_version")
NOT_FOR_WORKERS = ("alembic_version",)

# The web page: nothing of the secret that makes patient keys, nothing that ranks, no pixels' and no settings' history.
NOT_FOR_WEB = ("site", "instance_version", "shadow_priority", "pull_watermark", "unpulled_study")
WEB_WRITES = {
    "web_user": "INSERT, UPDATE (role)",
    "web_session": "INSERT, DELETE",
    "login_failure": "INSERT, DELETE",
    "reading_claim": "INSERT, UPDATE, DELETE",
    "review": "INSERT, UPDATE (verdict, reviewed_at)",
    "audit": "INSERT",
    "study_priority": "UPDATE (read_at, read_by)",
    "study": "UPDATE (state, reason, detail, not_before, notified_at, attempts, suspect, revision)",  # requeue
    "instance": "UPDATE (state, reason, evidence)",
    "total_change": "INSERT",  # by the triggers that keep the totals
}


def create_roles(engine: Engine, passwords: Mapping[str, str]) -> None:
    """Create the roles, or undo what was changed in them, and shut everyone else out of this database.

    `passwords` maps each of ROLES to its password; the server gets them hashed (SCRAM), so that none reaches its log.
    The engine must connect as a superuser, to the database that Nightread will use. Raises KeyError for a missing role,
    and WrongEncoding for a database that is not in UTF-8.
    """
    with engine.begin() as connection:
        require_utf8(connection)
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
        _forbid_large_objects(connection)


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
    if WEB in found:
        _grant_web(connection, tables=schema.get_table_names(), views=schema.get_view_names())
    if READER in found:
        for view in schema.get_view_names():
            _grant(connection, "SELECT", view, READER)
    if SCALER in found and SCALER_READS in schema.get_view_names():
        _grant(connection, "SELECT", SCALER_READS, SCALER)


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
    _grant_sequences(connection, WORKER)


def _grant_web(connection: Connection, *, tables: list[str], views: list[str]) -> None:
    for relation in [*tables, *views]:
        if relation not in NOT_FOR_WEB:
            _grant(connection, "SELECT", relation, WEB)
    for table, rights in WEB_WRITES.items():
        if table in tables:
            _grant(connection, rights, table, WEB)
    _grant_sequences(connection, WEB)


def _grant_sequences(connection: Connection, role: str) -> None:
    statement = sql.SQL("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}")
    _execute(connection, statement.format(sql.Identifier(role)))


def _grant(connection: Connection, rights: str, relation: str, role: str) -> None:
    statement = sql.SQL("GRANT {} ON {} TO {}")
    _execute(connection, statement.format(sql.SQL(rights), sql.Identifier(relation), sql.Identifier(role)))


def _create_role(connection: Connection, role: str, password: str) -> None:
    """A role with exactly these attributes, this password and these settings, whatever it had before."""
    name = sql.Identifier(role)
    if not connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}):
        _execute(connection, sql.SQL("CREATE ROLE {}").format(name))
    hashed = _driver(connection).pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    attributes = sql.SQL(
        "ALTER ROLE {} LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
        "CONNECTION LIMIT {} VALID UNTIL 'infinity' PASSWORD {}"
    )
    limit, secret = sql.Literal(CONNECTION_LIMITS[role]), sql.Literal(hashed.decode())
    _execute(connection, attributes.format(name, limit, secret))
    _reset_settings(connection, role)
    for member, setting, value in SESSION_SETTINGS:
        if member == role:
            statement = sql.SQL("ALTER ROLE {} SET {} = {}")
            _execute(connection, statement.format(name, sql.Identifier(setting), sql.Literal(value)))


def _reset_settings(connection: Connection, role: str) -> None:
    """Forget all settings of a role, also those for one database, which would win over the others."""
    databases = text(
        "SELECT d.datname FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole "
        "JOIN pg_database d ON d.oid = s.setdatabase WHERE r.rolname = :role"
    )
    name = sql.Identifier(role)
    for database in connection.scalars(databases, {"role": role}).all():
        statement = sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL")
        _execute(connection, statement.format(name, sql.Identifier(database)))
    _execute(connection, sql.SQL("ALTER ROLE {} RESET ALL").format(name))


def _forbid_large_objects(connection: Connection) -> None:
    """Leave large objects to superusers: every role may make them without a right on any schema, and fill the disk."""
    functions = text(
        r"SELECT CAST(oid AS regprocedure)::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace "
        r"AND (proname LIKE 'lo\_%' OR proname IN ('loread', 'lowrite'))"
    )
    for function in connection.scalars(functions).all():
        _execute(connection, sql.SQL("REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC").format(sql.SQL(function)))


def _execute(connection: Connection, statement: sql.Composed | sql.SQL) -> None:
    connection.exec_driver_sql(statement.as_string(_driver(connection)))


def _driver(connection: Connection) -> Any:
    """psycopg's own connection, which quotes names and literals and hashes passwords."""
    return connection.connection.driver_connection
