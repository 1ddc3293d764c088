"""The database that the settings name: whether it is there, and whether its schema is this version's."""

from pathlib import Path

from sqlalchemy import Engine, make_url
from sqlalchemy.exc import DBAPIError

from db import schema
from db.session import make_engine
from worker.errors import Unavailable
from worker.settings import Settings


class NoDatabase(Unavailable):
    """The SQLite file that the settings name does not exist."""


class SchemaBehind(Unavailable):
    """The database's schema is not this version's."""


def require_database(settings: Settings) -> None:
    """Refuse a SQLite file that is not there, unless it is the default one: SQLite would make a new, empty database at
    any mistyped path. Raises NoDatabase."""
    url = make_url(settings.database_url)
    default = Settings.model_fields["database_url"].get_default(call_default_factory=True)
    if url.get_backend_name() != "sqlite" or settings.database_url == default:
        return
    if url.database and not Path(url.database).exists():
        raise NoDatabase(
            f"there is no database at {url.database}: check NIGHTREAD_DATABASE_URL; "
            "`nightread score` and `nightread db upgrade` make a new one"
        )


def open_database(settings: Settings) -> Engine:
    """An engine with its schema checked; SQLite, which belongs to one site's machine, is brought up to date.

    Raises SchemaBehind.
    """
    engine = make_engine(settings.database_url)
    if schema.current_revision(engine) != schema.head_revision():
        if engine.dialect.name != "sqlite":
            raise SchemaBehind("the database's schema is not this version's: run `nightread db upgrade`")
        schema.upgrade(engine)
    return engine


def name_of(settings: Settings) -> str:
    """The database in an error's sentence: SQLite, unlike a server, does not say which file it could not open."""
    url = make_url(settings.database_url)
    return f"the database {url.database}" if url.get_backend_name() == "sqlite" else "the database"


def reason_of(error: DBAPIError) -> str:
    """The driver's own words, which name host, port and cause; of a refused value only its kind, for they quote it."""
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    if sqlstate.startswith(("22", "23")):  # data exceptions and broken constraints
        return type(error.orig).__name__
    message = getattr(getattr(error.orig, "diag", None), "message_primary", None) or str(error.orig)
    return " ".join(message.split())
