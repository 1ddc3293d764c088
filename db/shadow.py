"""Scores of a checkpoint that does not rank: in shadow next to the champion, or before it goes live.

Its scores lie in film_score beside the champion's, its places in shadow_priority. It has seen a study whole when every
scored film of the study has a score by it: so a film that came meanwhile shows without anyone keeping count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, String, and_, column, delete, func, select, table
from sqlalchemy.orm import Session

from db.base import database_now, rounded
from db.bulk import in_parts, upsert_many
from db.lookup import FilmFile, select_files
from db.models import FINDING_COLUMNS, FilmScore, Instance, ShadowPriority, Study, StudyPriority
from db.results import PriorityResult


@dataclass(frozen=True)
class Listed:
    """A study and where it stands, or stood when it was read; `night` as docs/reference/sql.md counts nights."""

    study_id: int
    accession_number: str | None
    stat: bool
    received_at: datetime
    night: str
    category: str
    urgency: float
    flag: str | None
    checkpoint_id: int | None

    @property
    def name(self) -> str:
        """Name for people: its accession number, else its row's number."""
        return self.accession_number or str(self.study_id)


# ----------------------------------------------------------------------------------------------------- what is listed


def unread(session: Session) -> list[Listed]:
    """The studies on the worklist, by id."""
    return _listed(session, StudyPriority.read_at.is_(None))


def read_before(session: Session, *, after: int, limit: int) -> list[Listed]:
    """The next studies, by id, that have been read."""
    return _listed(session, StudyPriority.read_at.is_not(None), StudyPriority.study_id > after, limit=limit)


def of_night(session: Session, night: str) -> list[Listed]:
    """The studies of one night, such as 2026-11-25, that are or were on the worklist, by id."""
    noon = datetime.fromisoformat(f"{night}T12:00+00:00")  # of UTC; in any time zone the night lies within a day of it
    around = Study.received_at.between(noon - timedelta(days=1), noon + timedelta(days=2))
    return _listed(session, around, column("night") == night)


def of_days(session: Session, days: float) -> list[Listed]:
    """The studies of the last days that are or were on the worklist, by id."""
    return _listed(session, Study.received_at >= database_now(session) - timedelta(days=days))


def _listed(session: Session, *conditions: ColumnElement[bool], limit: int | None = None) -> list[Listed]:
    log = table("study_log", column("study_id"), column("night", String))
    statement = (
        select(
            StudyPriority.study_id,
            Study.accession_number,
            StudyPriority.stat,
            StudyPriority.received_at,
            log.c.night,
            StudyPriority.category,
            StudyPriority.urgency,
            StudyPriority.flag,
            StudyPriority.checkpoint_id,
        )
        .join(Study, Study.id == StudyPriority.study_id)
        .join(log, log.c.study_id == StudyPriority.study_id)
        .where(*conditions)
        .order_by(StudyPriority.study_id)
        .limit(limit)
    )
    return [Listed(*row) for row in session.execute(statement)]


# -------------------------------------------------------------------------------------------------------- what is seen


def seen_whole(session: Session, study_ids: Sequence[int], *, checkpoint_id: int) -> dict[int, tuple[float, ...]]:
    """Those of the studies that a checkpoint has seen whole -> their highest probabilities, (11,) in vocabulary order.

    Six decimals, as they were ranked with: REAL keeps more than those, and not the same ones everywhere.
    """
    by_it = and_(FilmScore.instance_id == Instance.id, FilmScore.checkpoint_id == checkpoint_id)
    found: dict[int, tuple[float, ...]] = {}
    for ids in in_parts(study_ids):
        statement = (
            select(Instance.study_id, *(func.max(getattr(FilmScore, name)) for name in FINDING_COLUMNS))
            .outerjoin(FilmScore, by_it)
            .where(Instance.study_id.in_(ids), Instance.state == "scored")
            .group_by(Instance.study_id)
            .having(func.count(Instance.id) == func.count(FilmScore.id))
        )
        found |= {study_id: tuple(map(rounded, highest)) for study_id, *highest in session.execute(statement)}
    return found


