"""The long-running worker: a Celery consumer with its scorer and its metrics page."""

import os
import signal
import threading
from contextlib import ExitStack

import structlog
from celery.signals import worker_ready

from worker.context import Context
from worker.monitoring.prometheus import WorkMetrics, page
from worker.queue.app import SCORING, consume, make_app
from worker.queue.tasks import Service, register

log = structlog.get_logger()


def run_worker(context: Context) -> None:
    """Consume the queue until SIGTERM. The checkpoint is loaded before the first message, so a bad one fails here.

    Raises Unavailable when the consumer ends by itself, the device does not compute any more, or no checkpoint can
    score.
    """
    context.seed()
    settings, metrics = context.settings, WorkMetrics()
    celery, service = make_app(settings), Service(context, metrics=metrics)
    register(celery, service)

    with ExitStack() as stack:
        stack.callback(service.close)
        stack.enter_context(page(metrics.registry, port=settings.metrics.port, address=settings.metrics.address))
        service.scorer()
        if settings.recycle_hours:
            _recycle_after(settings.recycle_hours)
        # What is in flight when it is told to stop ends after its batch, and the rest is given back.
        consume(celery, SCORING, stopping=service.stopping)
        if service.failure is not None:
            raise service.failure


def _recycle_after(hours: float) -> None:
    """End this process by the way that SIGTERM takes, some hours after it began to listen.

    Decoder processes are replaced more often (worker/scoring/decoder_pool.py); this is for what leaks in the one that
    holds the network, which no pool can replace.
    """

    def end() -> None:
        log.info("worker_recycled", hours=hours)
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(hours * 3600, end)
    timer.daemon = True
    worker_ready.connect(lambda **_: timer.start(), weak=False)
