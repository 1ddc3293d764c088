"""The ledger: the state of every study, from the first file to the outcome.

A study is waiting, claimed (by one worker, until its lease ends), or settled: scored, skipped or quarantined. The
broker only rings a bell; what is true stands here: a lost message, a killed worker or an emptied Redis loses nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from db.base import database_now
from db.bulk import update_many
from db.models import Instance, RejectedFile, Study, StudyPriority
from db.upsert import insert

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 600.0  # between two tries to reach a study's files


@dataclass(frozen=True)
class Placement:
    """Where a study stands in the reading order until (or unless) a model has scored it."""

    category: str
    urgency: float
    flag: str
    policy_id: int | None


@dataclass(frozen=True)
class Arrival:
    """What one file's header says: `study` and `instance` hold column values of the two tables."""

    study: dict[str, Any]
    instance: dict[str, Any]


@dataclass(frozen=True)
class Registered:
    """What became of an arrival. `outcome`: new, known (the same file again), moved, or taken (UID held by `path`)."""

    outcome: str
    study_id: int | None = None
    path: str | None = None


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
    revision: int
    attempts: int
    suspect: bool
    films: tuple[ClaimedFilm, ...]
    broken_films: int = 0  # films that an earlier run quarantined: the study is only partly scored
    unavailable_hours: float = 0.0  # since its files first could not be reached, without success since


@dataclass(frozen=True)
class Outcome:
    """How a claimed study ends: scored, skipped or quarantined, with the reason where there is one."""

    study: ClaimedStudy
    state: str
    reason: str | None = None
    detail: str | None = None


@dataclass
class Books:
    """The sums that must balance: received = scored + skipped + quarantined + waiting."""

    received: int = 0
    scored: int = 0
    skipped: int = 0
    quarantined: int = 0
    waiting: int = 0  # waiting or claimed
    claimed: int = 0
    films: int = 0
    rejected_files: int = 0
    reasons: dict[str, dict[str | None, int]] = field(default_factory=dict)

    @property
    def balance(self) -> bool:
        return self.received == self.scored + self.skipped + self.quarantined + self.waiting


# ---------------------------------------------------------------------------------------------------- registering


def register(session: Session, arrival: Arrival, *, placement: Placement) -> Registered:
    """Record one instance; its study is made, found, or reopened when the instance is a film that was not there.

    The study's row is locked first, so two senders of the same study take turns.
    """
    now = database_now(session)
    study = _study_of(session, arrival, now)
    added = session.scalar(
        insert(session, Instance)
        .values(study_id=study.id, received_at=now, **arrival.instance)
        .on_conflict_do_nothing(index_elements=["sop_instance_uid"])
        .returning(Instance.id)
    )
    if added is None:
        return _already_known(session, study, arrival)
    if arrival.study.get("stat") and not study.stat:
        _make_stat(session, study)
    if arrival.instance["state"] == "waiting":
        _reopen(session, study)
    elif study.state == "waiting" and not _has_films(session, study):
        study.state, study.reason, study.settled_at = "skipped", arrival.instance["reason"], now
    if arrival.instance["in_scope"]:
        _place_unscored(session, study, placement, now)
    return Registered("new", study.id)


def _study_of(session: Session, arrival: Arrival, now: datetime) -> Study:
    session.execute(
        insert(session, Study)
        .values(received_at=now, state="waiting", revision=0, attempts=0, suspect=False, **arrival.study)
        .on_conflict_do_nothing(index_elements=["study_instance_uid"])
    )
    uid = arrival.study["study_instance_uid"]
    return session.scalars(select(Study).where(Study.study_instance_uid == uid).with_for_update()).one()


def _already_known(session: Session, study: Study, arrival: Arrival) -> Registered:
    uid = arrival.instance["sop_instance_uid"]
    known = session.scalars(select(Instance).where(Instance.sop_instance_uid == uid)).one()
    if study.revision == 0 and not session.scalar(select(Instance.id).where(Instance.study_id == study.id).limit(1)):
        session.delete(study)  # made a moment ago for an instance that belongs to another study
    if known.study_id == study.id and known.path == arrival.instance["path"]:
        return Registered("known", study.id)
    return Registered("taken", known.study_id, known.path)


