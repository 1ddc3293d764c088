"""Runs: a night's work, or one `nightread score`, with the reading order as it stood at its end.

Of the order a run keeps its head, the studies that it settled itself, and how many there were of each category: a list
of a hundred thousand unread studies is not copied for every film that is scored.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import RowMapping, Select, case, func, insert, literal, select, text, update
from sqlalchemy.orm import Session

from db import ledger, policies, totals
from db.base import database_now
from db.models import Checkpoint, Instance, Run, RunCategory, Site, Study, StudyPriority

HEAD = 1000  # of the order, which is kept whatever the run settled: more than anyone reads in a day
KEEP_RANKS = """
    INSERT INTO run_rank (run_id, study_id, priority_rank, category, urgency, overdue)
    SELECT :run_id, w.study_id, w.priority_rank, w.category, w.urgency, w.overdue
    FROM worklist w
    WHERE w.priority_rank <= :head OR w.study_id IN (SELECT id FROM study WHERE run_id = :run_id)"""
COUNTS = ("category", "studies", "stat", "overdue", "flagged", "oldest_received_at")


def open_run(
    session: Session, *, kind: str, checkpoint_id: int, policy_id: int, settings: dict[str, Any], shared: bool
) -> int:
    """The id of a run to work under: a new one, or with `shared` the open one of this kind, checkpoint and policy."""
    if shared:
        session.execute(select(Site.id).with_for_update())  # two workers that begin a night take turns
        same = (Run.kind == kind, Run.checkpoint_id == checkpoint_id, Run.policy_id == policy_id)
        found = session.scalar(select(func.max(Run.id)).where(Run.finished_at.is_(None), *same))
        if found is not None:
            return found
    run = Run(
        kind=kind,
        started_at=database_now(session),
        checkpoint_id=checkpoint_id,
        policy_id=policy_id,
        settings=settings,
    )
    session.add(run)
    session.flush()
    return run.id


def touch(session: Session, run_id: int) -> None:
    """Note that the run has just settled something."""
    session.execute(update(Run).where(Run.id == run_id).values(last_settled_at=database_now(session)))


def close(session: Session, run_id: int) -> None:
    """End a run: count what it settled and keep the head of the reading order as it stands."""
    by_state = select(Study.state, func.count()).where(Study.run_id == run_id).group_by(Study.state)
    counts = dict(session.execute(by_state).all())
    films = select(func.count()).join(Study).where(Study.run_id == run_id, Instance.state == "scored")
    session.execute(
        update(Run)
        .where(Run.id == run_id, Run.finished_at.is_(None))
        .values(
            finished_at=database_now(session),
            films=session.scalar(films.select_from(Instance)) or 0,
            **{state: counts.get(state, 0) for state in ("scored", "skipped", "quarantined")},
        )
    )
    session.execute(text(KEEP_RANKS), {"run_id": run_id, "head": HEAD})
    totals.add_up(session)
    kept = list_counts(session).add_columns(literal(run_id))
    session.execute(insert(RunCategory).from_select([*COUNTS, "run_id"], kept))


def list_counts(session: Session) -> Select[Any]:
    """COUNTS of the worklist as it stands, a row for each category on it, A first."""
    overdue = StudyPriority.received_at <= database_now(session) - policies.max_wait(session)
    one_each = (case((condition, 1), else_=0) for condition in (StudyPriority.stat, overdue))
    return (
        select(
            StudyPriority.category,
            func.count(),
            *map(func.sum, one_each),
            func.count(StudyPriority.flag),
            func.min(StudyPriority.received_at),
        )
        .where(StudyPriority.read_at.is_(None))
        .group_by(StudyPriority.category)
        .order_by(StudyPriority.category)
    )


def close_idle(session: Session, *, idle_minutes: float) -> list[int]:
    """End the open night runs when nothing waits any more and nothing was settled lately; returns their ids."""
    if ledger.any_waiting(session) or ledger.any_held(session):
        return []
    before = database_now(session) - timedelta(minutes=idle_minutes)
    quiet = func.coalesce(Run.last_settled_at, Run.started_at) < before
    open_nights = select(Run.id).where(Run.finished_at.is_(None), quiet)
    idle = list(session.scalars(open_nights.with_for_update(skip_locked=True)))
    for run_id in idle:
        close(session, run_id)
    return idle


def latest(session: Session) -> Run | None:
    """The run that was started last."""
    return session.scalars(select(Run).order_by(Run.id.desc()).limit(1)).one_or_none()


def listed(session: Session, *, limit: int) -> Sequence[RowMapping]:
    """The last runs, newest first: when, how many studies, with which checkpoint."""
    counts = (Run.scored, Run.skipped, Run.quarantined, Run.films)
    chosen = select(Run.id, Run.kind, Run.started_at, Run.finished_at, *counts, Checkpoint.digest)
    newest = chosen.join(Checkpoint, Checkpoint.id == Run.checkpoint_id).order_by(Run.id.desc())
    return session.execute(newest.limit(limit)).mappings().all()
