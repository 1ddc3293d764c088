"""Logging: structlog, one line per event, to standard error; JSON for machines, colours for people."""

import io
import logging
import sys
import threading
from types import TracebackType
from typing import Literal, TextIO

import structlog

from training.imaging.quiet import quieten_pydicom

QUOTING = ("highdicom", "dicomweb_client")  # libraries that complain in the words of what they were given


class _StandardError(logging.StreamHandler[TextIO]):
    """Standard error as it is when a line is written: what replaces it, as a test does, may close it at its end."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _stream: TextIO) -> None:
        """The base class sets it once."""


class _LastResort(logging.StreamHandler[TextIO]):
    """Standard error once everything else leads to it: a line that cannot be written is lost, for there is no other
    place to say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing: the base class would print to what is now a stream of this log."""


class _Lines(io.TextIOBase):
    """A stream of which each whole line is an event of the log."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._begun = ""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            structlog.get_logger("worker.output").log(self._level, line.rstrip())
        return len(text)


def configure(*, level: str, style: Literal["console", "json"]) -> None:
    """Send structlog's events and the libraries' warnings through one formatter."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _StandardError()
    final: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        renderer,
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries speak up when something is wrong
    for library in QUOTING:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    logging.getLogger("worker").setLevel(level.upper())
    quieten_pydicom()


def take_over_output() -> None:
    """Make everything that this process writes from now on lines of the log: what it prints, what a library prints,
    an uncaught error. For a service whose log is read by a program."""
    (configured,) = logging.getLogger().handlers
    handler = _LastResort(sys.stderr)
    handler.setFormatter(configured.formatter)
    logging.getLogger().handlers[:] = [handler]
    sys.stdout, sys.stderr = _Lines(logging.INFO), _Lines(logging.ERROR)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_of_thread


def _log_uncaught_of_thread(given: threading.ExceptHookArgs) -> None:
    if not issubclass(given.exc_type, SystemExit):  # it ends its thread and nothing else, as Python has it
        _log_uncaught(given.exc_type, given.exc_value, given.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    raised = error if error is not None else kind()
    structlog.get_logger("worker.output").critical("uncaught_error", exc_info=(kind, raised, traceback))
