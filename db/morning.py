"""Queries of the morning page: one run, the reading order as it stood at its end, and the scores to compare it with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Boolean, RowMapping, Select, Subquery, and_, column, func, select, table
from sqlalchemy.orm import Session

from db import runs
from db.base import DocumentedError
from db.bulk import AT_ONCE, in_parts
from db.models import FINDING_COLUMNS, FilmScore, Instance, Run, RunCategory, RunRank, Study, StudyPriority

_PLACE = ("study_id", "priority_rank", "category", "urgency", "overdue")
_PROBABILITIES = [getattr(FilmScore, name) for name in FINDING_COLUMNS]


class NoSuchRun(DocumentedError, LookupError):
    """There is no run with this number, or none at all yet; `nightread score` or a worker makes one."""


@dataclass(frozen=True)
class CategoryCount:
    """How many studies of one category were on the list, and what of them stands out."""

    category: str
    studies: int
    stat: int
    overdue: int
    flagged: int  # not, or only partly, scored, or blind
    oldest: datetime  # received
    read: int = 0  # since the run ended


@dataclass(frozen=True)
class Film:
    """One instance of a listed study; `probabilities` in vocabulary order, None when it was not scored."""

    study_id: int
    instance_id: int
    sop_instance_uid: str
    path: str
    view: str | None
    modality: str | None
    rows: int | None
    columns: int | None
    state: str
    in_scope: bool
    reason: str | None
    pixel_digest: str | None
    probabilities: tuple[float, ...] | None


def _is_id(name: str) -> bool:
    return name.isdecimal() and len(name) < 19  # a signed integer of 64 bits


def run_named(session: Session, name: str) -> Run:
    """The run with this number, or for "latest" the one started last. Raises NoSuchRun."""
    run = runs.latest(session) if name == "latest" else session.get(Run, int(name)) if _is_id(name) else None
    if run is None:
        raise NoSuchRun
    return run


def previous_end(session: Session, run: Run) -> datetime | None:
    """When the run before this one ended; what was received since is this morning's."""
    return session.scalar(select(func.max(Run.finished_at)).where(Run.id < run.id))


def counts(session: Session, run: Run) -> list[CategoryCount]:
    """The whole list by category, A first: as the run left it, or as it stands while the run goes on."""
    if run.finished_at is None:
        return [CategoryCount(*row) for row in session.execute(runs.list_counts(session))]
    kept = select(*(getattr(RunCategory, name) for name in runs.COUNTS)).where(RunCategory.run_id == run.id)
    read = _read_since(session, run.finished_at)
    rows = session.execute(kept.order_by(RunCategory.category))
    return [replace(CategoryCount(*row), read=read.get(row.category, 0)) for row in rows]


def _read_since(session: Session, moment: datetime) -> dict[str, int]:
    """How many studies were read after a moment at which they were there, by the category that they have now."""
    rows = session.execute(
        select(StudyPriority.category, func.count())
        .where(StudyPriority.read_at > moment, StudyPriority.received_at <= moment)
        .group_by(StudyPriority.category)
    )
    return dict(rows.all())


def _order(run: Run, *, top: int) -> Subquery:
    """The first ranks that a run left, or of the worklist as it stands while the run goes on. With a limit, which tells
    the planner that they are few."""
    if run.finished_at is None:
        typed = [column(name, Boolean) if name == "overdue" else column(name) for name in _PLACE]
        ranks = select(*typed).select_from(table("worklist", *typed)).order_by(column("priority_rank"))
    else:
        kept = [getattr(RunRank, name) for name in _PLACE]
        ranks = select(*kept).where(RunRank.run_id == run.id).order_by(RunRank.priority_rank)
    return ranks.limit(min(top, runs.HEAD)).subquery("place")


def ranked(session: Session, run: Run, *, top: int) -> Sequence[RowMapping]:
    """The first `top` studies of the list, in reading order; runs.HEAD at most."""
    place = _order(run, top=top).c
    return (
        session.execute(
            select(
                *place,
                Study.study_instance_uid,
                Study.accession_number,
                Study.acquired_at,
                Study.received_at,
                Study.reason,
                StudyPriority.stat,
                StudyPriority.flag,
                StudyPriority.read_at,
                StudyPriority.checkpoint_id,
            )
            .join(Study, Study.id == place.study_id)
            .join(StudyPriority, StudyPriority.study_id == place.study_id)
            .order_by(place.priority_rank)
        )
        .mappings()
        .all()
    )


