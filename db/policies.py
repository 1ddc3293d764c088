"""Versions of the urgency policy: rows that are never edited, one of them active."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db import audit
from db.base import DocumentedError, database_now
from db.models import FilmScore, PolicyFindingRow, PolicyRow


class UnknownPolicy(DocumentedError, LookupError):
    """No policy has this version; `nightread policy show --all` lists those there are."""


def active(session: Session) -> PolicyRow | None:
    """The policy that ranks now, or None in a new database."""
    return session.scalars(select(PolicyRow).where(PolicyRow.active)).one_or_none()


def max_wait(session: Session) -> timedelta:
    """After how long a study is overdue; twelve hours where no policy is active yet, as in the views."""
    return timedelta(minutes=session.scalar(select(PolicyRow.max_wait_minutes).where(PolicyRow.active)) or 720)


def by_id(session: Session, policy_id: int) -> PolicyRow:
    """The version of a row that names it."""
    return session.get_one(PolicyRow, policy_id)


def by_version(session: Session, version: int) -> PolicyRow:
    """The policy with this version number. Raises UnknownPolicy."""
    found = session.scalars(select(PolicyRow).where(PolicyRow.version == version)).one_or_none()
    if found is None:
        raise UnknownPolicy
    return found


def versions(session: Session) -> Sequence[PolicyRow]:
    """Every version, the newest first."""
    return session.scalars(select(PolicyRow).order_by(PolicyRow.version.desc())).all()


def findings_of(session: Session, policy: PolicyRow) -> Sequence[PolicyFindingRow]:
    """A policy's lines, in the order of the vocabulary."""
    rows = select(PolicyFindingRow).where(PolicyFindingRow.policy_id == policy.id).order_by(PolicyFindingRow.id)
    return session.scalars(rows).all()


def add(
    session: Session,
    *,
    findings: Sequence[dict[str, Any]],
    max_wait_minutes: int,
    category_a_share: float,
    by: str,
    note: str,
) -> PolicyRow:
    """Store a new version, not yet active; `findings` hold column values of policy_finding."""
    policy = PolicyRow(
        version=(session.scalar(select(func.max(PolicyRow.version))) or 0) + 1,
        active=False,
        max_wait_minutes=max_wait_minutes,
        category_a_share=category_a_share,
        created_at=database_now(session),
        created_by=by,
        note=note,
    )
    session.add(policy)
    session.flush()
    session.add_all(PolicyFindingRow(policy_id=policy.id, **row) for row in findings)
    audit.record(session, actor=by, action="policy created", version=policy.version, note=note)
    session.flush()
    return policy


def activate(session: Session, policy: PolicyRow, *, by: str) -> None:
    """Make `policy` the one that ranks."""
    session.execute(update(PolicyRow).where(PolicyRow.active, PolicyRow.id != policy.id).values(active=False))
    policy.active, policy.activated_at, policy.activated_by = True, database_now(session), by
    audit.record(session, actor=by, action="policy activated", version=policy.version)
    session.flush()


def recent_probabilities(session: Session, *, finding_column: str, checkpoint_id: int, weeks: float) -> Sequence[float]:
    """One finding's probabilities of every film that a checkpoint scored in the last weeks."""
    since = database_now(session) - timedelta(weeks=weeks)
    column = getattr(FilmScore, finding_column)
    films = select(column).where(FilmScore.checkpoint_id == checkpoint_id, FilmScore.scored_at >= since)
    return session.scalars(films).all()
