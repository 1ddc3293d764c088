"""Arrivals: one instance at a time into its study, which is made, found, or reopened."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, case, delete, select, update
from sqlalchemy.orm import Session

from db.base import Base, database_now
from db.bulk import in_parts
from db.models import FilmScore, Instance, InstanceVersion, RejectedFile, Study, StudyPriority
from db.upsert import insert, insert_missing

OTHER_PATIENT = "other_patient"  # reason of an instance that came under another patient's Study Instance UID
TWO_PATIENTS = "two_patients"  # flag of such a study
IDENTITY = ("accession_number", "patient_key", "patient_sex", "patient_age_years")


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
    """Result of an arrival. `outcome`: new, known (the same file again), changed (it says something else now and
    was taken over), doubtful (the same path, but perhaps other pixels), or taken (its UID is held by `path`)."""

    outcome: str
    study_id: int | None = None
    path: str | None = None
    same_study: bool = True
    state: str | None = None
    file_digest: str | None = None  # of the file that was read; None before
    says_otherwise: bool = False  # the header leads to another decision than the one that is held


def register(session: Session, arrival: Arrival, *, placement: Placement) -> Registered:
    """Record one instance; its study is made, found, or reopened when the instance is a film that was not there.

    A study's row is locked first, so two senders of the same study take turns.
    """
    now = database_now(session)
    if (made := _make_study(session, arrival, placement, now)) is not None:
        return made
    uid = arrival.study["study_instance_uid"]
    study = session.scalars(select(Study).where(Study.study_instance_uid == uid).with_for_update()).one()
    sent, arrival = arrival, _kept_apart(study, arrival)
    study.patient_key = study.patient_key or arrival.study.get("patient_key")
    if arrival.study.get("stat") and not study.stat:
        _make_stat(session, study)
    if not _add_instance(session, study.id, arrival, now):
        return _already_known(session, study, sent, placement)
    if arrival.instance["state"] == "waiting" or (_is_other_patient(arrival) and _has_films(session, study)):
        _reopen(session, study)
    elif study.state == "waiting" and not _has_films(session, study):
        study.state, study.reason, study.settled_at = "skipped", arrival.instance["reason"], now
    if arrival.instance["in_scope"]:
        _place_unscored(session, study.id, study.stat, study.received_at, placement, now)
    if _is_other_patient(arrival):
        _flag_two_patients(session, study)
    return Registered("new", study.id)


def _make_study(session: Session, arrival: Arrival, placement: Placement, now: datetime) -> Registered | None:
    """The result of a study's first instance, as most films are; None where either of them is there already.

    Without the ORM: this is the larger part of what a film costs the receiver.
    """
    first, values = arrival.instance, {"received_at": now, "revision": 1, **arrival.study}
    if first["state"] != "waiting":
        values |= {"revision": 0, "state": "skipped", "reason": first["reason"], "settled_at": now}
    study_id = insert_missing(session, Study, values, unique="study_instance_uid")
    if study_id is None or not _add_instance(session, study_id, arrival, now):
        return None
    if first["in_scope"]:
        _place_unscored(session, study_id, arrival.study["stat"], now, placement, now)
    return Registered("new", study_id)


def _add_instance(session: Session, study_id: int, arrival: Arrival, now: datetime) -> bool:
    """Record the instance; whether it was not there."""
    values = {"study_id": study_id, "received_at": now, **arrival.instance}
    return insert_missing(session, Instance, values, unique="sop_instance_uid") is not None


# ------------------------------------------------------------------------------------------- two patients in a study


def _kept_apart(study: Study, arrival: Arrival) -> Arrival:
    """The arrival; as one that is not scored where the study is another patient's (a sender reused the study's UID)."""
    patient = arrival.study.get("patient_key")
    if patient is None or study.patient_key in (None, patient):
        return arrival
    apart = {"state": "skipped", "reason": OTHER_PATIENT, "view": None, "flags": None, "in_scope": True}
    return Arrival(arrival.study, arrival.instance | apart | {"evidence": "PatientID, IssuerOfPatientID"})


def _is_other_patient(arrival: Arrival) -> bool:
    return arrival.instance.get("reason") == OTHER_PATIENT


def _flag_two_patients(session: Session, study: Study) -> None:
    place = update(StudyPriority).where(StudyPriority.study_id == study.id)
    session.execute(place.values(flag=TWO_PATIENTS, read_at=None, read_by=None))


# --------------------------------------------------------------------------------------------------- files sent again


def _already_known(session: Session, study: Study, arrival: Arrival, placement: Placement) -> Registered:
    uid = arrival.instance["sop_instance_uid"]
    known = session.scalars(select(Instance).where(Instance.sop_instance_uid == uid)).one()
    if known.study_id != study.id:
        if not session.scalar(select(Instance.id).where(Instance.study_id == study.id).limit(1)):
            session.delete(study)  # made a moment ago
            session.flush()  # the next film may be of it too, and is inserted without the ORM
        return Registered("taken", known.study_id, known.path, same_study=False)
    if not (alone := _is_alone(session, study, known)):
        arrival = _kept_apart(study, arrival)
    otherwise = _says_otherwise(known, arrival) or (alone and _names_another(study, arrival))
    held = Registered("taken", study.id, known.path, True, known.state, known.file_digest, otherwise)
    if known.path != arrival.instance["path"]:
        return held
    if otherwise:
        _take_over(session, study, known, arrival, cause="header_changed", placement=placement)
        return Registered("changed", study.id)
    stamp = arrival.instance.get("file_stamp")
    read = known.state != "quarantined" and known.file_digest is not None
    if read and (stamp is None or stamp != known.file_stamp):
        return replace(held, outcome="doubtful")
    known.decided_under = arrival.instance.get("decided_under")
    _try_again(session, study, known)
    return Registered("known", study.id)


def _says_otherwise(known: Instance, arrival: Arrival) -> bool:
    """Whether a header now leads to another decision."""
    new = arrival.instance
    if (known.view, known.in_scope) != (new.get("view"), new["in_scope"]):
        return True
    return known.view is None and known.reason != new["reason"]


def _names_another(study: Study, arrival: Arrival) -> bool:
    """Whether a header now names another patient or order than the study's."""
    named = {name: arrival.study.get(name) for name in IDENTITY}
    return any(value is not None and value != getattr(study, name) for name, value in named.items())


