"""The tree of commands. One file per group; each imports what a command needs inside that command, so that `--help`
waits for no network, no queue and no database."""

from typing import Annotated

import typer

from training.cli import app as train
from worker.cli import (
    database,
    deliver,
    demo,
    doctor,
    drift,
    ledger,
    models,
    morning,
    night,
    policy,
    pull,
    read,
    receive,
    redecide,
    rescore,
    retrain,
    serve,
    simulate,
    users,
)

app = typer.Typer(
    name="nightread",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: no option name is cut, whatever the terminal's width
    pretty_exceptions_enable=False,  # a traceback with local variables would print headers
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (
    night,
    receive,
    pull,
    deliver,
    morning,
    ledger,
    redecide,
    read,
    rescore,
    retrain,
    drift,
    simulate,
    doctor,
    demo,
    serve,
):
    app.add_typer(commands.app)
app.add_typer(models.app, name="models")
app.add_typer(policy.app, name="policy")
app.add_typer(users.app, name="users")
app.add_typer(train, name="train")
app.add_typer(database.app, name="db")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"nightread {version('nightread')}")
        raise typer.Exit


@app.callback()
def nightread(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Score the night's chest films and say in SQL which to read first. Not a medical device."""
