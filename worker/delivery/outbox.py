"""The outbox: results of studies that have been quiet for a while, sent until their destinations have them.

    publish -> rows in the table `delivery`, one per kind and destination -> deliver_due -> sent, confirmed

A study may be published again when what is said of it changes (another film, checkpoint or policy): the rows of a later
revision take the place of those that wait, and what was sent is named as its predecessor.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from db import deliveries
from db.arrivals import TWO_PATIENTS
from db.deliveries import AWAY, LONGEST_PAUSE_SECONDS, Claimed, NewDelivery, Publishable
from db.models import DeliveryKind, DeliveryState
from db.session import is_away, read_scope, session_scope
from worker.context import Context, process_name
from worker.delivery.errors import DeliveryError, DestinationAway, OutOfDate, Refused, Stopped
from worker.delivery.identifiers import object_uid
from worker.delivery.send import send
from worker.peers import peer_named
from worker.ranking.priority import BLIND
from worker.settings import Settings, WrongSettings

log = structlog.get_logger()

STUDIES_PER_TRANSACTION: Final = 100
LEASE_MINUTES: Final = 10.0  # longer than any send takes: every time-out along its way together
FIRST_PAUSE_SECONDS: Final = 10.0
GROWTH: Final = 1.5  # so that a destination that comes back waits for a third of the time that it was away
POLL_SECONDS: Final = 1.0
# The entries of a peer of which it needs one, by what is delivered to it.
ENTRIES: Final[dict[DeliveryKind, tuple[str, ...]]] = {
    "sr": ("ae_title", "dicomweb"),
    "sc": ("ae_title", "dicomweb"),
    "oru": ("mllp",),
    "fhir": ("fhir",),
}


@dataclass(frozen=True)
class Destination:
    """One kind of result for one peer, by its name."""

    kind: DeliveryKind
    peer: str


def destinations(settings: Settings) -> list[Destination]:
    """Everything that the settings send, to whom. Raises WrongSettings for a peer without an address for what it gets.

    Not checked where settings are read: only the processes that deliver need the peers' file.
    """
    return [
        _destination(settings, kind, name)
        for kind in ENTRIES
        for name in dict.fromkeys(getattr(settings.deliver, kind))
    ]


def _destination(settings: Settings, kind: DeliveryKind, name: str) -> Destination:
    peer = peer_named(settings, name)
    if not any(getattr(peer, entry) for entry in ENTRIES[kind]):
        raise WrongSettings(
            f"NIGHTREAD_DELIVER_{kind.upper()}: peer {name} has no {' or '.join(ENTRIES[kind])} in NIGHTREAD_PEERS"
        )
    return Destination(kind, name)


# ------------------------------------------------------------------------------------------------------ publishing


def publish(context: Context) -> int:
    """Make the rows of every study that is due to be published; returns how many studies there were."""
    wanted, published = destinations(context.settings), 0
    while wanted and (portion := _publish_some(context, wanted)):
        published += portion
    return published


def _publish_some(context: Context, wanted: list[Destination]) -> int:
    settings = context.settings.deliver
    with session_scope(context.engine) as session:
        studies = deliveries.publishable(
            session,
            quiet_seconds=settings.quiet_seconds,
            longest_minutes=settings.longest_minutes,
            max_age_hours=settings.max_age_hours,
            limit=STUDIES_PER_TRANSACTION,
        )
        for study in studies:
            deliveries.publish(session, study, [_delivery(study, destination) for destination in wanted])
            log.info("study_published", study_id=study.study_id, revision=study.revision, reason=_not_sent(study))
    return len(studies)


def _delivery(study: Publishable, destination: Destination) -> NewDelivery:
    uid = object_uid(
        destination.kind,
        study.study_instance_uid,
        checkpoint_digest=study.checkpoint_digest,
        policy_version=study.policy_version,
        revision=study.revision,
    )
    return NewDelivery(destination.kind, destination.peer, uid, _not_sent(study))


def _not_sent(study: Publishable) -> str | None:
    """Why no result of a study is sent: its score is kept from its readers, or it may be another patient's."""
    return study.flag if study.flag in (BLIND, TWO_PATIENTS) else None


# --------------------------------------------------------------------------------------------------------- sending


