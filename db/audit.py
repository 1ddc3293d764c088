"""The audit: who changed what and who looked at which study, when. Rows are only ever added."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import Audit


def record(session: Session, *, actor: str, action: str, **detail: Any) -> None:
    """Note what somebody did."""
    session.add(Audit(at=database_now(session), actor=actor, action=action, detail=detail))


def latest(session: Session, *, limit: int) -> Sequence[Audit]:
    """The last rows, newest first."""
    return session.scalars(select(Audit).order_by(Audit.id.desc()).limit(limit)).all()
