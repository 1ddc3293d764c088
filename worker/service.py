"""The long-running worker: a Celery consumer with its scorer and its metrics page."""

import os
import signal
import threading
from contextlib import ExitStack
from typing import Any

import structlog
from celery.signals import worker_ready, worker_shutting_down

from worker.app import SCORING, make_app
from worker.errors import Unavailable
from worker.house import House
from worker.metrics import WorkMetrics, page
from worker.tasks import Service, register

log = structlog.get_logger()


def run_worker(house: House) -> None:
    """Consume the queue until SIGTERM. The checkpoint is loaded before the first message, so a bad one fails here.

    Raises Unavailable when the consumer ends by itself: whoever watches over the process must start it again.
    """
    settings, metrics = house.settings, WorkMetrics()
    celery, service = make_app(settings), Service(house, metrics=metrics)
    register(celery, service)

    def stop(**_: Any) -> None:
        service.stopping.set()  # the pass in hand ends after its batch and gives back what is left

    worker_shutting_down.connect(stop, weak=False)
    with ExitStack() as stack:
        stack.callback(service.close)
        stack.enter_context(page(metrics.registry, port=settings.metrics_port, address=settings.metrics_address))
        service.scorer()
        if settings.recycle_hours:
            _recycle_after(settings.recycle_hours)
        # One process per GPU, and one thread in it that scores while the main thread keeps the broker's connection:
        # never a forked pool, whose children would inherit CUDA and torch's threads.
        celery.worker_main(
            ["worker", f"--queues={SCORING}", "--pool=threads", "--concurrency=1", "--loglevel=WARNING",
             "--without-gossip", "--without-mingle"]
        )  # fmt: skip
        if not service.stopping.is_set():  # Celery logs what it did not survive and returns as if all were well
            raise Unavailable("the worker's connection to the queue ended by an error; start it again")


def _recycle_after(hours: float) -> None:
    """End this process by the way that SIGTERM takes, so many hours after it began to listen.

    Decoder processes are replaced more often (worker/reading.py); this is for what leaks in the process that holds the
    network, which no pool can replace.
    """

    def end() -> None:
        log.info("worker_recycled", hours=hours)
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(hours * 3600, end)
    timer.daemon = True
    worker_ready.connect(lambda **_: timer.start(), weak=False)