def _is_alone(session: Session, study: Study, known: Instance) -> bool:
    """Whether the study has no other instance of its own patient: then this one says whose it is."""
    others = select(Instance.id).where(
        Instance.study_id == study.id, Instance.id != known.id, Instance.reason.is_distinct_from(OTHER_PATIENT)
    )
    return session.scalar(others.limit(1)) is None


def take_over(session: Session, arrival: Arrival, *, cause: str, placement: Placement) -> int:
    """Let a file take the place of the one that is registered under its SOP Instance UID; returns the study's id.

    What was held is kept as a version; the film is decided and read anew.
    """
    study, known = _locked(session, arrival)
    _take_over(session, study, known, arrival, cause=cause, placement=placement)
    return study.id


def _take_over(
    session: Session, study: Study, known: Instance, arrival: Arrival, *, cause: str, placement: Placement
) -> None:
    now = database_now(session)
    if _is_alone(session, study, known):
        for name in IDENTITY:
            setattr(study, name, arrival.study.get(name))
    else:
        arrival = _kept_apart(study, arrival)
    _keep_version(session, known, cause, now)
    session.execute(delete(FilmScore).where(FilmScore.instance_id == known.id))
    fresh = {"view": None, "reason": None, "flags": None, "pixel_digest": None, "file_digest": None}
    for name, value in (fresh | arrival.instance).items():
        setattr(known, name, value)
    session.flush()
    _decided_again(session, study, known, placement, now)


def _keep_version(session: Session, known: Instance, cause: str, now: datetime) -> None:
    columns = ("path", "view", "state", "reason", "evidence", "flags", "pixel_digest", "file_digest")
    kept = {name: getattr(known, name) for name in columns}
    session.add(InstanceVersion(instance_id=known.id, cause=cause, replaced_at=now, **kept))


def _decided_again(session: Session, study: Study, known: Instance, placement: Placement, now: datetime) -> None:
    """Bring the study after one of its instances: it waits while it has films, else it is skipped and stands unscored,
    or nowhere when nothing of it can be a chest film."""
    _reopen(session, study)
    if known.in_scope:
        _place_unscored(session, study.id, study.stat, study.received_at, placement, now)
    if known.reason == OTHER_PATIENT:
        _flag_two_patients(session, study)
    if not _has_films(session, study) and study.state != "claimed":
        study.state, study.reason, study.settled_at = "skipped", known.reason, now
        session.flush()
        unplace(session, [study.id], placement=placement)


def unplace(session: Session, study_ids: Sequence[int], *, placement: Placement) -> None:
    """Where studies stand that have no film left: as unscored ones, or nowhere when nothing of them is in scope."""
    in_scope = select(Instance.id).where(Instance.study_id == StudyPriority.study_id, Instance.in_scope.is_(True))
    unscored = {
        "category": placement.category,
        "category_a": placement.category == "A",
        "urgency": placement.urgency,
        "flag": case((StudyPriority.flag == TWO_PATIENTS, TWO_PATIENTS), else_=placement.flag),
        "top_finding": None,
        "top_probability": None,
        "checkpoint_id": None,
        "policy_id": placement.policy_id,
    }
    for part in in_parts(study_ids):
        places = StudyPriority.study_id.in_(part)
        session.execute(delete(StudyPriority).where(places, ~in_scope.exists()))
        session.execute(update(StudyPriority).where(places).values(**unscored))


