"""The schema's version: brought up to date by Alembic, checked by whoever depends on it.

Every command checks the version, so that check asks the database and the folder of migrations itself: Alembic is
imported where a schema changes.
"""

from importlib.resources import files
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

if TYPE_CHECKING:
    from alembic.config import Config

UPGRADE_WAITS = "60s"  # for another upgrade
UPGRADE_LOCK = 0x6E69676874  # "night": PostgreSQL's advisory lock that keeps two upgrades apart


def alembic_config(connection: Connection | None = None) -> "Config":
    """Alembic's configuration for the migrations that are installed beside this package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["connection"] = connection
    return config


class WrongEncoding(Exception):
    """The database holds text in another encoding than UTF-8, so it cannot hold every name of a file or a view."""


def require_utf8(connection: Connection) -> None:
    """Raises WrongEncoding for a PostgreSQL database in LATIN1, SQL_ASCII or the like; SQLite's is always UTF-8."""
    if connection.dialect.name == "postgresql":
        encoding = connection.scalar(text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise WrongEncoding(
                f"the database's encoding is {encoding}, and must be UTF8: "
                "make another with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )


class UnknownRevision(Exception):
    """The database's schema is of a version that this code does not know: a newer one, or one never released."""


def upgrade(engine: Engine) -> None:
    """Bring the schema up to this version; several processes may call this at once, one does the work.

    Raises WrongEncoding, and UnknownRevision.
    """
    from alembic import command

    from db import roles

    found = current_revision(engine)
    if found is not None and found not in _revisions():
        raise UnknownRevision(
            f"the database's schema is {found}, which this version ({head_revision()}) does not know: "
            "install the version that made it, or restore the backup from before"
        )
    with engine.begin() as connection:
        require_utf8(connection)
        _lock(connection)
        command.upgrade(alembic_config(connection), "head")
        roles.grant(connection)


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{UPGRADE_WAITS}'"))  # anybody may hold an advisory lock
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})


def current_revision(engine: Engine) -> str | None:
    """The revision the database stands at, or None where there is no schema yet."""
    with engine.connect().execution_options(read_only=True) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision


def head_revision() -> str:
    """The revision this code needs: migrations/versions/0002_what_it_does.py makes revision 0002."""
    return max(_revisions())


def _revisions() -> set[str]:
    names = (file.name for file in (files("migrations") / "versions").iterdir())
    return {name.partition("_")[0] for name in names if name[0].isdigit()}
