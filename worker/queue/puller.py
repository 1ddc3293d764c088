"""The pulling worker: takes one message at a time and pulls from the peers of the settings, up to today."""

import threading

import structlog
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from worker.context import Context
from worker.dicom_network.pull import Pace, Wish, planned, pull_each
from worker.errors import Unavailable
from worker.monitoring.prometheus import PullMetrics, page
from worker.peers import peer_named
from worker.queue.app import PULL, PULLING, consume, make_app
from worker.queue.maintenance import notifier
from worker.settings import WrongSettings

log = structlog.get_logger()


def run_pulling_worker(context: Context) -> None:
    """Consume the pulling queue until SIGTERM, after which the film on its way still comes in.

    Raises WrongSettings for peers that are not there, and Unavailable when the consumer ends by itself.
    """
    if not context.settings.pull.peers:
        raise WrongSettings("NIGHTREAD_PULL_PEERS: name the peers to pull from")
    for name in context.settings.pull.peers:
        peer_named(context.settings, name)
    context.seed()
    settings, metrics = context.settings.metrics, PullMetrics()
    celery, stopping = make_app(context.settings), threading.Event()
    register(celery, context, stopping=stopping, metrics=metrics)
    with page(metrics.registry, port=settings.port, address=settings.address):
        consume(celery, PULLING, stopping=stopping)


def register(app: Celery, context: Context, *, stopping: threading.Event, metrics: PullMetrics) -> None:
    """Give the app its one task."""

    @app.task(name=PULL)  # type: ignore[untyped-decorator]
    def pull() -> None:
        pull_by_settings(context, stopping=stopping, metrics=metrics)


def pull_by_settings(context: Context, *, stopping: threading.Event, metrics: PullMetrics) -> None:
    """One pull from every peer of the settings. What breaks is logged: the next message goes on from there."""
    settings, wish = context.settings, Wish()
    pace = Pace.of(settings.pull.between, settings.pull.rate, time_zone=settings.time_zone)
    try:
        runs = [planned(context, peer_named(settings, name), wish) for name in settings.pull.peers]
        pull_each(context, runs, wish, pace=pace, stopping=stopping, on_films=notifier(context), metrics=metrics)
    except (Unavailable, SQLAlchemyError, OSError) as error:
        log.error("pull_failed", error=type(error).__name__)
