"""The ledger: the state of every study, from the first file to the outcome.

A study is waiting, claimed (by one worker, until its lease ends), or settled: scored, skipped or quarantined. The
broker only says that there is work. What is true stands here: a lost message, a killed worker or an emptied Redis loses
nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, case, func, or_, select, union, update
from sqlalchemy.orm import Session

from db.arrivals import OTHER_PATIENT
from db.base import database_now
from db.bulk import in_parts, update_many
from db.models import SETTLED, Instance, SettledState, Study

# An attempt that did not count. A study that was reopened while it was claimed has none left to take back.
ONE_LESS = case((Study.attempts > 0, Study.attempts - 1), else_=0)
PRESSING = (Study.stat.desc(), Study.received_at, Study.id)  # the order of claims, and of an index
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 600.0  # between two tries to reach a study's files


@dataclass(frozen=True)
class ClaimedFilm:
    instance_id: int
    sop_instance_uid: str
    path: str
    view: str


@dataclass(frozen=True)
class ClaimedStudy:
    """A study that one worker holds until its lease ends, with the films to read."""

    study_id: int
    study_instance_uid: str
    revision: int
    attempts: int
    suspect: bool
    films: tuple[ClaimedFilm, ...]
    other_patients: int = 0  # instances of another patient, which came under its UID
    broken_films: int = 0  # films that an earlier run quarantined: the study is only partly scored
    unavailable_hours: float = 0.0  # since its files first could not be reached, without success since


@dataclass(frozen=True)
class Outcome:
    """How a claimed study ends: scored, skipped or quarantined, with the reason where there is one."""

    study: ClaimedStudy
    state: SettledState
    reason: str | None = None
    detail: str | None = None


# -------------------------------------------------------------------------------------------------------- messages


def studies_to_notify(session: Session, *, renotify_minutes: float, limit: int) -> list[int]:
    """Ids of waiting studies for which no message was sent lately, most pressing first; they are marked as notified."""
    now = database_now(session)
    ids = session.scalars(
        pressing(now)
        .where(
            or_(
                Study.notified_at.is_(None),
                Study.notified_at < now - timedelta(minutes=renotify_minutes),
                Study.notified_at > now,  # the clock has stepped back since
            )
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    mark_notified(session, ids, now)
    return list(ids)


def mark_notified(session: Session, ids: Iterable[int], now: datetime | None) -> None:
    """Note when a message was sent for these studies (None: none was)."""
    for part in in_parts(list(ids)):
        session.execute(update(Study).where(Study.id.in_(part)).values(notified_at=now))


def pressing(now: datetime) -> Select[int]:
    """Ids of waiting studies that may be tried now, most pressing first: the order in which they are claimed.

    A pause longer than any can be is none: the clock has stepped back since.
    """
    longest = now + timedelta(seconds=LONGEST_PAUSE_SECONDS)
    due = or_(Study.not_before.is_(None), Study.not_before <= now, Study.not_before > longest)
    return select(Study.id).where(Study.state == "waiting", due).order_by(*PRESSING)


# --------------------------------------------------------------------------------------------- claiming and settling


def claim(
    session: Session, *, worker: str, studies: int, lease_minutes: float, first: int | None = None, alone: bool = True
) -> list[ClaimedStudy]:
    """Take up to `studies` waiting studies for `worker`: the named one and the most pressing, each for one lease.

    A study whose last worker died is a suspect: it is taken alone, so that the next death has one name on it. With
    `alone` False (the caller has others in flight) nothing is taken while a suspect heads the queue.
    """
    now = database_now(session)
    head = session.scalars(pressing(now).limit(1).with_for_update(skip_locked=True)).first()
    suspect = head is not None and session.scalar(select(Study.suspect).where(Study.id == head))
    if suspect and not alone:
        return []
    if suspect and head is not None:
        ids: list[int] = [head]
    else:
        ids = _unsuspected(session, now, studies=studies, first=first)
    if not ids:
        return []
    session.execute(
        update(Study)
        .where(Study.id.in_(ids))
        .values(
            state="claimed",
            claimed_by=worker,
            attempts=Study.attempts + 1,
            lease_expires_at=now + timedelta(minutes=lease_minutes),
        )
    )
    return _claimed(session, ids, now)


def _unsuspected(session: Session, now: datetime, *, studies: int, first: int | None) -> list[int]:
    ready = pressing(now).where(Study.suspect.is_(False)).with_for_update(skip_locked=True)
    named = list(session.scalars(ready.where(Study.id == first))) if first is not None else []
    rest = session.scalars(ready.where(Study.id.not_in(named)).limit(studies - len(named)))
    return named + list(rest)


def is_waiting(session: Session, study_id: int) -> bool:
    """Whether this study still waits: the one indexed look-up that a late message costs."""
    return session.scalar(select(Study.state).where(Study.id == study_id)) == "waiting"


def any_held(session: Session) -> bool:
    """Whether some worker holds a study. In an index's order, or the planner may look for one among the settled."""
    held = select(Study.id).where(Study.state == "claimed").order_by(Study.lease_expires_at)
    return session.scalar(held.limit(1)) is not None


