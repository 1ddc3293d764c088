"""The outbox: what is sent of a study, to whom, and how far it is.

A row is made when a study is published and is the only record of the sending: a worker takes one row at a time, with a
lease, and writes what became of it. A killed worker or a lost message delays a delivery and loses none.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, and_, bindparam, case, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from db import audit
from db.base import database_now
from db.models import (
    Checkpoint,
    Delivery,
    DeliveryKind,
    DeliveryState,
    Instance,
    PolicyRow,
    Run,
    Site,
    Study,
    StudyPriority,
    TotalChange,
)
from db.upsert import insert

LONGEST_PAUSE_SECONDS = 3600.0
AWAY = "destination_away"  # the reason of what waits for a destination that does not answer
LEFT = "delivery_left"  # the reason of what a worker began to send and left
NOT_SENT: tuple[DeliveryState, ...] = ("waiting", "sending", "failed")


# ------------------------------------------------------------------------------------------------------ publishing


@dataclass(frozen=True)
class Publishable:
    """A study that is complete as far as anybody can know, and the result that would be sent."""

    study_id: int
    study_instance_uid: str
    revision: int
    checkpoint_id: int
    checkpoint_digest: str
    policy_id: int
    policy_version: int
    flag: str | None


@dataclass(frozen=True)
class NewDelivery:
    """One row to be made; `reason` says why it must not be sent, None: it is to be sent."""

    kind: DeliveryKind
    destination: str
    object_uid: str
    reason: str | None = None


def publishable(
    session: Session, *, quiet_seconds: float, longest_minutes: float, max_age_hours: float, limit: int
) -> list[Publishable]:
    """Studies that were scored lately, of which this result has no row yet and nothing came for `quiet_seconds`, or
    whose first film since the last publishing came `longest_minutes` ago; the oldest first, locked until commit."""
    now = database_now(session)
    newest = _received(func.max(Instance.received_at)).scalar_subquery()
    published = select(func.max(Delivery.published_at)).where(Delivery.study_id == Study.id)
    last = published.correlate(Study).scalar_subquery()  # two levels down, where SQLAlchemy would join all studies
    since_then = or_(last.is_(None), Instance.received_at > last)
    first = _received(func.min(Instance.received_at)).where(since_then).scalar_subquery()
    quiet = or_(
        newest <= now - timedelta(seconds=quiet_seconds),
        newest > now,  # the clock has stepped back since
        first <= now - timedelta(minutes=longest_minutes),
    )
    fresh = Study.settled_at > now - timedelta(hours=max_age_hours)
    due = _results().where(Study.state == "scored", fresh, quiet).order_by(Study.settled_at).limit(limit)
    ids = [row[0] for row in session.execute(due.with_for_update(of=Study, skip_locked=True))]
    if not ids:
        return []
    # Again, now that they are locked: PostgreSQL shows a study that was written meanwhile beside a place from before.
    locked = _results().where(Study.id.in_(ids), Study.state == "scored").order_by(Study.settled_at)
    return [Publishable(*row) for row in session.execute(locked)]


def any_unpublished(session: Session, *, max_age_hours: float) -> bool:
    """Whether something that was scored lately waits to be published."""
    fresh = Study.settled_at > database_now(session) - timedelta(hours=max_age_hours)
    return session.execute(_results().where(Study.state == "scored", fresh).limit(1)).first() is not None


def _received(moment: Any) -> Any:
    return select(moment).where(Instance.study_id == Study.id)


def _results() -> Any:
    """Results of which no row says that they are, or will be, a destination's newest; as the columns of Publishable.

    A result that returns, as after a promotion that was rolled back, gets the next revision: archives take the object
    that came last for the newest. A blind study's place names no checkpoint; the run that scored it does.
    """
    checkpoint_id = func.coalesce(StudyPriority.checkpoint_id, Run.checkpoint_id)
    state = _state_of_result()
    return (
        select(
            Study.id,
            Study.study_instance_uid,
            case((state == "returns", Study.revision + 1), else_=Study.revision),
            Checkpoint.id,
            Checkpoint.digest,
            PolicyRow.id,
            PolicyRow.version,
            StudyPriority.flag,
        )
        .join(StudyPriority, StudyPriority.study_id == Study.id)
        .outerjoin(Run, Run.id == Study.run_id)
        .join(Checkpoint, Checkpoint.id == checkpoint_id)
        .join(PolicyRow, PolicyRow.id == StudyPriority.policy_id)
        .where(state.is_not(None))
    )


def _state_of_result() -> Any:
    """Whether a study's result is "new", "returns" or is published already (NULL).

    One look at the study's own rows: an EXISTS could be answered from a hash of the whole outbox.
    """
    same = and_(
        Delivery.revision == Study.revision,
        Delivery.checkpoint_id == Checkpoint.id,
        Delivery.policy_id == PolicyRow.id,
    )
    newest = func.max(case((same, Delivery.id)))
    newest_there = func.max(case((Delivery.attempts > 0, Delivery.id)))  # or perhaps there: an answer may be lost
    superseded = func.max(case((and_(same, Delivery.state == "superseded"), Delivery.id)))
    returns = or_(superseded.is_not(None), newest_there > newest)
    state = case((newest.is_(None), "new"), (returns, "returns"))
    of_study = select(state).where(Delivery.study_id == Study.id)
    return of_study.correlate(Study, Checkpoint, PolicyRow).scalar_subquery()


def publish(session: Session, study: Publishable, deliveries: Sequence[NewDelivery]) -> None:
    """Make the rows of one result. What of the study's other results still waits, or was given up, is out of date now.

    Another process may have made the same rows since this one looked; those stay as they are.
    """
    now = database_now(session)
    session.execute(update(Study).where(Study.id == study.study_id).values(revision=study.revision))
    columns = {"checkpoint_id": study.checkpoint_id, "policy_id": study.policy_id, "revision": study.revision}
    another = or_(*(getattr(Delivery, name) != value for name, value in columns.items()))
    unsent = update(Delivery).where(Delivery.study_id == study.study_id, Delivery.state.in_(("waiting", "failed")))
    session.execute(unsent.where(another).values(state="superseded"))
    times = {"published_at": now, "queued_at": now}
    rows = [
        {
            "study_id": study.study_id,
            **columns,
            **times,
            "kind": new.kind,
            "destination": new.destination,
            "object_uid": new.object_uid,
            "state": "waiting" if new.reason is None else "skipped",
            "reason": new.reason,
        }
        for new in deliveries
    ]
    session.execute(insert(session, Delivery).values(rows).on_conflict_do_nothing())


# --------------------------------------------------------------------------------------------------------- sending


@dataclass(frozen=True)
class Claimed:
    """A delivery that one worker holds until its lease ends."""

    id: int
    study_id: int
    kind: DeliveryKind
    destination: str
    object_uid: str
    attempts: int
    refusals: int  # before this attempt; a destination that is away refuses nothing
    waits_hours: float  # since it was published, or asked for again


def is_paused(session: Session) -> bool:
    """Whether the stop switch of all deliveries is set."""
    return bool(session.scalar(select(Site.deliveries_paused)))


def set_paused(session: Session, paused: bool, *, by: str) -> None:
    """Set or release the stop switch, and write to the audit who did."""
    session.execute(update(Site).values(deliveries_paused=paused))
    audit.record(session, actor=by, action="pause_deliveries" if paused else "resume_deliveries")


def _due(now: datetime) -> ColumnElement[bool]:
    """A pause longer than any can be is none: the clock has stepped back since."""
    beyond = now + timedelta(seconds=2 * LONGEST_PAUSE_SECONDS)
    return or_(Delivery.not_before.is_(None), Delivery.not_before <= now, Delivery.not_before > beyond)


def claim(session: Session, *, worker: str, lease_minutes: float, apart_from: Collection[str] = ()) -> Claimed | None:
    """Take the oldest delivery that is due, to none of the destinations `apart_from`; None while all are stopped.

    While another result of its study is on its way to the same destination it waits: the newest must come last.
    """
    if is_paused(session):
        return None
    now, other = database_now(session), aliased(Delivery)
    due = select(Delivery).where(Delivery.state == "waiting", _due(now), Delivery.destination.not_in(apart_from))
    on_its_way = select(other.id).where(_goes_beside(other), other.state == "sending")
    ordered = due.where(~on_its_way.exists()).order_by(Delivery.published_at, Delivery.id).limit(1)
    row = session.scalars(ordered.with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    row.state, row.held_by, row.attempts = "sending", worker, row.attempts + 1
    row.lease_expires_at = now + timedelta(minutes=lease_minutes)
    hours = (now - row.queued_at).total_seconds() / 3600
    return Claimed(row.id, row.study_id, row.kind, row.destination, row.object_uid, row.attempts, row.refusals, hours)


def release_lost(session: Session, *, worker: str, lease_minutes: float, max_refusals: int) -> Sequence[Delivery]:
    """End leases that ran out, end later than any can, or are `worker`'s own: it sends nothing now, so the database was
    away when it had sent.

    What was sent may be sent again, which adds nothing. The try counts as a refusal: a result that ends every process
    must be given up too.
    """
    now = database_now(session)
    lost = or_(
        Delivery.held_by == worker,
        Delivery.lease_expires_at < now,
        Delivery.lease_expires_at > now + timedelta(minutes=2 * lease_minutes),
    )
    rows = session.scalars(select(Delivery).where(Delivery.state == "sending", lost).with_for_update(skip_locked=True))
    released = rows.all()
    for row in released:
        row.refusals += 1
        row.state = "waiting" if row.refusals < max_refusals else _given_up(session, row.id)
        row.reason, row.held_by, row.lease_expires_at = LEFT, None, None
    return released


def _has_newer() -> ColumnElement[bool]:
    """The condition that a newer result has taken a delivery's place."""
    newer = aliased(Delivery)
    return select(newer.id).where(_goes_beside(newer), newer.id > Delivery.id).exists()


