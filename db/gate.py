"""The gate's verdicts: a challenger judged beside the champion of that day, line by line."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import audit
from db.base import database_now
from db.models import Checkpoint, GateCheck, GateVerdict


def record(session: Session, verdict: GateVerdict, checks: Iterable[Mapping[str, Any]]) -> GateVerdict:
    """Keep a verdict with its checks, which hold gate_check's columns."""
    verdict.judged_at = database_now(session)
    session.add(verdict)
    session.flush()
    session.add_all(GateCheck(verdict_id=verdict.id, **check) for check in checks)
    session.flush()
    return verdict


def accept(session: Session, verdict: GateVerdict, *, by: str, reason: str) -> None:
    """Record that a person takes an undecided verdict for passed, and why."""
    verdict.accepted_at, verdict.accepted_by, verdict.accepted_reason = database_now(session), by, reason
    digest = session.get_one(Checkpoint, verdict.challenger_id).digest
    open_checks = [f"{check.name} {check.subject}".strip() for check in checks_with(session, verdict, "undecided")]
    audit.record(session, actor=by, action="verdict accepted", digest=digest, verdict=verdict.id,
                 undecided=open_checks, reason=reason)  # fmt: skip


def latest(session: Session, challenger_id: int) -> GateVerdict | None:
    """The newest verdict on a checkpoint."""
    verdicts = select(GateVerdict).where(GateVerdict.challenger_id == challenger_id)
    return session.scalars(verdicts.order_by(GateVerdict.id.desc()).limit(1)).first()


def checks_of(session: Session, verdict: GateVerdict) -> Sequence[GateCheck]:
    """A verdict's lines in their order."""
    lines = select(GateCheck).where(GateCheck.verdict_id == verdict.id).order_by(GateCheck.number)
    return session.scalars(lines).all()


def checks_with(session: Session, verdict: GateVerdict, result: str) -> list[GateCheck]:
    """Those of a verdict's lines that have this result."""
    return [check for check in checks_of(session, verdict) if check.result == result]
