"""Arrivals: one instance at a time into its study, which is made, found, or reopened."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import Instance, RejectedFile, Study, StudyPriority
from db.upsert import insert


@dataclass(frozen=True)
class Placement:
    """Where a study stands in the reading order until (or unless) a model has scored it."""

    category: str
    urgency: float
    flag: str
    policy_id: int | None


@dataclass(frozen=True)
class Arrival:
    """One file's header: `study` and `instance` hold column values of the two tables."""

    study: dict[str, Any]
    instance: dict[str, Any]


@dataclass(frozen=True)
class Registered:
    """Result of an arrival. `outcome`: new, known (the same file again), moved, or taken (UID held by `path`)."""

    outcome: str
    study_id: int | None = None
    path: str | None = None
    same_study: bool = True


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
    if arrival.study.get("stat") and not study.stat:
        _make_stat(session, study)
    if added is None:
        return _already_known(session, study, arrival)
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
    same_study = known.study_id == study.id
    if same_study and known.path == arrival.instance["path"]:
        _try_again(session, study, known)
        return Registered("known", study.id)
    return Registered("taken", known.study_id, known.path, same_study)


def relocate(session: Session, arrival: Arrival) -> int:
    """Note that an instance's file has moved, and let its study try again at once; returns the study's id."""
    uid = arrival.instance["sop_instance_uid"]
    instance = session.scalars(select(Instance).where(Instance.sop_instance_uid == uid)).one()
    instance.path = arrival.instance["path"]
    study = session.scalars(select(Study).where(Study.id == instance.study_id).with_for_update()).one()
    study.not_before = study.unavailable_since = None
    _try_again(session, study, instance)
    return study.id


def _try_again(session: Session, study: Study, instance: Instance) -> None:
    """A film in quarantine that is sent again may have been mended: it is read again, and its study waits."""
    if instance.state == "quarantined":
        instance.state, instance.reason = "waiting", None
        _reopen(session, study)


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
    study.not_before = study.unavailable_since = study.notified_at = None
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
