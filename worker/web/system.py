"""The state of the system, for administrators: what came and where it stands, what failed, what ranks and why."""

import os
from typing import Any

from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from db import audit, drift, gate, ledger, policies, registry, runs, set_aside, users
from db.models import Checkpoint
from db.morning import NoSuchRun, run_named
from db.session import read_scope, session_scope
from db.totals import read_totals
from worker.report.page import write_report
from worker.web.requests import Visit, see_other, whole_number

RUNS, CHECKPOINTS, AUDITED, QUARANTINED = 14, 20, 50, 200  # rows shown
REVIEW_FIRST = (
    "The morning page shows the scores of all studies, and on this site a review comes before them. "
    "For whoever does not review, `nightread report` makes it."
)
# The morning page brings its style and its pictures within itself.
MORNING_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def show(visit: Visit) -> Response:
    """The page."""
    requeued = whole_number(visit.request.query_params.get("requeued"))
    with read_scope(visit.engine) as session:
        active = policies.active(session)
        quarantined = set_aside.set_aside(session, "quarantined", limit=QUARANTINED + 1)
        names: dict[str, Any] = {
            "totals": read_totals(session),
            "quarantined": quarantined[:QUARANTINED],
            "more_quarantined": len(quarantined) > QUARANTINED,
            "runs": runs.listed(session, limit=RUNS),
            "drift": drift.latest(session),
            "checkpoints": [(row, *_verdict(session, row)) for row in registry.everything(session)[:CHECKPOINTS]],
            "policy": active,
            "findings": [] if active is None else policies.findings_of(session, active),
            "users": users.everyone(session),
            "audited": audit.latest(session, limit=AUDITED),
        }
    return visit.page("system.html.j2", requeued=requeued, **names)


def _verdict(session: Session, row: Checkpoint) -> tuple[Any, Any]:
    """The gate's last word on a checkpoint, and its lines; (None, []) where it was never judged."""
    verdict = gate.latest(session, row.id)
    return verdict, [] if verdict is None else gate.checks_of(session, verdict)


def requeue(visit: Visit) -> Response:
    """Quarantined studies try again: one, or those with one reason."""
    uid, reason = visit.form.get("study_instance_uid") or None, visit.form.get("reason") or None
    if uid is None and reason is None:  # a form that names nothing must not mean everything
        raise HTTPException(400, "Name the study, or the reason, to requeue.")
    with session_scope(visit.engine) as session:
        ids = ledger.requeue(session, study_instance_uid=uid, reason=reason)
        audit.record(session, actor=visit.me.name, action="requeued", study_ids=ids, reason=reason)
    return see_other(f"/system?requeued={len(ids)}#quarantine")


def morning_page(visit: Visit) -> Response:
    """The morning page of a run, kept once the run has ended; each look is noted."""
    number, context = str(visit.number("run_id")), visit.site.context
    if context.settings.web.review_first:
        raise HTTPException(403, REVIEW_FIRST)
    with session_scope(context.engine) as session:
        try:
            ended = run_named(session, number).finished_at
        except NoSuchRun:
            raise HTTPException(404) from None
        audit.record(session, actor=visit.me.name, action="morning page viewed", run=int(number))
    kept = context.pictures_folder / f"run-{number}{'' if ended else '-open'}.html"
    if not (ended and kept.exists()):
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_report(context, run=number, output=kept)
        if ended:  # it is as old as its run, for `nightread prune`
            os.utime(kept, (ended.timestamp(), ended.timestamp()))
    response = HTMLResponse(kept.read_text(encoding="utf-8"))
    response.headers["Content-Security-Policy"] = MORNING_POLICY
    return response
