"""Versions of the urgency policy: rows that are never edited, one of them active."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import Audit, PolicyFindingRow, PolicyRow


def active(session: Session) -> PolicyRow | None:
    """The policy that ranks now, or None in a new database."""
    return session.scalars(select(PolicyRow).where(PolicyRow.active)).one_or_none()


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
    session.flush()
    return policy


def activate(session: Session, policy: PolicyRow, *, by: str) -> None:
    """Make `policy` the one that ranks."""
    now = database_now(session)
    session.execute(update(PolicyRow).where(PolicyRow.active, PolicyRow.id != policy.id).values(active=False))
    policy.active, policy.activated_at, policy.activated_by = True, now, by
    session.add(Audit(at=now, actor=by, action="policy activated", detail={"version": policy.version}))
    session.flush()