def _goes_beside(other: type[Delivery]) -> ColumnElement[bool]:
    """The condition that `other`, an alias, is of the same study and kind, and for the same destination."""
    same_study = other.study_id == Delivery.study_id
    return and_(same_study, other.kind == Delivery.kind, other.destination == Delivery.destination)


def _given_up(session: Session, delivery_id: int) -> DeliveryState:
    """The state of a delivery that is not tried any more; where there is a newer result, nobody need look at it."""
    outdated = session.scalar(select(Delivery.id).where(Delivery.id == delivery_id, _has_newer()))
    return "failed" if outdated is None else "superseded"


def _held(session: Session, claimed: Claimed, worker: str) -> Delivery | None:
    held = select(Delivery).where(Delivery.id == claimed.id, Delivery.state == "sending", Delivery.held_by == worker)
    return session.scalars(held.with_for_update()).one_or_none()


def settle(session: Session, claimed: Claimed, state: DeliveryState, *, worker: str, reason: str | None = None) -> None:
    """Write how a delivery ended. One that went out shows that its destination answers: what waited for it is due."""
    if row := _held(session, claimed, worker):  # an archive may have confirmed it already
        row.state = _given_up(session, row.id) if state == "failed" else state
        row.reason, row.held_by, row.lease_expires_at, row.not_before = reason, None, None, None
        row.sent_at = database_now(session) if state == "sent" else row.sent_at
    if state == "sent":
        others = update(Delivery).where(Delivery.state == "waiting", Delivery.destination == claimed.destination)
        freed = others.where(Delivery.reason == AWAY).values(not_before=None, reason=None)
        session.execute(freed.execution_options(synchronize_session=False))