def relocate(session: Session, *, sop_instance_uid: str, path: str) -> int:
    """Note that an instance's file now lies at `path`, and let its study try again at once; returns the study's id."""
    instance = session.scalars(select(Instance).where(Instance.sop_instance_uid == sop_instance_uid)).one()
    instance.path = path
    study = session.scalars(select(Study).where(Study.id == instance.study_id).with_for_update()).one()
    study.not_before = study.unavailable_since = None
    return study.id


def _has_films(session: Session, study: Study) -> bool:
    films = select(Instance.id).where(Instance.study_id == study.id, Instance.view.is_not(None)).limit(1)
    return session.scalar(films) is not None


def _make_stat(session: Session, study: Study) -> None:
    study.stat = True
    session.execute(update(StudyPriority).where(StudyPriority.study_id == study.id).values(stat=True))


def _reopen(session: Session, study: Study) -> None:
    """A film that was not there: the study waits (again), and nobody has read it yet.

    A worker that holds it now will find the revision changed.
    """
    session.execute(update(StudyPriority).where(StudyPriority.study_id == study.id).values(read_at=None, read_by=None))
    study.revision += 1
    study.attempts, study.suspect = 0, False
    study.not_before = study.unavailable_since = study.rung_at = None
    if study.state != "claimed":
        study.state, study.reason, study.detail, study.settled_at = "waiting", None, None, None


def _place_unscored(session: Session, study: Study, placement: Placement, now: datetime) -> None:
    session.execute(
        insert(session, StudyPriority)
        .values(
            study_id=study.id,
            stat=study.stat,
            received_at=study.received_at,
            category=placement.category,
            category_a=placement.category == "A",
            urgency=placement.urgency,
            flag=placement.flag,
            policy_id=placement.policy_id,
            ranked_at=now,
        )
        .on_conflict_do_nothing(index_elements=["study_id"])
    )


def reject(session: Session, *, path: str, path_digest: str, reason: str, detail: str) -> None:
    """Record a file that could not become an instance; the same file again renews its entry."""
    values = {"reason": reason, "detail": detail, "received_at": database_now(session)}
    session.execute(
        insert(session, RejectedFile)
        .values(path=path, path_digest=path_digest, **values)
        .on_conflict_do_update(index_elements=["path_digest"], set_=values)
    )


def forget_rejections(session: Session, path_digests: Sequence[str]) -> None:
    """Forget that files were rejected, because they are about to be tried again."""
    session.execute(delete(RejectedFile).where(RejectedFile.path_digest.in_(path_digests)))


# -------------------------------------------------------------------------------------------------------- the bell


