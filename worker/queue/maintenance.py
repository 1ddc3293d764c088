"""Periodic maintenance: release expired leases and re-send messages for waiting studies."""

from collections.abc import Callable
from contextlib import suppress

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerAway

from db import ledger, runs, totals, training_runs
from db.session import session_scope
from worker.context import Context
from worker.queue.app import ask_for_retraining, make_app, notify
from worker.ranking import activation
from worker.scoring.leases import end_leases

log = structlog.get_logger()

MESSAGES_PER_SWEEP = 100  # one worker with one message scores everything; more messages wake more workers


def sweep(context: Context, app: Celery) -> None:
    """Release expired leases, end idle runs, add up the totals, send messages for studies that wait without one;
    harmless when doubled."""
    settings = context.settings
    with session_scope(context.engine) as session:
        again, lost = end_leases(session, settings)
        runs.close_idle(session, idle_minutes=settings.run_idle_minutes)
        totals.add_up(session)
        forsaken = training_runs.forsaken(session)
    activation.catch_up(context.engine)
    notified = notify_waiting(context, app, limit=MESSAGES_PER_SWEEP)
    if forsaken:  # its process died: whoever takes the message goes on, and one that nobody takes is dropped
        ask_for_retraining(app, training_runs.RESUME, expires_seconds=settings.sweep_seconds)
    if again or lost or notified:
        log.info("swept", waiting_again=again, quarantined=lost, notified=notified)


def notify_waiting(context: Context, app: Celery, *, limit: int) -> int:
    """Send messages for up to `limit` waiting studies that had none lately; returns for how many.

    Raises kombu's OperationalError while the broker is away; then none of them counts as notified.
    """
    with session_scope(context.engine) as session:
        again = context.settings.renotify_minutes
        studies = ledger.studies_to_notify(session, renotify_minutes=again, limit=limit)
    try:
        notify(app, studies)
    except BrokerAway:
        with session_scope(context.engine) as session:
            ledger.mark_notified(session, studies, None)
        raise
    return len(studies)


def notifier(context: Context) -> Callable[[], None]:
    """Called by a receiver when studies have come: notify the workers. While the broker is away, or where there
    is none, nothing is sent: the studies wait in the ledger, and the next sweep or `nightread score` takes them."""
    if context.settings.broker_url is None:
        return lambda: None
    app = make_app(context.settings)

    def notify_all() -> None:
        with suppress(BrokerAway):
            while notify_waiting(context, app, limit=MESSAGES_PER_SWEEP) == MESSAGES_PER_SWEEP:
                pass

    return notify_all
