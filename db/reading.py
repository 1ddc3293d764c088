"""Readings and reviews: a study was read, or not after all, and what a radiologist confirmed of it.

People name a study by its Study Instance UID or its accession number. Each name gets an answer: nothing is left out
silently.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from db import audit
from db.base import database_now
from db.bulk import in_parts, update_many
from db.models import Review, Study, StudyPriority
from db.upsert import insert

LONGEST_NAME = 64  # characters of a reader's name that are kept
UNKNOWN = "no study has this UID or accession number"
SHARED = "{} studies share this accession number: name the Study Instance UID, or take all with --whole-order"
SHARED_REVIEW = "{} studies share this accession number: name the Study Instance UID"
NOT_LISTED = "the study was never on the worklist (nothing in it can be a chest film)"
FUTURE = "the time lies in the future"


@dataclass(frozen=True)
class Reading:
    """A study that was read, as somebody named it; without `read_at` the moment is now."""

    study: str
    read_at: datetime | None = None
    read_by: str | None = None


@dataclass(frozen=True)
class Opinion:
    """One reader's verdict on one finding: present, absent or not_assessed; without `reviewed_at` the moment is now."""

    study: str
    finding: str
    verdict: str
    reader: str
    reviewed_at: datetime | None = None


@dataclass(frozen=True)
class Answer:
    """Outcome of one reading or opinion: `changed` rows, or the reason why there are none."""

    changed: int = 0
    refused: str | None = None


def mark_read(session: Session, readings: Sequence[Reading], *, whole_order: bool = False) -> list[Answer]:
    """Take studies off the worklist; an answer for each reading, in their order. A study's first reading stands.

    An accession number that several studies share is refused, so that a coincidence takes nobody off the list, unless
    `whole_order` says that it means them all.
    """
    found, now = _find(session, [reading.study for reading in readings]), database_now(session)
    unread = _listed(session, found)
    answers: list[Answer] = []
    rows: dict[int, dict[str, Any]] = {}
    for reading in readings:
        ids = found[reading.study]
        refused = _objection(ids, SHARED, allow_several=whole_order) or _too_late(reading.read_at, now)
        if refused is None and not any(study_id in unread for study_id in ids):
            refused = NOT_LISTED
        mine = [] if refused else [study_id for study_id in ids if unread.get(study_id) and study_id not in rows]
        for study_id in mine:
            rows[study_id] = {
                "study_id": study_id,
                "read_at": reading.read_at or now,
                "read_by": _name(reading.read_by),
            }
        answers.append(Answer(len(mine), refused))
    update_many(session, StudyPriority, list(rows.values()), key="study_id", same={})
    return answers


def mark_unread(session: Session, studies: Sequence[str], *, by: str, whole_order: bool = False) -> list[Answer]:
    """Bring studies back to the worklist, each to the place that it would have had; an answer for each name."""
    found = _find(session, studies)
    unread = _listed(session, found)
    answers: list[Answer] = []
    back: set[int] = set()
    for study in studies:
        ids = found[study]
        refused = _objection(ids, SHARED, allow_several=whole_order)
        if refused is None and not any(study_id in unread for study_id in ids):
            refused = NOT_LISTED
        mine = set() if refused else {i for i in ids if unread.get(i) is False} - back
        back |= mine
        answers.append(Answer(len(mine), refused))
    if back:
        for part in in_parts(sorted(back)):
            listed = update(StudyPriority).where(StudyPriority.study_id.in_(part))
            session.execute(listed.values(read_at=None, read_by=None))
        audit.record(session, actor=by, action="studies marked unread", study_ids=sorted(back))
    return answers


def record_opinions(session: Session, opinions: Sequence[Opinion]) -> list[Answer]:
    """Keep what readers confirmed, one row per study, finding and reader; an answer for each opinion.

    A reader's later opinion replaces the earlier one, never the reverse, so that a file may be imported again.
    """
    found, now = _find(session, [opinion.study for opinion in opinions]), database_now(session)
    answers = []
    for opinion in opinions:
        ids = found[opinion.study]
        refused = _objection(ids, SHARED_REVIEW, allow_several=False) or _too_late(opinion.reviewed_at, now)
        changed = 0 if refused else _upsert_review(session, ids[0], opinion, opinion.reviewed_at or now)
        answers.append(Answer(changed, refused))
    return answers


def reviews_of(session: Session, study_id: int) -> Sequence[Review]:
    """The reviews of a study, by reader."""
    rows = select(Review).where(Review.study_id == study_id).order_by(Review.reader, Review.id)
    return session.scalars(rows).all()


def reviewed_by(session: Session, reader: str, study_ids: Sequence[int]) -> set[int]:
    """Those of the studies of which this reader has confirmed something."""
    found = select(Review.study_id).where(Review.reader == reader, Review.study_id.in_(study_ids)).distinct()
    return set(session.scalars(found))


def _find(session: Session, names: Iterable[str]) -> dict[str, list[int]]:
    """The ids of the studies of each name; a UID comes before an accession number that happens to read like it."""
    wanted = sorted(set(names))
    by_uid: dict[str, list[int]] = {}
    by_accession: dict[str, set[int]] = defaultdict(set)
    columns = (Study.id, Study.study_instance_uid, Study.accession_number)
    for part in in_parts(wanted):
        named = or_(Study.study_instance_uid.in_(part), Study.accession_number.in_(part))
        for study_id, uid, accession in session.execute(select(*columns).where(named)):
            by_uid[uid] = [study_id]
            if accession is not None:
                by_accession[accession].add(study_id)
    return {name: by_uid.get(name) or sorted(by_accession.get(name, ())) for name in wanted}


def _listed(session: Session, found: dict[str, list[int]]) -> dict[int, bool]:
    """Study id -> whether it is unread, for those that are or were on the list; locked until commit."""
    ids = sorted({study_id for ids in found.values() for study_id in ids})  # one order for everyone: no deadlock
    places = select(StudyPriority.study_id, StudyPriority.read_at).order_by(StudyPriority.study_id).with_for_update()
    rows = (row for part in in_parts(ids) for row in session.execute(places.where(StudyPriority.study_id.in_(part))))
    return {study_id: read_at is None for study_id, read_at in rows}


def _objection(ids: Sequence[int], shared: str, *, allow_several: bool) -> str | None:
    if not ids:
        return UNKNOWN
    return shared.format(len(ids)) if len(ids) > 1 and not allow_several else None


def _too_late(moment: datetime | None, now: datetime) -> str | None:
    return FUTURE if moment is not None and moment > now else None


def _name(reader: str | None) -> str | None:
    """As much of a reader's name as its column holds."""
    return reader and reader[:LONGEST_NAME]


def _upsert_review(session: Session, study_id: int, opinion: Opinion, at: datetime) -> int:
    statement = insert(session, Review).values(
        study_id=study_id,
        finding=opinion.finding,
        verdict=opinion.verdict,
        reader=_name(opinion.reader),
        reviewed_at=at,
    )
    given = statement.excluded
    news = or_(Review.reviewed_at < given.reviewed_at, Review.verdict != given.verdict)
    written = session.scalar(
        statement.on_conflict_do_update(
            index_elements=["study_id", "finding", "reader"],
            set_={"verdict": given.verdict, "reviewed_at": given.reviewed_at},
            where=(Review.reviewed_at <= given.reviewed_at) & news,
        ).returning(Review.id)
    )
    return int(written is not None)
