"""Where the studies of an older policy stand: what another policy needs to place them again, batch by batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from db.base import rounded
from db.bulk import in_parts
from db.models import FINDING_COLUMNS, Checkpoint, FilmScore, Instance, StudyPriority


@dataclass(frozen=True)
class Placed:
    """One study as it was placed. `probabilities` in vocabulary order, (11,), or None when no film was scored."""

    study_id: int
    flag: str | None
    checkpoint_id: int | None
    probabilities: tuple[float, ...] | None


def ranking_checkpoints(session: Session) -> list[int]:
    """Ids of the checkpoints by whose scores some study is placed."""
    ids = select(StudyPriority.checkpoint_id).where(StudyPriority.checkpoint_id.is_not(None)).distinct()
    return [i for i in session.scalars(ids) if i is not None]


def checkpoint_headers(session: Session, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Headers of these checkpoints, by id: results may come from several."""
    rows = session.execute(select(Checkpoint.id, Checkpoint.header).where(Checkpoint.id.in_(set(ids))))
    return {row.id: row.header for row in rows}


def locked_batch(session: Session, *, policy_id: int, unread: bool, after: int, limit: int) -> list[Placed]:
    """The next studies, by id, that another policy placed, locked until commit so that no worker writes between."""
    ids = session.scalars(
        select(StudyPriority.study_id)
        .where(
            StudyPriority.read_at.is_(None) if unread else StudyPriority.read_at.is_not(None),
            StudyPriority.policy_id.is_distinct_from(policy_id),
            StudyPriority.study_id > after,
        )
        .order_by(StudyPriority.study_id)  # the order in which workers write too: no deadlock
        .limit(limit)
        .with_for_update()
    ).all()
    return placed_now(session, ids)


def placed_now(session: Session, ids: Sequence[int]) -> list[Placed]:
    """Studies as they are placed, by id."""
    return [_placed(row) for part in in_parts(sorted(ids)) for row in session.execute(_facts(part))]


def _facts(ids: Sequence[int]) -> Any:
    highest = [func.max(getattr(FilmScore, name)) for name in FINDING_COLUMNS]
    scored = and_(Instance.study_id == StudyPriority.study_id, Instance.state == "scored")
    same = and_(FilmScore.instance_id == Instance.id, FilmScore.checkpoint_id == StudyPriority.checkpoint_id)
    return (
        select(StudyPriority.study_id, StudyPriority.flag, StudyPriority.checkpoint_id, *highest)
        .outerjoin(Instance, scored)
        .outerjoin(FilmScore, same)
        .where(StudyPriority.study_id.in_(ids))
        .group_by(StudyPriority.study_id, StudyPriority.flag, StudyPriority.checkpoint_id)
        .order_by(StudyPriority.study_id)
    )


def _placed(row: Any) -> Placed:
    study_id, flag, checkpoint_id, *highest = row
    probabilities = None if highest[0] is None else tuple(map(rounded, highest))
    return Placed(study_id, flag, checkpoint_id if probabilities else None, probabilities)
