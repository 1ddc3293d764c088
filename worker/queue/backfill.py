"""A year of studies, a little at a time: within a nightly window, and never more per minute than the site can spare."""

import re
import time as clocks
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from itertools import islice
from pathlib import Path

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerAway

from worker.context import Context
from worker.intake.receive import Received, find_files, receive
from worker.queue.maintenance import notify_waiting

log = structlog.get_logger()

PORTION_FILES = 16  # registered and notified at once; small, so that the workers are given work evenly


class BackfillError(ValueError):
    """A rate or a window that cannot be understood; the text says what is."""


@dataclass(frozen=True)
class Window:
    """From `begins` to `ends` every day, local time; over midnight when it ends before it begins."""

    begins: time
    ends: time

    def seconds_until_open(self, now: datetime) -> float:
        """0 while it is open."""
        beginning = datetime.combine(now.date(), self.begins)
        length = (datetime.combine(now.date(), self.ends) - beginning) % timedelta(days=1)
        if (now - beginning) % timedelta(days=1) < length:
            return 0.0
        return ((beginning - now) % timedelta(days=1)).total_seconds()


def window_of(text: str) -> Window:
    """`22:00-06:00`. Raises BackfillError."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)", text.strip())
    if found is None:
        raise BackfillError(f"{text!r} is no window; write it like 22:00-06:00")
    first_hour, first_minute, last_hour, last_minute = map(int, found.groups())
    window = Window(time(first_hour, first_minute), time(last_hour, last_minute))
    if window.begins == window.ends:
        raise BackfillError(f"{text!r} begins when it ends; leave it out to go on around the clock")
    return window


def studies_per_minute_of(text: str) -> float:
    """`120/min`, `2/s`, `5000/h`, or a bare number per minute. Raises BackfillError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|min|h))?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise BackfillError(f"{text!r} is no rate; write it like 120/min")
    return float(found[1]) * {"s": 60.0, "min": 1.0, "h": 1 / 60}[found[2] or "min"]


@dataclass
class Backfilled:
    """Counts of a backfill: registered studies and messages sent; `broker_away`: some could not be sent."""

    received: Received
    notified: int = 0
    broker_away: bool = False


def backfill(
    context: Context,
    app: Celery,
    paths: Iterable[Path],
    *,
    studies_per_minute: float | None = None,
    window: Window | None = None,
    on_file: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = clocks.sleep,
    now: Callable[[], datetime] = datetime.now,
) -> Backfilled:
    """Register what lies at `paths` and notify the workers, portion by portion, at most `studies_per_minute` of them.

    Files that are registered already cost no time of the rate, so an interrupted backfill is resumed by the same
    command. While the broker is away it goes on registering: the sweep will send the messages.
    """
    done, found = Backfilled(Received()), find_files(paths)
    while files := list(islice(found, PORTION_FILES)):
        if window is not None and (closed := window.seconds_until_open(now())):
            log.info("backfill_waits", seconds=round(closed))
            sleep(closed)
        began = clocks.monotonic()
        portion = receive(context, files, on_file=on_file)
        done.received.add(portion)
        try:
            done.notified += notify_waiting(context, app, limit=len(portion.studies))
        except BrokerAway:
            done.broker_away = True
        if studies_per_minute is not None:
            sleep(max(0.0, len(portion.studies) * 60 / studies_per_minute - (clocks.monotonic() - began)))
    return done
