"""Patience with a database that is away: its transactions are tried again, with pauses, for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tenacity import RetryCallState, retry, retry_if_exception, stop_after_delay, wait_exponential

from db.session import is_away

PATIENCE_SECONDS = 120.0  # where nobody says otherwise: a database that restarts must not end a backfill of a year


@dataclass(frozen=True)
class _Patience:
    seconds: float = PATIENCE_SECONDS
    should_stop: Callable[[], bool] = lambda: False


_DEFAULT = _Patience()
_patience = ContextVar("patience", default=_DEFAULT)


@contextmanager
def patience(*, seconds: float, should_stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """In this block, wait for a database that is away so long at most, and no longer once `should_stop` says so."""
    waited = _patience.set(_Patience(seconds, should_stop))
    try:
        yield
    finally:
        _patience.reset(waited)


def _give_up(call: RetryCallState) -> bool:
    waiting = _patience.get()
    return stop_after_delay(waiting.seconds)(call) or waiting.should_stop()


patiently = retry(
    retry=retry_if_exception(is_away), wait=wait_exponential(multiplier=0.5, max=5), stop=_give_up, reraise=True
)