def unusual(session: Session, study_ids: Sequence[int]) -> dict[tuple[int, str], tuple[float | None, float | None]]:
    """Study and finding -> how many times the usual its probability is, and what share of films reaches it."""
    parts = table("study_contribution", *(column(name) for name in ("study_id", "finding", "lift", "share")))
    asked = (select(parts).where(parts.c.study_id.in_(part)) for part in in_parts(study_ids))
    return {(row.study_id, row.finding): (row.lift, row.share) for each in asked for row in session.execute(each)}


def films_of(session: Session, study_ids: Sequence[int]) -> dict[int, list[Film]]:
    """The instances of these studies, with scores by the checkpoint that ranks their study."""
    ranks_it = and_(
        FilmScore.instance_id == Instance.id,
        FilmScore.checkpoint_id == StudyPriority.checkpoint_id,
        Instance.state == "scored",
    )
    names = [name for name in Film.__dataclass_fields__ if name not in ("instance_id", "probabilities")]
    instances = (
        select(Instance.id, *(getattr(Instance, name) for name in names), *_PROBABILITIES)
        .join(StudyPriority, StudyPriority.study_id == Instance.study_id)
        .outerjoin(FilmScore, ranks_it)
        .order_by(Instance.id)
    )
    parts = in_parts(study_ids)
    rows = (row for part in parts for row in session.execute(instances.where(Instance.study_id.in_(part))))
    films: dict[int, list[Film]] = {study_id: [] for study_id in study_ids}
    for instance_id, *rest in rows:
        values, scores = rest[: len(names)], rest[len(names) :]
        probabilities = None if scores[0] is None else tuple(scores)
        film = Film(instance_id=instance_id, probabilities=probabilities, **dict(zip(names, values, strict=True)))
        films[film.study_id].append(film)
    return films


def quarantined(session: Session, *, limit: int) -> Sequence[RowMapping]:
    """The studies that are quarantined now, last first: someone has to look at them."""
    return (
        session.execute(
            select(Study.accession_number, Study.study_instance_uid, Study.reason, Study.attempts, Study.settled_at)
            .where(Study.state == "quarantined")
            .order_by(Study.settled_at.desc(), Study.id)
            .limit(limit)
        )
        .mappings()
        .all()
    )


def scores_in(session: Session, run: Run) -> Iterator[tuple[float, ...]]:
    """Probabilities of the run's films by its own checkpoint, each (11,) in vocabulary order."""
    return _tuples(session, _film_scores(run).where(Study.run_id == run.id))


def scores_before(session: Session, run: Run, *, days: int) -> Iterator[tuple[float, ...]]:
    """The same checkpoint's probabilities of the films received in the `days` before this run, scored by other runs."""
    earlier = (
        Study.received_at >= run.started_at - timedelta(days=days),
        Study.received_at < run.started_at,  # as what was scored before it began; so no newer study is looked at
        Study.run_id.is_distinct_from(run.id),
        FilmScore.scored_at < run.started_at,
    )
    return _tuples(session, _film_scores(run).where(*earlier))


def _film_scores(run: Run) -> Select[Any]:
    """Of studies that stand by what a model saw: a histogram of few films would tell a blind one's scores."""
    return (
        select(*_PROBABILITIES)
        .join(Instance, Instance.id == FilmScore.instance_id)
        .join(Study, Study.id == Instance.study_id)
        .join(StudyPriority, StudyPriority.study_id == Study.id)
        .where(
            FilmScore.checkpoint_id == run.checkpoint_id,
            Instance.state == "scored",
            StudyPriority.checkpoint_id.is_not(None),
        )
    )


def _tuples(session: Session, statement: Select[Any]) -> Iterator[tuple[float, ...]]:
    return map(tuple, session.execute(statement, execution_options={"yield_per": AT_ONCE}))
