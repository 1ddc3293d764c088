"""What the commands share: two consoles, the context as the settings make it, JSON for programs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from worker import logs
from worker.settings import read_settings

if TYPE_CHECKING:
    from worker.context import Context

DONE, SOME_LEFT_OUT, WRONG_USAGE, UNAVAILABLE = 0, 1, 2, 3
STOPPED = 130  # by Ctrl-C

# Without markup: what they print may hold a sender's words, and `[/]` in an accession number must end nothing.
out, err = Console(markup=False), Console(stderr=True, markup=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def open_context(*, log_level: str | None = None) -> "Context":
    """The context of the settings, with its logs configured; imported late, so that `--help` is quick."""
    from worker.context import Context

    settings = read_settings()
    logs.configure(level=log_level or settings.log.level, style=settings.log.format)
    return Context(settings)


def refuse(message: str, *, code: int = WRONG_USAGE) -> NoReturn:
    """End the command with one line on standard error; by default as wrongly used."""
    err.print(Text("nightread:", style="red"), message, highlight=False, soft_wrap=True)
    raise SystemExit(code)


@contextmanager
def progress(description: str, *, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields what advances it."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=False) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Indented JSON on standard output; moments as ISO 8601."""
    print(json.dumps(value, indent=2, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v)))
