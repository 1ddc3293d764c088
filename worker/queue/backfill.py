"""A year of studies, a little at a time: within a nightly window, and never more per minute than the site can spare."""

import time as clocks
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerAway

from worker.context import Context
from worker.intake.receive import Received, find_files, receive
from worker.pacing import Window
from worker.queue.maintenance import notify_waiting

log = structlog.get_logger()

PORTION_FILES = 16  # registered and notified at once; small, so that the workers are given work evenly


@dataclass
class Backfilled:
    """Counts of a backfill: registered studies and messages sent; `broker_away`: some could not be sent."""

    received: Received
    notified: int = 0
    broker_away: bool = False


@dataclass(frozen=True)
class Pace:
    """At most `studies_per_minute` new studies, and only within the window of the day; None: no limit."""

    studies_per_minute: float | None = None
    window: Window | None = None
    sleep: Callable[[float], None] = clocks.sleep
    now: Callable[[], datetime] = datetime.now

    def wait_until_open(self) -> None:
        if self.window is not None and (closed := self.window.seconds_until_open(self.now())):
            log.info("backfill_waits", seconds=round(closed))
            self.sleep(closed)

    def wait_after(self, studies: int, *, seconds: float) -> None:
        """Wait for the rest of the time that these studies may take, of which `seconds` are over."""
        if self.studies_per_minute is not None:
            self.sleep(max(0.0, studies * 60 / self.studies_per_minute - seconds))


def backfill(
    context: Context,
    app: Celery,
    paths: Iterable[Path],
    *,
    pace: Pace,
    on_file: Callable[[], None] = lambda: None,
) -> Backfilled:
    """Register what lies at `paths` and notify the workers, portion by portion, at this pace.

    Files that are registered already cost no time of the rate, so an interrupted backfill is resumed by the same
    command. While the broker is away it goes on registering: the sweep will send the messages.
    """
    done, found = Backfilled(Received()), find_files(paths)
    while files := list(islice(found, PORTION_FILES)):
        pace.wait_until_open()
        began = clocks.monotonic()
        portion = receive(context, files, on_file=on_file)
        done.received.add(portion)
        try:
            done.notified += notify_waiting(context, app, limit=len(portion.studies))
        except BrokerAway:
            done.broker_away = True
        pace.wait_after(len(portion.studies), seconds=clocks.monotonic() - began)
    return done