def any_waiting(session: Session) -> bool:
    """Whether some study waits, be it for a pause to end."""
    waiting = select(Study.id).where(Study.state == "waiting").order_by(*PRESSING)
    return session.scalar(waiting.limit(1)) is not None


def _claimed(session: Session, ids: Sequence[int], now: datetime) -> list[ClaimedStudy]:
    films: dict[int, list[ClaimedFilm]] = {study_id: [] for study_id in ids}
    broken, other_patients = dict.fromkeys(ids, 0), dict.fromkeys(ids, 0)
    rows = session.execute(
        select(Instance.study_id, Instance.id, Instance.sop_instance_uid, Instance.path, Instance.view, Instance.state)
        .where(
            Instance.study_id.in_(ids),
            or_(and_(Instance.view.is_not(None), Instance.state != "skipped"), Instance.reason == OTHER_PATIENT),
        )
        .order_by(Instance.id)
    )
    for study_id, instance_id, uid, path, view, state in rows:
        if state == "skipped":
            other_patients[study_id] += 1
        elif state == "quarantined":
            broken[study_id] += 1
        else:
            films[study_id].append(ClaimedFilm(instance_id, uid, path, view or ""))
    columns = (
        Study.id,
        Study.study_instance_uid,
        Study.revision,
        Study.attempts,
        Study.suspect,
        Study.unavailable_since,
    )
    found = {row.id: row for row in session.execute(select(*columns).where(Study.id.in_(ids)))}
    return [
        ClaimedStudy(
            study_id=i,
            study_instance_uid=found[i].study_instance_uid,
            revision=found[i].revision,
            attempts=found[i].attempts,
            suspect=found[i].suspect,
            films=tuple(films[i]),
            other_patients=other_patients[i],
            broken_films=broken[i],
            unavailable_hours=(now - (found[i].unavailable_since or now)).total_seconds() / 3600,
        )
        for i in ids
    ]


def held(session: Session, studies: Sequence[ClaimedStudy], *, worker: str) -> dict[int, bool]:
    """Which of these studies `worker` still holds -> whether nothing was added since; locks them until commit.

    One that is missing from the answer had its lease run out and belongs to another worker now.
    """
    revisions = {study.study_id: study.revision for study in studies}
    rows = session.execute(
        select(Study.id, Study.revision)
        .where(Study.id.in_(revisions), Study.state == "claimed", Study.claimed_by == worker)
        .order_by(Study.id)  # one order for everyone: no deadlock between two writers
        .with_for_update()
    )
    return {study_id: revision == revisions[study_id] for study_id, revision in rows}


def settle(session: Session, outcomes: Sequence[Outcome], *, worker: str, run_id: int | None) -> list[Outcome]:
    """Record outcomes and let go; a study that got a new film meanwhile waits again. Returns those still held."""
    unchanged = held(session, [outcome.study for outcome in outcomes], worker=worker)
    now = database_now(session)
    settled = [outcome for outcome in outcomes if outcome.study.study_id in unchanged]
    if not settled:
        return []
    rows = [_settled(outcome, now) if unchanged[outcome.study.study_id] else _again(outcome) for outcome in settled]
    same = {
        "suspect": False,
        "claimed_by": None,
        "lease_expires_at": None,
        "not_before": None,
        "unavailable_since": None,
        "run_id": run_id,
    }
    update_many(session, Study, rows, key="id", same=same)
    return settled


def _settled(outcome: Outcome, now: datetime) -> dict[str, Any]:
    why = {"reason": outcome.reason, "detail": outcome.detail}
    return {"id": outcome.study.study_id, "state": outcome.state, "settled_at": now, **why}


def _again(outcome: Outcome) -> dict[str, Any]:
    """A study that got something new meanwhile waits as if it had not been settled."""
    return {"id": outcome.study.study_id, "state": "waiting", "settled_at": None, "reason": None, "detail": None}


def release(session: Session, studies: Sequence[ClaimedStudy], *, worker: str) -> int:
    """Give studies back untried (a worker that is asked to stop); the attempt does not count. Returns how many."""
    mine = held(session, studies, worker=worker)
    session.execute(
        update(Study)
        .where(Study.id.in_(mine))
        .values(
            state="waiting",
            attempts=ONE_LESS,
            claimed_by=None,
            lease_expires_at=None,
            notified_at=None,
        )
    )
    return len(mine)


