"""Rows by what is known of them: a UID, an id. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import RowMapping, Select, func, select
from sqlalchemy.orm import Session

from db.bulk import in_parts
from db.models import (
    FINDING_COLUMNS,
    Checkpoint,
    FilmScore,
    Instance,
    InstanceVersion,
    PolicyRow,
    RejectedFile,
    Site,
    Study,
    StudyPriority,
    TotalChange,
)


@dataclass(frozen=True)
class FilmFile:
    """Where a scored film lies, and what must still lie there."""

    instance_id: int
    sop_instance_uid: str
    path: str
    pixel_digest: str | None


def patient_key_secret(session: Session) -> str:
    """The secret that makes this site's patient keys, hex."""
    return session.scalars(select(Site.patient_key_secret)).one()


def study_named(session: Session, name: str) -> Study | None:
    """The study with this Study Instance UID, or with an instance of this SOP Instance UID, or the only one with this
    accession number."""
    study = study_with_uid(session, name)
    study = study or session.scalar(select(Study).join(Instance).where(Instance.sop_instance_uid == name))
    if study is not None:
        return study
    ordered = session.scalars(select(Study).where(Study.accession_number == name).limit(2)).all()
    return ordered[0] if len(ordered) == 1 else None


def instance_named(session: Session, sop_instance_uid: str) -> tuple[Instance, Study] | None:
    """The instance with this SOP Instance UID, and its study."""
    named = select(Instance, Study).join(Study).where(Instance.sop_instance_uid == sop_instance_uid)
    row = session.execute(named).one_or_none()
    return None if row is None else (row[0], row[1])


def rejection_of(session: Session, path_digest: str) -> dict[str, str | None] | None:
    """Reason and detail of a file that was rejected; None where it was not."""
    named = select(RejectedFile.reason, RejectedFile.detail).where(RejectedFile.path_digest == path_digest)
    row = session.execute(named).one_or_none()
    return None if row is None else {"reason": row.reason, "detail": row.detail}


def skipped_paths(session: Session, reasons: Sequence[str], *, after: int, limit: int) -> list[tuple[int, str]]:
    """The next skipped instances with one of these reasons, as (instance id, path), by id."""
    skipped = select(Instance.id, Instance.path).where(
        Instance.state == "skipped", Instance.reason.in_(reasons), Instance.id > after
    )
    return [(row.id, row.path) for row in session.execute(skipped.order_by(Instance.id).limit(limit))]


def decided_otherwise(session: Session, reasons: Sequence[str], *, rules: str) -> int:
    """How many instances were skipped with one of these reasons under other rules than `rules` (their digest)."""
    kept = TotalChange.counted == "instance", TotalChange.state == "skipped", TotalChange.reason.in_(reasons)
    other = select(func.sum(TotalChange.change)).where(*kept, TotalChange.decided_under.is_distinct_from(rules))
    return int(session.scalar(other) or 0)


def study_of(session: Session, study_id: int) -> Study | None:
    """The study with this row id."""
    return session.get(Study, study_id)


def study_with_uid(session: Session, study_instance_uid: str) -> Study | None:
    """The study with this Study Instance UID."""
    return session.scalars(select(Study).where(Study.study_instance_uid == study_instance_uid)).one_or_none()


def instance_of(session: Session, instance_id: int) -> Instance | None:
    """The instance with this row id."""
    return session.get(Instance, instance_id)


def earlier_studies(session: Session, study: Study, *, limit: int) -> Sequence[RowMapping]:
    """The other studies of the same patient that came before, the newest first, each with its place when it has one."""
    place = (StudyPriority.category, StudyPriority.top_finding, StudyPriority.flag, StudyPriority.read_at)
    chosen = select(Study.id, Study.accession_number, Study.acquired_at, Study.received_at, Study.state, *place)
    same = (Study.patient_key == study.patient_key, Study.id != study.id, Study.received_at <= study.received_at)
    found = chosen.outerjoin(StudyPriority, StudyPriority.study_id == Study.id).where(*same)
    return session.execute(found.order_by(Study.received_at.desc(), Study.id.desc()).limit(limit)).mappings().all()


def first_films(session: Session, study_ids: Sequence[int]) -> dict[int, int]:
    """Study id -> its first scored film's instance id, of those that have one."""
    films = select(Instance.study_id, func.min(Instance.id)).where(
        Instance.study_id.in_(study_ids), Instance.state == "scored", Instance.pixel_digest.is_not(None)
    )
    return dict(session.execute(films.group_by(Instance.study_id)).all())


def instances_of(session: Session, study: Study) -> Sequence[Instance]:
    """A study's instances, in the order in which they came."""
    return session.scalars(select(Instance).where(Instance.study_id == study.id).order_by(Instance.id)).all()


def path_of(session: Session, sop_instance_uid: str) -> str | None:
    """Where the film with this SOP Instance UID lies, or None."""
    return session.scalar(select(Instance.path).where(Instance.sop_instance_uid == sop_instance_uid))


def known_uids(session: Session, sop_instance_uids: Sequence[str]) -> set[str]:
    """Those of these SOP Instance UIDs that are registered."""
    known: set[str] = set()
    for part in in_parts(sop_instance_uids):
        known |= set(session.scalars(select(Instance.sop_instance_uid).where(Instance.sop_instance_uid.in_(part))))
    return known


def recorded_paths(session: Session, paths: Sequence[str]) -> set[str]:
    """Those of these paths to which the ledger refers: a film's, an earlier version's or a rejected file's."""
    known: set[str] = set()
    for part in in_parts(paths):
        for column in (Instance.path, InstanceVersion.path, RejectedFile.path):
            known |= set(session.scalars(select(column).where(column.in_(part))))
    return known


def instance_ends(session: Session) -> dict[str, tuple[str, str]]:
    """SOP Instance UID -> (state, reason or nothing) of every instance."""
    rows = session.execute(select(Instance.sop_instance_uid, Instance.state, Instance.reason))
    return {uid: (state, reason or "") for uid, state, reason in rows}


def select_files() -> Select[int, str, str, str | None]:
    """The columns of FilmFile."""
    return select(Instance.id, Instance.sop_instance_uid, Instance.path, Instance.pixel_digest)


def film_files(session: Session, instance_ids: Sequence[int]) -> list[FilmFile]:
    """The files of these instances, as far as they are known, by instance id."""
    files = select_files().where(Instance.id.in_(instance_ids)).order_by(Instance.id)
    return [FilmFile(*row) for row in session.execute(files)]


def place_of(session: Session, study: Study) -> tuple[StudyPriority, PolicyRow | None, Checkpoint | None] | None:
    """Where a study stands, by which policy and which checkpoint; None when it is not on the worklist."""
    place = session.get(StudyPriority, study.id)
    if place is None:
        return None
    policy = session.get(PolicyRow, place.policy_id) if place.policy_id else None
    checkpoint = session.get(Checkpoint, place.checkpoint_id) if place.checkpoint_id else None
    return place, policy, checkpoint


def film_probabilities(session: Session, study: Study, checkpoint: Checkpoint) -> list[tuple[float, ...]]:
    """The (11,) probabilities of each scored film of a study under one checkpoint."""
    columns = [getattr(FilmScore, name) for name in FINDING_COLUMNS]
    films = (
        select(*columns)
        .join(Instance, Instance.id == FilmScore.instance_id)
        .where(Instance.study_id == study.id, FilmScore.checkpoint_id == checkpoint.id, Instance.state == "scored")
    )
    return [tuple(row) for row in session.execute(films)]