def count_to_see(session: Session, *, checkpoint_id: int, read: bool) -> int:
    """How many scored films of unread studies (with `read` of all) a checkpoint has not seen."""
    return session.scalar(select(func.count()).select_from(_to_see(checkpoint_id, read=read).subquery())) or 0


def films_to_see(session: Session, *, checkpoint_id: int, read: bool, after: int, limit: int) -> list[FilmFile]:
    """The next of those films, by instance id."""
    films = _to_see(checkpoint_id, read=read).where(Instance.id > after).order_by(Instance.id).limit(limit)
    return [FilmFile(*row) for row in session.execute(films)]


def _to_see(checkpoint_id: int, *, read: bool) -> Select[int, str, str, str | None]:
    return (
        select_files()
        .join(Study, Study.id == Instance.study_id)
        .join(StudyPriority, StudyPriority.study_id == Study.id)
        .where(Study.state == "scored", *_unread_or(read), *_unseen_film(checkpoint_id))
    )


def _unread_or(read: bool) -> list[ColumnElement[bool]]:
    return [] if read else [StudyPriority.read_at.is_(None)]


def _unseen_film(checkpoint_id: int) -> list[ColumnElement[bool]]:
    score = select(FilmScore.id).where(FilmScore.instance_id == Instance.id, FilmScore.checkpoint_id == checkpoint_id)
    return [Instance.state == "scored", ~score.exists()]


# ------------------------------------------------------------------------------------------------------- what is kept


def record_places(
    session: Session,
    places: Sequence[PriorityResult],
    *,
    checkpoint_id: int,
    policy_id: int,
    run_id: int | None = None,
) -> None:
    """Write where studies would stand under a checkpoint that does not rank."""
    rows = [
        vars(place) | {"checkpoint_id": checkpoint_id, "category_a": place.category == "A"}
        for place in sorted(places, key=lambda place: place.study_id)  # one order for all: no deadlock
    ]
    same = {"policy_id": policy_id, "run_id": run_id, "ranked_at": database_now(session)}
    for part in in_parts(rows):
        upsert_many(session, ShadowPriority, part, unique=["study_id", "checkpoint_id"], same=same)


# ---------------------------------------------------------------------------------------------------------- going live


def locked_batch(
    session: Session, *, checkpoint_id: int, policy_id: int, read: bool, after: int, limit: int
) -> tuple[Sequence[int], list[PriorityResult]]:
    """The next studies, by id, that another checkpoint ranked, locked until commit so that nobody writes between.

    Returns the ids of all, and the new places of those that have one: by this policy, and of films that have not
    changed since.
    """
    ids = session.scalars(
        select(StudyPriority.study_id)
        .where(StudyPriority.study_id > after, StudyPriority.checkpoint_id != checkpoint_id, *_unread_or(read))
        .order_by(StudyPriority.study_id)  # the order in which workers write too: no deadlock
        .limit(limit)
        .with_for_update()
    ).all()
    as_then = and_(
        ShadowPriority.study_id == StudyPriority.study_id,
        ShadowPriority.checkpoint_id == checkpoint_id,
        ShadowPriority.policy_id == policy_id,
        ShadowPriority.flag.is_not_distinct_from(StudyPriority.flag),
    )
    unseen = select(Instance.id).where(Instance.study_id == Study.id, *_unseen_film(checkpoint_id))
    statement = (
        select(ShadowPriority)
        .join(StudyPriority, as_then)
        .join(Study, Study.id == StudyPriority.study_id)
        .where(StudyPriority.study_id.in_(ids), Study.state == "scored", ~unseen.exists())
        .order_by(ShadowPriority.study_id)
    )
    names = PriorityResult.__dataclass_fields__
    places = [PriorityResult(**{name: getattr(row, name) for name in names}) for row in session.scalars(statement)]
    return ids, places


def forget_places(session: Session, study_ids: Sequence[int], *, checkpoint_id: int) -> None:
    """Drop places that have become the studies' own."""
    gone = ShadowPriority.study_id.in_(study_ids), ShadowPriority.checkpoint_id == checkpoint_id
    session.execute(delete(ShadowPriority).where(*gone))
