"""Errors that a person can correct, as one sentence and an exit code. All others keep their traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from worker.terminal.console import STOPPED, UNAVAILABLE, WRONG_USAGE, err, refuse

if TYPE_CHECKING:
    from typer.exceptions import TyperException

NO_DATE = "does not match the formats '%Y-%m-%d'"  # typer's words


@contextmanager
def usage_errors(*kinds: type[Exception], code: int = WRONG_USAGE) -> Iterator[None]:
    """End the command, by default as wrongly used, with the error's own sentence if the block raises one."""
    try:
        yield
    except kinds as error:
        refuse(str(error), code=code)


@contextmanager
def refusals() -> Iterator[None]:
    """The same for whatever any command can raise: wrong words, settings, checkpoints, databases, files."""
    from typer.exceptions import Abort, TyperException

    try:
        yield
    except Abort:  # Ctrl-C or Ctrl-D at a question
        err.print()  # which ends without a new line
        refuse("stopped without an answer", code=STOPPED)
    except TyperException as error:
        _refuse_words(error)
    except Exception as error:  # of any library; what no person at the terminal can mend is raised again
        found = refusal_of(error)
        if found is None:
            raise
        sentence, code = found
        refuse(sentence, code=code)


def refusal_of(error: Exception) -> tuple[str, int] | None:
    """The sentence and exit code for an error, or None for a fault of the program.

    The libraries are imported here: by now one of them has raised.
    """
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

    from db.schema import UnknownRevision, WrongEncoding
    from training.checkpoint import CheckpointError
    from worker.database import name_of, reason_of
    from worker.errors import Unavailable
    from worker.settings import WrongSettings, read_settings

    match error:
        case WrongSettings():
            return f"a setting is wrong: {error}", WRONG_USAGE
        case ModuleNotFoundError():
            return f"this command needs the package {error.name}: pip install 'nightread[train]'", WRONG_USAGE
        case CheckpointError():
            return f"checkpoint: {error}", WRONG_USAGE
        case Unavailable() | UnknownRevision() | WrongEncoding():
            return str(error), UNAVAILABLE
        case ArgumentError() | NoSuchModuleError():
            return "NIGHTREAD_DATABASE_URL is no database URL: postgresql+psycopg://... or sqlite:///path", WRONG_USAGE
        case DBAPIError():
            where = name_of(read_settings())
            return f"{where} does not answer or refuses: {reason_of(error)}; see `nightread doctor`", UNAVAILABLE
        case OverflowError() if "SQLite" in str(error):  # which PostgreSQL answers as a database's error
            return "a number is larger than the database can hold", WRONG_USAGE
        case OSError():  # without the path, which a sender may have named
            return f"{error.strerror or type(error).__name__}: check the folders that the settings name", UNAVAILABLE
    return None


def _refuse_words(error: "TyperException") -> NoReturn:
    """A word on the command line that is wrong; no words at all are answered by the help."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if message.startswith("Usage:"):
        typer.echo(message, err=True)
        raise SystemExit(WRONG_USAGE)
    hint = "" if context is None else f"; see `{context.command_path} --help`"
    message = message.replace("Value error, ", "").replace(NO_DATE, "is no day: write it as 2026-11-30")
    refuse(message[:1].lower() + message[1:].rstrip(".") + hint)
