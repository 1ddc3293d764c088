"""Shared by the commands: two consoles, settings and context, a progress bar, JSON for programs."""

import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from worker.context import Context
    from worker.settings import Settings

DONE, SOME_LEFT_OUT, WRONG_USAGE, UNAVAILABLE = 0, 1, 2, 3
STOPPED = 130  # by Ctrl-C

# Without markup and emoji: what they print may hold a sender's words. `[/]` in an accession number must end nothing,
# and `:100:` must stay what it is.
out, err = Console(markup=False, emoji=False), Console(stderr=True, markup=False, emoji=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Wide = Annotated[bool, typer.Option("--wide", help="Every column, however wide the terminal is.")]


def plausible_day(day: datetime | None) -> datetime | None:
    """For an option that names a day: one on which films can have been taken, so that no sum of days leaves the
    calendar. Raises BadParameter."""
    if day is not None and not 1900 <= day.year < 3000:
        raise typer.BadParameter(f"no film is of the year {day.year}")
    return day


def settings_with_logs(*, log_level: str | None = None, service: bool = False) -> "Settings":
    """The settings, with the logs configured by them. Of a process that runs by itself (`service`), all that it writes
    is JSON where the logs are."""
    from worker import logs
    from worker.settings import read_settings

    settings = read_settings()
    logs.configure(level=log_level or settings.log.level, style=settings.log.format)
    if service and settings.log.format == "json":
        logs.take_over_output()
    return settings


def open_context(*, log_level: str | None = None, create: bool = False, service: bool = False) -> "Context":
    """The context of the settings. A command that may begin a new SQLite database says `create`; the others refuse one
    that is not there."""
    from worker.context import Context
    from worker.database import require_database

    settings = settings_with_logs(log_level=log_level, service=service)
    if not create:
        require_database(settings)
    return Context(settings)


def open_engine() -> "Engine":
    """The database alone, for a command that needs neither checkpoint nor policy and is to start quickly."""
    from worker.database import open_database, require_database
    from worker.settings import read_settings

    settings = read_settings()
    require_database(settings)
    return open_database(settings)


def say(sentence: str) -> None:
    """One line on standard output, which a terminal wraps and a pipe gets whole."""
    out.print(sentence, soft_wrap=True, highlight=False)


def refuse(message: str, *, code: int = WRONG_USAGE) -> NoReturn:
    """End the command with one line on standard error; by default as wrongly used."""
    err.print(Text("nightread:", style="red"), message, highlight=False, soft_wrap=True)
    raise SystemExit(code)


@contextmanager
def progress(description: str, *, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error while the block runs, if a person looks on; yields what advances it.

    However the block ends, also by SIGTERM, the bar is wiped and the cursor is shown again.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if not err.is_terminal:
        yield lambda _count: None
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task, count)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # as a shell counts an end by a signal


def print_json(value: Mapping[str, Any] | Iterable[Any]) -> None:
    """Indented JSON on standard output; moments as ISO 8601. The rows of an iterable are written as they come."""
    if isinstance(value, Mapping):
        print(_as_json(value))
        return
    between = "[\n"
    for row in value:
        print(between, _indented(_as_json(row)), sep="", end="")
        between = ",\n"
    print("[]" if between == "[\n" else "\n]")


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))


def _indented(text: str) -> str:
    return "  " + text.replace("\n", "\n  ")


def require_place_for(file: "Path") -> None:
    """Refuse a file to write whose folder does not exist, before the work is done, and what is there and no file: a
    finished file takes the place of a device."""
    if file.exists() and not file.is_file():
        refuse(f"{file} is a device or a folder: name a file")
    if not file.parent.is_dir():
        refuse(f"the folder {file.parent} does not exist: make it, or name another file than {file.name}")
