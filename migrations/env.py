"""Alembic's environment: the connection is db.schema's, or NIGHTREAD_DATABASE_URL's for the alembic command."""

import os

from alembic import context
from sqlalchemy import Connection

import db.models  # noqa: F401 - fills the metadata
from db.base import Base
from db.session import make_engine

LOCK_TIMEOUT = "5s"  # a migration that can't get its lock gives up, rather than queueing every reader behind it


def migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Nightread's migrations run against a database; offline SQL is not offered (the dialects differ).")
given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with make_engine(os.environ["NIGHTREAD_DATABASE_URL"]).begin() as own:
        migrate(own)
