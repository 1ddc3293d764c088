"""The gate's verdicts: a challenger judged beside the champion of that day, line by line."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import GateCheck, GateVerdict


def record(
    session: Session,
    checks: Sequence[Mapping[str, Any]],
    *,
    challenger_id: int,
    champion_id: int,
    training_run_id: int | None,
    gold_digest: str,
    films: int,
    patients: int,
    rules: dict[str, Any],
    by: str,
) -> GateVerdict:
    """Keep a verdict; it is passed when every check is. `checks` hold gate_check's columns."""
    verdict = GateVerdict(
        challenger_id=challenger_id,
        champion_id=champion_id,
        training_run_id=training_run_id,
        passed=bool(checks) and all(check["passed"] for check in checks),
        gold_digest=gold_digest,
        films=films,
        patients=patients,
        rules=rules,
        judged_at=database_now(session),
        judged_by=by,
    )
    session.add(verdict)
    session.flush()
    session.add_all(GateCheck(verdict_id=verdict.id, **check) for check in checks)
    session.flush()
    return verdict


def latest(session: Session, challenger_id: int, *, champion_id: int | None = None) -> GateVerdict | None:
    """The newest verdict on a checkpoint, if wanted only one beside this champion."""
    verdicts = select(GateVerdict).where(GateVerdict.challenger_id == challenger_id)
    if champion_id is not None:
        verdicts = verdicts.where(GateVerdict.champion_id == champion_id)
    return session.scalars(verdicts.order_by(GateVerdict.id.desc()).limit(1)).first()


def checks_of(session: Session, verdict: GateVerdict) -> Sequence[GateCheck]:
    """A verdict's lines in their order."""
    lines = select(GateCheck).where(GateCheck.verdict_id == verdict.id).order_by(GateCheck.number)
    return session.scalars(lines).all()
