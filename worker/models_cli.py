"""`nightread models`: the registry of checkpoints."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from worker.terminal import open_house, out, refuse

app = typer.Typer(no_args_is_help=True, help="The checkpoints: which are known, which one ranks, and the way back.")

Reason = Annotated[str, typer.Option(help="Why; it is kept with who and when.")]


@app.command("list")
def list_() -> None:
    """Every registered checkpoint, newest first."""
    from db import registry
    from db.session import read_scope

    table = Table("digest", "network", "state", "since", "by", "reason")
    with read_scope(open_house().engine) as session:
        for row in registry.everything(session):
            since = f"{row.state_changed_at:%Y-%m-%d %H:%M}"
            table.add_row(row.digest[:12], row.network, row.state, since, row.state_changed_by, row.state_reason or "")
    out.print(table)


@app.command()
def add(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A checkpoint file.")]) -> None:
    """Register a checkpoint as a challenger; a copy is kept in the state folder."""
    from db.session import session_scope

    house = open_house()
    with session_scope(house.engine) as session:
        row = house.register(session, file)
        out.print(f"{row.digest[:12]} is registered as {row.state}")


@app.command()
def promote(digest: Annotated[str, typer.Argument(help="The digest's first characters.")], reason: Reason) -> None:
    """Make a registered checkpoint the one that ranks; workers take it up between two batches."""
    from db import registry
    from db.session import session_scope
    from worker import models

    house = open_house()
    try:
        with session_scope(house.engine) as session:
            models.promote(house, session, registry.by_digest(session, digest), reason=reason)
    except (registry.UnknownCheckpoint, models.NotPromoted) as error:
        refuse(str(error))
    out.print("promoted; `nightread rescore` scores what the old one has ranked")


@app.command()
def rollback(reason: Reason) -> None:
    """Back to the champion before this one."""
    from db.session import session_scope
    from worker import models

    house = open_house()
    try:
        with session_scope(house.engine) as session:
            row = models.rollback(house, session, reason=reason)
    except models.NotPromoted as error:
        refuse(str(error))
    out.print(f"{row.digest[:12]} ranks again")