def relocate(session: Session, arrival: Arrival) -> int:
    """Note that an instance's file has moved, and let its study try again at once; returns the study's id."""
    study, instance = _locked(session, arrival)
    instance.path, instance.file_stamp = arrival.instance["path"], arrival.instance.get("file_stamp")
    study.not_before = study.unavailable_since = None
    _try_again(session, study, instance)
    return study.id


def confirm(session: Session, arrival: Arrival) -> int:
    """Note that a file which looked changed (its times did) still holds what was read; returns its study's id."""
    study, instance = _locked(session, arrival)
    instance.file_stamp = arrival.instance.get("file_stamp")
    return study.id


def _locked(session: Session, arrival: Arrival) -> tuple[Study, Instance]:
    uid = arrival.instance["sop_instance_uid"]
    instance = session.scalars(select(Instance).where(Instance.sop_instance_uid == uid)).one()
    study = session.scalars(select(Study).where(Study.id == instance.study_id).with_for_update()).one()
    return study, instance


def _try_again(session: Session, study: Study, instance: Instance) -> None:
    """A film in quarantine that is sent again may have been mended: it is read again, and its study waits."""
    if instance.state == "quarantined":
        instance.state, instance.reason = "waiting", None
        _reopen(session, study)


def take_up_copies(session: Session, instance_ids: Sequence[int]) -> int:
    """Let films that were just quarantined try another copy that was refused because theirs was held; returns how many
    have one. Each copy is tried once, and both files stay on record."""
    if not instance_ids:
        return 0
    now, taken_up = database_now(session), 0
    copies = (
        select(Instance, RejectedFile)
        .join(RejectedFile, RejectedFile.sop_instance_uid == Instance.sop_instance_uid)
        .where(Instance.state == "quarantined")
        .order_by(Instance.id, RejectedFile.received_at, RejectedFile.id)
    )
    parts = in_parts(sorted(instance_ids))
    for known, copy in [pair for part in parts for pair in session.execute(copies.where(Instance.id.in_(part)))]:
        if known.state == "quarantined":
            _keep_version(session, known, "copy_tried", now)
            session.delete(copy)
            known.path, known.state, known.reason = copy.path, "waiting", None
            known.file_stamp = known.file_digest = None
            study = session.scalars(select(Study).where(Study.id == known.study_id).with_for_update()).one()
            _reopen(session, study)
            taken_up += 1
    return taken_up


def _has_films(session: Session, study: Study) -> bool:
    films = select(Instance.id).where(
        Instance.study_id == study.id, Instance.view.is_not(None), Instance.state != "skipped"
    )
    return session.scalar(films.limit(1)) is not None


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


def _place_unscored(
    session: Session, study_id: int, stat: bool, received_at: datetime, placement: Placement, now: datetime
) -> None:
    values = {
        "study_id": study_id,
        "stat": stat,
        "received_at": received_at,
        "category": placement.category,
        "category_a": placement.category == "A",
        "urgency": placement.urgency,
        "flag": placement.flag,
        "policy_id": placement.policy_id,
        "ranked_at": now,
    }
    insert_missing(session, StudyPriority, values, unique="study_id")


def reject(
    session: Session,
    *,
    path: str,
    path_digest: str,
    reason: str,
    detail: str,
    sop_instance_uid: str | None = None,
) -> None:
    """Record a file that could not become an instance; the same file again renews its entry.

    sop_instance_uid: of a film that is held, of which this file is another copy.
    """
    values = {
        "reason": reason,
        "detail": detail,
        "sop_instance_uid": sop_instance_uid,
        "received_at": database_now(session),
    }
    session.execute(
        insert(session, RejectedFile)
        .values(path=path, path_digest=path_digest, **values)
        .on_conflict_do_update(index_elements=["path_digest"], set_=values)
    )


def move_rejection(session: Session, path_digest: str, *, path: str, to_digest: str) -> None:
    """Note that a rejected file lies elsewhere now; an entry that is there already is renewed."""
    moved = session.scalars(select(RejectedFile).where(RejectedFile.path_digest == path_digest)).one_or_none()
    if moved is not None:
        session.delete(moved)
        session.flush()
        reason, detail, copy_of = moved.reason, moved.detail or "", moved.sop_instance_uid
        reject(session, path=path, path_digest=to_digest, reason=reason, detail=detail, sop_instance_uid=copy_of)


_REJECTED = Base.metadata.tables[RejectedFile.__tablename__]
_FORGET = delete(_REJECTED).where(_REJECTED.c.path_digest.in_(bindparam("digests", expanding=True)))


def forget_rejections(session: Session, path_digests: Sequence[str]) -> None:
    """Forget that files were rejected, because they are about to be tried again."""
    for part in in_parts(path_digests):
        session.connection().execute(_FORGET, {"digests": part})
