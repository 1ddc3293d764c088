"""The long-running processes: a Celery worker and Celery beat, with their metrics page."""

from contextlib import ExitStack, nullcontext
from typing import Any

import structlog
from celery import Celery
from celery.signals import worker_shutting_down
from prometheus_client import CollectorRegistry

from worker.app import make_app
from worker.house import House
from worker.metrics import LedgerCollector, WorkMetrics, served
from worker.tasks import Service, register

log = structlog.get_logger()


def run_worker(house: House, *, queue: str) -> None:
    """Consume one queue until SIGTERM. The checkpoint is loaded before the first message, so a bad one fails here."""
    celery, metrics = make_app(house.settings), WorkMetrics()
    service = Service(house, metrics=metrics)
    register(celery, service)

    def stop(**_: Any) -> None:
        service.stopping.set()  # the pass in hand ends after its batch and gives back what is left

    worker_shutting_down.connect(stop, weak=False)
    with ExitStack() as stack:
        stack.callback(service.close)
        stack.enter_context(_metrics_page(house, metrics.registry))
        service.scorer()
        # One process per GPU, and one thread in it that scores while the main thread keeps the broker's connection:
        # never a forked pool, whose children would inherit CUDA and torch's threads.
        celery.worker_main(
            ["worker", f"--queues={queue}", "--pool=threads", "--concurrency=1", "--loglevel=WARNING",
             "--without-gossip", "--without-mingle"]
        )  # fmt: skip


def run_beat(house: House) -> None:
    """Send the schedule's messages until SIGTERM."""
    celery: Celery = make_app(house.settings)
    registry = CollectorRegistry()
    registry.register(LedgerCollector(house.engine))
    with _metrics_page(house, registry):
        celery.Beat(loglevel="WARNING").run()


def _metrics_page(house: House, registry: CollectorRegistry) -> Any:
    port, address = house.settings.metrics_port, house.settings.metrics_address
    return served(registry, port=port, address=address) if port else nullcontext()
