"""The scheduler: Celery beat, with the ledger as a metrics page. It needs no network and imports no torch."""

import structlog
from prometheus_client import CollectorRegistry

from worker.context import Context
from worker.monitoring.prometheus import LedgerCollector, page
from worker.queue.app import make_app

log = structlog.get_logger()


def run_beat(context: Context) -> None:
    """Send the schedule's messages until SIGTERM."""
    context.seed()
    settings, registry = context.settings, CollectorRegistry()
    registry.register(LedgerCollector(context.engine))
    with page(registry, port=settings.metrics.port, address=settings.metrics.address):
        app = make_app(settings)
        log.info("beat_started")
        app.Beat(loglevel="WARNING", quiet=True).run()
