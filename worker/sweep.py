"""What keeps the bell and the ledger together: end dead workers' leases, ring for whoever waits unheard."""

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerAway

from db import ledger, runs, training_runs
from db.session import session_scope
from worker import reranking
from worker.app import ask_for_retraining, ring
from worker.house import House

log = structlog.get_logger()

BELLS_PER_SWEEP = 100  # one worker that hears one bell scores everything; more bells wake more workers


def sweep(house: House, app: Celery) -> None:
    """Release expired leases, end idle runs, ring for studies that wait without a message; harmless when doubled."""
    settings = house.settings
    with session_scope(house.engine) as session:
        again, lost = ledger.release_expired(session, max_attempts=settings.max_attempts)
        runs.close_idle(session, idle_minutes=settings.run_idle_minutes)
        forsaken = training_runs.forsaken(session)
    reranking.catch_up(house.engine)
    rung = ring_for_waiting(house, app, limit=BELLS_PER_SWEEP)
    if forsaken:  # its process died: whoever takes the message goes on, and one that nobody takes is dropped
        ask_for_retraining(app, training_runs.RESUME, expires_seconds=settings.sweep_seconds)
    if again or lost or rung:
        log.info("swept", waiting_again=again, quarantined=lost, rung=rung)


def ring_for_waiting(house: House, app: Celery, *, limit: int) -> int:
    """Ring for up to `limit` waiting studies that no message was sent for lately; returns for how many.

    Raises kombu's OperationalError while the broker is away; then none of them counts as rung.
    """
    with session_scope(house.engine) as session:
        again = house.settings.ring_again_minutes
        studies = ledger.studies_to_ring(session, ring_again_minutes=again, limit=limit)
    try:
        ring(app, studies)
    except BrokerAway:
        with session_scope(house.engine) as session:
            ledger.mark_rung(session, studies, None)
        raise
    return len(studies)
