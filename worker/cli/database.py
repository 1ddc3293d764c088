"""`nightread db`: the database's schema and roles."""

from pathlib import Path
from typing import Annotated

import typer

from worker.terminal.console import say, settings_with_logs

app = typer.Typer(no_args_is_help=True, help="Keep the database's schema and roles.")


@app.command()
def upgrade() -> None:
    """Bring the database's schema up to this version.

    A new database gets its checkpoint and policy.
    """
    from db import schema
    from db.session import make_engine
    from worker.context import Context

    settings = settings_with_logs(service=True)
    engine = make_engine(settings.database_url)
    before = schema.current_revision(engine)
    schema.upgrade(engine)
    Context(settings).seed()
    say(f"schema: {before or 'empty'} -> {schema.head_revision()}")


@app.command()
def roles(
    password_dir: Annotated[Path, typer.Option(help="A folder with one file per role, named like it.")],
) -> None:
    """Make PostgreSQL's roles, or mend them.

    They are nightread_migrate, nightread_worker, nightread_web, nightread_reader and nightread_scaler.
    """
    from db.roles import ROLES, create_roles
    from db.session import make_engine

    engine = make_engine(settings_with_logs(service=True).database_url)
    if engine.dialect.name != "postgresql":
        raise typer.BadParameter("roles are PostgreSQL's; for SQLite the file's permissions decide")
    try:
        passwords = {role: (password_dir / role).read_text().strip() for role in ROLES}
    except OSError as error:
        raise typer.BadParameter(f"cannot read the password file {error.filename}: {error.strerror}") from error
    create_roles(engine, passwords)
    say(f"roles: {', '.join(ROLES)}")