def put_back(session: Session, claimed: Claimed, *, worker: str, state: DeliveryState) -> None:
    """Leave a delivery as if it had not been claimed: waiting, or superseded where what it says is out of date."""
    if row := _held(session, claimed, worker):
        row.state, row.held_by, row.lease_expires_at, row.attempts = state, None, None, row.attempts - 1


def put_off(session: Session, claimed: Claimed, *, worker: str, reason: str, seconds: float) -> None:
    """Let a delivery wait after a failure. Where its destination is away, what else is due for it waits too."""
    row = _held(session, claimed, worker)
    if row is None:
        return
    now = database_now(session)
    later = now + timedelta(seconds=seconds)
    row.state, row.reason, row.held_by, row.lease_expires_at, row.not_before = "waiting", reason, None, None, later
    row.refusals += reason != AWAY
    if reason == AWAY:
        rest = update(Delivery).where(Delivery.state == "waiting", Delivery.destination == claimed.destination)
        due = rest.where(Delivery.id != claimed.id, _due(now))
        session.execute(due.values(not_before=later, reason=reason).execution_options(synchronize_session=False))


# ---------------------------------------------------------------------------------------------------- confirmation


def sent_objects(session: Session, object_uids: Sequence[str]) -> list[Delivery]:
    """The deliveries of these objects that were sent; an archive may report before its sender has written that."""
    states = Delivery.state.in_(("sending", "sent", "confirmed"))
    sent = select(Delivery).where(Delivery.object_uid.in_(object_uids), states)
    return list(session.scalars(sent.order_by(Delivery.id).with_for_update()))


