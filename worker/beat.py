"""The scheduler: Celery beat, with the ledger as a metrics page. It needs no network and imports no torch."""

from prometheus_client import CollectorRegistry

from worker.app import make_app
from worker.house import House
from worker.metrics import LedgerCollector, page


def run_beat(house: House) -> None:
    """Send the schedule's messages until SIGTERM."""
    settings, registry = house.settings, CollectorRegistry()
    registry.register(LedgerCollector(house.engine))
    with page(registry, port=settings.metrics_port, address=settings.metrics_address):
        make_app(settings).Beat(loglevel="WARNING").run()
