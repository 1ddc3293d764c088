"""`nightread demo`: a night of drawn films, from the file to the worklist."""

from pathlib import Path
from typing import Annotated

import typer

from worker.terminal.console import DONE, SOME_LEFT_OUT, out, settings_with_logs

app = typer.Typer()


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the films, the database and the picture go.")] = Path("morning"),
) -> None:
    """Draw thirty phantom studies, score them, and show the list."""
    from worker.demo.run import run_demo

    morning = run_demo(folder, settings=settings_with_logs(log_level="warning"), console=out)
    raise typer.Exit(SOME_LEFT_OUT if morning.surprises else DONE)