def confirm(session: Session, delivery: Delivery) -> None:
    """Note that the peer keeps the object."""
    now = database_now(session)
    delivery.state, delivery.reason, delivery.held_by, delivery.lease_expires_at = "confirmed", None, None, None
    delivery.sent_at = delivery.sent_at or now


def send_again(session: Session, delivery: Delivery, *, reason: str, seconds: float, max_refusals: int) -> None:
    """Let an object be sent again, after a pause, that the peer has not kept; or give it up, as any that is refused."""
    delivery.refusals += 1
    delivery.state = "waiting" if delivery.refusals < max_refusals else _given_up(session, delivery.id)
    delivery.not_before = database_now(session) + timedelta(seconds=seconds)
    delivery.reason, delivery.held_by, delivery.lease_expires_at = reason, None, None


# ------------------------------------------------------------------------------------------------------ for people


def of_study(session: Session, study_id: int) -> Sequence[RowMapping]:
    """The deliveries of a study, each with its destination and state; the newest first."""
    return session.execute(_listed().where(Delivery.study_id == study_id)).mappings().all()


def listed(session: Session, *, everything: bool = False, limit: int) -> Sequence[RowMapping]:
    """The deliveries that are not done, or all of them; the newest first, at most `limit`."""
    chosen = _listed() if everything else _listed().where(_is_not_sent())
    return session.execute(chosen.limit(limit)).mappings().all()


def _is_not_sent() -> ColumnElement[bool]:
    """The condition of the index of these, in its own words: SQLite knows it by no parameters."""
    return Delivery.state.in_(bindparam("not_sent", NOT_SENT, expanding=True, literal_execute=True))


def _listed() -> Any:
    columns = (
        Delivery.id,
        Delivery.kind,
        Delivery.destination,
        Delivery.state,
        Delivery.reason,
        Delivery.attempts,
        Delivery.not_before,
        Delivery.published_at,
        Delivery.sent_at,
        Delivery.revision,
        Study.study_instance_uid,
        Study.accession_number,
    )
    return select(*columns).join(Study, Study.id == Delivery.study_id).order_by(Delivery.id.desc())


def retry(session: Session, ids: Sequence[int] | None, *, by: str) -> int:
    """Let deliveries that were given up, or wait after a failure, be due at once; None: all of them. Returns how
    many. One that a newer result has taken the place of stays as it is."""
    chosen = select(Delivery).where(Delivery.state.in_(("failed", "waiting")), ~_has_newer())
    if ids is not None:
        chosen = chosen.where(Delivery.id.in_(ids))
    rows, now = session.scalars(chosen.with_for_update(skip_locked=True)).all(), database_now(session)
    for row in rows:
        row.state, row.not_before, row.queued_at = "waiting", None, now
        row.attempts, row.refusals = min(row.attempts, 1), 0  # 1: what was tried may be there
    if rows:
        audit.record(session, actor=by, action="retry_deliveries", deliveries=len(rows))
    return len(rows)


def counts(session: Session) -> Mapping[tuple[str, str], int]:
    """Deliveries by kind and state, as the totals are kept: millions that went out are not counted again."""
    kind, state = TotalChange.reason, TotalChange.state
    kept = select(kind, state, func.sum(TotalChange.change)).where(TotalChange.counted == "delivery")
    rows = session.execute(kept.group_by(kind, state))
    return {(kind or "", state): int(count) for kind, state, count in rows if count}


def oldest_waiting_seconds(session: Session) -> float:
    """How long the oldest delivery that is not out yet has waited; 0 where none does."""
    published = select(func.min(Delivery.published_at))
    looks = [published.where(Delivery.state == state) for state in ("waiting", "sending")]  # each has its index
    oldest = min(filter(None, map(session.scalar, looks)), default=None)
    return (database_now(session) - oldest).total_seconds() if oldest else 0.0