def deliver_due(context: Context, *, should_stop: Callable[[], bool] = lambda: False) -> int:
    """Send everything that is due, one by one; returns how many went out.

    A destination that is away is left alone for the rest of the pass. The stop switch is read before every one is made,
    and once more before it goes out.
    """
    worker, away, sent = _this_process(), set[str](), 0
    _release_lost(context, worker=worker)
    while not should_stop() and (claimed := _claimed(context, worker, away)) is not None:
        try:
            send(context, claimed)
        except Stopped:
            _put_back(context, claimed, "waiting", worker=worker)
        except OutOfDate:
            _put_back(context, claimed, "superseded", worker=worker)
        except DeliveryError as error:
            if isinstance(error, DestinationAway):
                away.add(claimed.destination)
            _failed(context, claimed, error, worker=worker)
        except SQLAlchemyError:
            raise  # the next pass of this process ends the lease, or another one when it runs out
        except Exception as error:  # noqa: BLE001 - whatever one result raises, the others go out
            log.error("delivery_raised", delivery_id=claimed.id, kind=claimed.kind, error=type(error).__name__)
            _failed(context, claimed, Refused("delivery_raised"), worker=worker)
        else:
            _settle(context, claimed, "sent", worker=worker)
            sent += 1
    return sent


def _release_lost(context: Context, *, worker: str) -> None:
    max_refusals = context.settings.deliver.max_refusals
    with session_scope(context.engine) as session:
        released = deliveries.release_lost(
            session, worker=worker, lease_minutes=LEASE_MINUTES, max_refusals=max_refusals
        )
    for row in released:
        log.warning("delivery_left", delivery_id=row.id, kind=row.kind, state=row.state, refusals=row.refusals)


@cache
def _this_process() -> str:
    """The name under which this process holds leases, one after the other."""
    return process_name()


def _claimed(context: Context, worker: str, away: set[str]) -> Claimed | None:
    with session_scope(context.engine) as session:
        return deliveries.claim(session, worker=worker, lease_minutes=LEASE_MINUTES, apart_from=away)


def _put_back(context: Context, claimed: Claimed, state: DeliveryState, *, worker: str) -> None:
    with session_scope(context.engine) as session:
        deliveries.put_back(session, claimed, worker=worker, state=state)
    log.info("delivery_put_back", delivery_id=claimed.id, kind=claimed.kind, state=state)


def _settle(
    context: Context, claimed: Claimed, state: DeliveryState, *, worker: str, reason: str | None = None
) -> None:
    with session_scope(context.engine) as session:
        deliveries.settle(session, claimed, state, worker=worker, reason=reason)
    log.info(f"delivery_{state}", delivery_id=claimed.id, kind=claimed.kind, attempts=claimed.attempts, reason=reason)


def _failed(context: Context, claimed: Claimed, error: DeliveryError, *, worker: str) -> None:
    """Try again later, or give up: a destination that is away is waited for by time, refusals are counted."""
    settings = context.settings.deliver
    refused_enough = error.reason != AWAY and claimed.refusals + 1 >= settings.max_refusals
    if refused_enough or claimed.waits_hours >= settings.give_up_hours:
        _settle(context, claimed, "failed", worker=worker, reason=error.reason)
        return
    seconds = pause_seconds(claimed.attempts)
    with session_scope(context.engine) as session:
        deliveries.put_off(session, claimed, worker=worker, reason=error.reason, seconds=seconds)
    log.warning("delivery_put_off", delivery_id=claimed.id, kind=claimed.kind, reason=error.reason,
                attempts=claimed.attempts, seconds=round(seconds))  # fmt: skip


def pause_seconds(attempts: int) -> float:
    """How long to wait after the nth failure: half as long again each time, an hour at most, with some jitter."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * GROWTH ** min(attempts - 1, 50))
    return longest * random.uniform(0.8, 1.0)


# --------------------------------------------------------------------------------------------------------- running


def run(context: Context, *, should_stop: Callable[[], bool]) -> None:
    """Publish and send until `should_stop`, without a broker; a database that is away is waited for."""
    while not should_stop():
        try:
            publish(context)
            deliver_due(context, should_stop=should_stop)
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            log.warning("delivery_waits", reason="database_away")
        time.sleep(POLL_SECONDS)


def finish(context: Context) -> int:
    """Publish what was just scored, as soon as it is quiet, and send it; returns how many results went out.

    What a destination does not take now waits in the outbox.
    """
    sent = 0
    while True:
        publish(context)
        sent += deliver_due(context)
        with read_scope(context.engine) as session:
            if not deliveries.any_unpublished(session, max_age_hours=context.settings.deliver.max_age_hours):
                return sent
        time.sleep(POLL_SECONDS)
