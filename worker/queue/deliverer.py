"""The delivery worker: publishes results and sends them, in a queue of its own.

A destination that hangs must not hold up the scoring, and a night of scoring no result. Beat sends one message every
few seconds; each is answered by everything that is due.
"""

import threading

from celery import Celery

from worker.context import Context
from worker.delivery import outbox
from worker.queue.app import DELIVER, DELIVERY, consume, make_app


def register(app: Celery, context: Context, *, stopping: threading.Event) -> None:
    """Give the app its one task."""

    @app.task(name=DELIVER)  # type: ignore[untyped-decorator]
    def deliver() -> None:
        outbox.publish(context)
        outbox.deliver_due(context, should_stop=stopping.is_set)


def run_delivery_worker(context: Context) -> None:
    """Consume the delivery queue until SIGTERM. Raises WrongSettings for a peer that cannot get what it is to get, and
    Unavailable when the consumer ends by itself."""
    outbox.destinations(context.settings)  # so that a wrong one fails here
    celery, stopping = make_app(context.settings), threading.Event()
    register(celery, context, stopping=stopping)
    consume(celery, DELIVERY, stopping=stopping)
