"""The end of leases whose worker died or hangs, and the place on the list of a study that is given up with them."""

from dataclasses import replace

from sqlalchemy.orm import Session

from db import ledger, policies, reranking
from db.results import record_priorities
from worker.ranking import activation
from worker.ranking.priority import PARTLY_SCORED
from worker.settings import Settings


def end_leases(session: Session, settings: Settings) -> tuple[int, int]:
    """Release the leases that ran out or cannot be true. Returns (waiting again, quarantined).

    A study in quarantine stands where one that failed does, whatever an earlier scoring had made of it: what was not
    read may be what is urgent.
    """
    ledger.shorten_leases(session, lease_minutes=settings.lease_minutes)
    again, lost = ledger.release_expired(session, max_attempts=settings.max_attempts)
    _place_as_failed(session, lost)
    return again, len(lost)


def _place_as_failed(session: Session, study_ids: list[int]) -> None:
    """By the films that are still scored, if any, and by what an unscored study gets, whichever is more."""
    active = policies.active(session)
    if not study_ids or active is None:
        return
    studies = reranking.placed_now(session, study_ids)
    incomplete = [replace(study, flag=study.flag or PARTLY_SCORED) for study in studies]
    record_priorities(session, activation.placed_by_stored(session, incomplete, active), policy_id=active.id)
