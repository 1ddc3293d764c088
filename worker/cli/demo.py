"""`nightread demo`: a night of drawn films, from the file to the worklist."""

from pathlib import Path
from typing import Annotated

import typer

from worker.terminal.console import DONE, SOME_LEFT_OUT, out, settings_with_logs

app = typer.Typer()


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where films, database, page and sheet go.")] = Path("morning"),
) -> None:
    """Draw forty phantom studies, score them, and show the list.

    The demo's own checkpoint scores them; it learned from drawings and must not rank real films."""
    from worker.demo.run import run_demo

    morning = run_demo(folder, settings=settings_with_logs(log_level="warning"), console=out)
    raise typer.Exit(SOME_LEFT_OUT if morning.surprises else DONE)