def studies_to_ring(session: Session, *, ring_again_minutes: float, limit: int) -> list[int]:
    """Ids of waiting studies for which no message was sent lately, most pressing first; they are marked as rung."""
    now = database_now(session)
    ids = session.scalars(
        _pressing(now)
        .where(or_(Study.rung_at.is_(None), Study.rung_at < now - timedelta(minutes=ring_again_minutes)))
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    mark_rung(session, ids, now)
    return list(ids)


def mark_rung(session: Session, ids: Iterable[int], now: datetime | None) -> None:
    """Note when a message was sent for these studies (None: none was)."""
    session.execute(update(Study).where(Study.id.in_(list(ids))).values(rung_at=now))


def _pressing(now: datetime) -> Select[int]:
    """Waiting studies that may be tried now, most pressing first."""
    return (
        select(Study.id)
        .where(Study.state == "waiting", or_(Study.not_before.is_(None), Study.not_before <= now))
        .order_by(Study.stat.desc(), Study.received_at, Study.id)
    )


# --------------------------------------------------------------------------------------------- claiming and settling


def claim(
    session: Session, *, worker: str, studies: int, lease_minutes: float, first: int | None = None, alone: bool = True
) -> list[ClaimedStudy]:
    """Take up to `studies` waiting studies for `worker`: the named one and the most pressing, each for one lease.

    A study whose last worker died is a suspect: it is taken alone, so that the next death has one name on it. With
    `alone` False (the caller has others in hand) nothing is taken while a suspect heads the queue.
    """
    now = database_now(session)
    head = session.scalars(_pressing(now).limit(1).with_for_update(skip_locked=True)).first()
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
    ready = _pressing(now).where(Study.suspect.is_(False)).with_for_update(skip_locked=True)
    named = list(session.scalars(ready.where(Study.id == first))) if first is not None else []
    rest = session.scalars(ready.where(Study.id.not_in(named)).limit(studies - len(named)))
    return named + list(rest)


def is_waiting(session: Session, study_id: int) -> bool:
    """Whether this study still waits: the one indexed look-up that a late message costs."""
    return session.scalar(select(Study.state).where(Study.id == study_id)) == "waiting"


def any_held(session: Session) -> bool:
    """Whether some worker holds a study."""
    return session.scalar(select(Study.id).where(Study.state == "claimed").limit(1)) is not None


def _claimed(session: Session, ids: Sequence[int], now: datetime) -> list[ClaimedStudy]:
    films: dict[int, list[ClaimedFilm]] = {study_id: [] for study_id in ids}
    broken = dict.fromkeys(ids, 0)
    rows = session.execute(
        select(Instance.study_id, Instance.id, Instance.sop_instance_uid, Instance.path, Instance.view, Instance.state)
        .where(Instance.study_id.in_(ids), Instance.view.is_not(None), Instance.state != "skipped")
        .order_by(Instance.id)
    )
    for study_id, instance_id, uid, path, view, state in rows:
        if state == "quarantined":
            broken[study_id] += 1
        else:
            films[study_id].append(ClaimedFilm(instance_id, uid, path, view or ""))
    columns = (Study.id, Study.revision, Study.attempts, Study.suspect, Study.unavailable_since)
    found = {row.id: row for row in session.execute(select(*columns).where(Study.id.in_(ids)))}
    return [
        ClaimedStudy(
            study_id=i,
            revision=found[i].revision,
            attempts=found[i].attempts,
            suspect=found[i].suspect,
            films=tuple(films[i]),
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
    rows = [
        {
            "id": outcome.study.study_id,
            "state": outcome.state if unchanged[outcome.study.study_id] else "waiting",
            "reason": outcome.reason,
            "detail": outcome.detail,
        }
        for outcome in settled
    ]
    same = {
        "suspect": False,
        "claimed_by": None,
        "lease_expires_at": None,
        "not_before": None,
        "unavailable_since": None,
        "settled_at": now,
        "run_id": run_id,
    }
    update_many(session, Study, rows, key="id", same=same)
    return settled


def release(session: Session, studies: Sequence[ClaimedStudy], *, worker: str) -> int:
    """Give studies back untried (a worker that is asked to stop); the attempt does not count. Returns how many."""
    mine = held(session, studies, worker=worker)
    session.execute(
        update(Study)
        .where(Study.id.in_(mine))
        .values(
            state="waiting",
            attempts=Study.attempts - 1,
            claimed_by=None,
            lease_expires_at=None,
            rung_at=None,
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
            attempts=Study.attempts - 1,
            claimed_by=None,
            lease_expires_at=None,
            rung_at=None,
            unavailable_since=func.coalesce(Study.unavailable_since, now),
            not_before=now + timedelta(seconds=pause_seconds),
        )
    )


def renew(session: Session, studies: Sequence[ClaimedStudy], *, worker: str, lease_minutes: float) -> None:
    """Begin the lease of these studies anew: their worker lives and is at it."""
    mine = held(session, studies, worker=worker)
    until = database_now(session) + timedelta(minutes=lease_minutes)
    session.execute(update(Study).where(Study.id.in_(mine)).values(lease_expires_at=until))


def release_expired(session: Session, *, max_attempts: int) -> tuple[int, int]:
    """End the leases that ran out: their worker died or hangs. Returns (waiting again, quarantined).

    They become suspects; one that has used up its attempts is quarantined, since it may be what kills the workers. A
    study whose row is locked is left alone: someone is recording it, renewing it or ending its lease at this moment.
    """
    now = database_now(session)
    expired = select(Study.id, Study.attempts).where(Study.state == "claimed", Study.lease_expires_at < now)
    attempts = {row.id: row.attempts for row in session.execute(expired.with_for_update(skip_locked=True))}
    lost = [study_id for study_id, count in attempts.items() if count >= max_attempts]
    again = list(attempts.keys() - lost)
    let_go = {"claimed_by": None, "lease_expires_at": None, "rung_at": None}
    given_up = {
        "state": "quarantined",
        "reason": "worker_lost",
        "detail": f"its worker died {max_attempts} times while it held this study",
        "settled_at": now,
    }
    session.execute(update(Study).where(Study.id.in_(lost)).values(**given_up, **let_go))
    session.execute(update(Study).where(Study.id.in_(again)).values(state="waiting", suspect=True, **let_go))
    return len(again), len(lost)


def requeue(session: Session, *, study_instance_uid: str | None = None, reason: str | None = None) -> list[int]:
    """Send quarantined studies (all, one, or those with one reason) back to wait; returns their ids."""
    chosen = select(Study.id).where(Study.state == "quarantined")
    if study_instance_uid is not None:
        chosen = chosen.where(Study.study_instance_uid == study_instance_uid)
    if reason is not None:
        chosen = chosen.where(Study.reason == reason)
    ids = list(session.scalars(chosen.with_for_update(skip_locked=True)))
    _wait_again(session, ids)
    broken = update(Instance).where(Instance.study_id.in_(ids), Instance.state == "quarantined")
    session.execute(broken.values(state="waiting", reason=None, evidence=None))
    return ids


def rescore(session: Session, *, checkpoint_id: int, limit: int) -> list[int]:
    """Send up to `limit` scored studies whose priority is another checkpoint's back to wait; returns their ids."""
    chosen = (
        select(Study.id)
        .join(StudyPriority, StudyPriority.study_id == Study.id)
        .where(Study.state == "scored", StudyPriority.checkpoint_id.is_distinct_from(checkpoint_id))
        .order_by(Study.id)
        .limit(limit)
        .with_for_update(of=Study, skip_locked=True)
    )
    ids = list(session.scalars(chosen))
    _wait_again(session, ids)
    return ids


def _wait_again(session: Session, ids: Sequence[int]) -> None:
    session.execute(
        update(Study)
        .where(Study.id.in_(ids))
        .values(state="waiting", reason=None, detail=None, attempts=0, suspect=False, not_before=None, rung_at=None)
    )


# ------------------------------------------------------------------------------------------------------- the books


def books(session: Session, *, since: datetime | None = None, until: datetime | None = None) -> Books:
    """The sums over all studies, or those received after `since` and up to `until`; and why some are not scored."""
    totals = Books()
    states = select(Study.state, func.count()).where(*_received(Study, since, until)).group_by(Study.state)
    for state, count in session.execute(states):
        totals.received += count
        match state:
            case "claimed":
                totals.claimed += count
                totals.waiting += count
            case "waiting":
                totals.waiting += count
            case _:
                setattr(totals, state, count)
    films = select(func.count()).where(Instance.state == "scored", *_received(Instance, since, until))
    totals.films = session.scalar(films) or 0
    for kind, statement in _reason_counts(since, until).items():
        totals.reasons[kind] = dict(session.execute(statement).all())
    totals.rejected_files = sum(totals.reasons["rejected files"].values())
    return totals


def _received(
    table: type[Study | Instance | RejectedFile], since: datetime | None, until: datetime | None
) -> list[Any]:
    """The conditions that keep a table's rows of one period."""
    after = [] if since is None else [table.received_at > since]
    return after if until is None else [*after, table.received_at <= until]


def _reason_counts(since: datetime | None, until: datetime | None) -> dict[str, Select[str | None, int]]:
    by_state: dict[str, Select[str | None, int]] = {
        f"{state} {noun}": select(table.reason, func.count())
        .where(table.state == state, table.reason.is_not(None), *_received(table, since, until))
        .group_by(table.reason)
        for state, table, noun in (
            ("skipped", Study, "studies"),
            ("quarantined", Study, "studies"),
            ("waiting", Study, "studies"),
            ("skipped", Instance, "instances"),
            ("quarantined", Instance, "films"),
        )
    }
    rejected = select(RejectedFile.reason, func.count()).where(*_received(RejectedFile, since, until))
    return {**by_state, "rejected files": rejected.group_by(RejectedFile.reason)}