def put_off(session: Session, study: ClaimedStudy, *, worker: str, reason: str, detail: str) -> None:
    """Let a study wait because its files can't be reached now, each time about twice as long, ten minutes at most.

    Attempts do not count: a share that was away all night is nobody's fault.
    """
    if study.study_id not in held(session, [study], worker=worker):
        return
    now = database_now(session)
    pause_seconds = min(max(FIRST_PAUSE_SECONDS, study.unavailable_hours * 3600), LONGEST_PAUSE_SECONDS)
    session.execute(
        update(Study)
        .where(Study.id == study.study_id)
        .values(
            state="waiting",
            reason=reason,
            detail=detail,
            attempts=ONE_LESS,
            claimed_by=None,
            lease_expires_at=None,
            notified_at=None,
            unavailable_since=func.coalesce(Study.unavailable_since, now),
            not_before=now + timedelta(seconds=pause_seconds),
        )
    )


def renew(session: Session, studies: Sequence[ClaimedStudy], *, worker: str, lease_minutes: float) -> None:
    """Begin the lease of these studies anew: their worker lives and is at it."""
    mine = held(session, studies, worker=worker)
    until = database_now(session) + timedelta(minutes=lease_minutes)
    session.execute(update(Study).where(Study.id.in_(mine)).values(lease_expires_at=until))


def shorten_leases(session: Session, *, lease_minutes: float) -> None:
    """Begin anew the leases that end later than any can: the database's clock has stepped back since they were given.

    A worker that lives renews its own; a dead worker's would be waited for as long as the step was.
    """
    now = database_now(session)
    impossible = Study.lease_expires_at > now + timedelta(minutes=2 * lease_minutes)
    beyond = select(Study.id).where(Study.state == "claimed", impossible).with_for_update(skip_locked=True)
    for part in in_parts(session.scalars(beyond).all()):
        until = now + timedelta(minutes=lease_minutes)
        session.execute(update(Study).where(Study.id.in_(part)).values(lease_expires_at=until))


def release_expired(session: Session, *, max_attempts: int) -> tuple[int, list[int]]:
    """End the leases that ran out: their worker died or hangs. Returns how many wait again, and the quarantined ids.

    They become suspects; one that has used up its attempts is quarantined, since it may be what kills the workers. A
    study whose row is locked is left alone: someone is recording it, renewing it or ending its lease at this moment.
    """
    now = database_now(session)
    expired = select(Study.id, Study.attempts).where(Study.state == "claimed", Study.lease_expires_at < now)
    attempts = {row.id: row.attempts for row in session.execute(expired.with_for_update(skip_locked=True))}
    lost = [study_id for study_id, count in attempts.items() if count >= max_attempts]
    again = list(attempts.keys() - lost)
    let_go = {"claimed_by": None, "lease_expires_at": None, "notified_at": None}
    given_up = {
        "state": "quarantined",
        "reason": "worker_lost",
        "detail": f"its worker died {max_attempts} times while it held this study",
        "settled_at": now,
    }
    for part in in_parts(lost):
        session.execute(update(Study).where(Study.id.in_(part)).values(**given_up, **let_go))
        unread = (Instance.study_id.in_(part), Instance.state == "waiting", Instance.view.is_not(None))
        failed = {"state": "quarantined", "reason": "worker_lost", "evidence": given_up["detail"]}
        session.execute(update(Instance).where(*unread).values(**failed))
    for part in in_parts(again):
        session.execute(update(Study).where(Study.id.in_(part)).values(state="waiting", suspect=True, **let_go))
    return len(again), lost


def requeue(session: Session, *, study_instance_uid: str | None = None, reason: str | None = None) -> list[int]:
    """Send studies with something in quarantine (all, one, or those with one reason) back to wait; returns their ids.

    That is also a study of which some films were scored and one was not. What it is scored as then is another revision.
    """
    failed, broken = Study.state == "quarantined", Instance.state == "quarantined"
    if reason is not None:
        failed &= Study.reason == reason
        broken &= or_(Study.reason == reason, Instance.reason == reason)
    named = [] if study_instance_uid is None else [Study.study_instance_uid == study_instance_uid]
    found = union(  # each by its index
        select(Study.id).where(failed, *named),
        select(Study.id).join(Instance, Instance.study_id == Study.id).where(broken, *named),
    )
    ids: list[int] = []
    for part in in_parts(session.scalars(found).all()):
        chosen = select(Study.id).where(Study.id.in_(part), Study.state.in_(SETTLED))
        ids += session.scalars(chosen.with_for_update(skip_locked=True))
    waits = {"state": "waiting", "reason": None, "detail": None, "not_before": None, "notified_at": None}
    for part in in_parts(ids):
        again = {"attempts": 0, "suspect": False, "revision": Study.revision + 1}
        session.execute(update(Study).where(Study.id.in_(part)).values(**again, **waits))
        films = update(Instance).where(Instance.study_id.in_(part), Instance.state == "quarantined")
        session.execute(films.values(state="waiting", reason=None, evidence=None))
    return ids
