"""Checkpoints by hand: which are known, which one ranks, and the way back."""

from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from db import gate, policies, registry
from db.models import Checkpoint, GateCheck, GateVerdict
from db.session import session_scope
from training.checkpoint import CheckpointError, UnsoundCheckpoint, read_header
from worker.context import Context, active_policy, actor
from worker.errors import Unavailable
from worker.ranking import policy
from worker.scoring.inference import prove

log = structlog.get_logger()


class NoSoundCheckpoint(Unavailable):
    """The checkpoint that ranks gives no probabilities, and there is none to go back to."""


class NotPromoted(ValueError):
    """The checkpoint cannot go live; the text says why."""


class Undecided(NotPromoted):
    """The gate had too few films to decide: a person may."""


def promote(
    context: Context,
    session: Session,
    row: Checkpoint,
    *,
    reason: str,
    override: str | None = None,
    accept_undecided: str | None = None,
) -> None:
    """Make a registered checkpoint the champion. Workers take it up between two batches, without a restart.

    It must be made for real films, and have passed the gate beside the champion of today, or have been champion before
    and not have failed beside it. What the gate left undecided goes live by a person's word, `accept_undecided`;
    anything else only against these rules, by an `override`. Both say why, and are kept. Its file is loaded and tried
    first, so that a damaged one changes nothing. Category A is a capacity, so the policy goes live in a new version
    with the threshold at which the new champion flags that share. Raises NotPromoted.
    """
    registry.lock_promotions(session)  # else another champion could come between the look at the verdict and the change
    session.refresh(row)
    verdict = gate.latest(session, row.id)
    objection = _objection(session, row, verdict)
    if isinstance(objection, Undecided) and accept_undecided is not None and verdict is not None:
        gate.accept(session, verdict, by=actor(), reason=accept_undecided)
        reason = f"{reason} (undecided by the gate, accepted: {accept_undecided})"
    elif objection is not None and override is None:
        raise objection
    elif objection is not None:
        reason = f"{reason} (against the gate: {override})"
    path = context.file_of(row)
    prove(path, digest=row.digest)
    registry.set_state(session, row, "champion", by=actor(), reason=reason)
    renew_policy(session, path, note=f"thresholds of checkpoint {row.short}")


def _objection(session: Session, row: Checkpoint, verdict: GateVerdict | None) -> NotPromoted | None:
    """Why the gate does not let this checkpoint through, or None. `verdict`: the last one on it."""
    champion, short = registry.champion(session), row.short
    if purpose := row.header.get("purpose"):
        return NotPromoted(f"checkpoint {short} must not rank real films; its only purpose: {purpose}")
    if champion is None:
        return None
    if row.id == champion.id:
        return NotPromoted(f"checkpoint {short} is the champion already")
    if row.state == "retired" and (verdict is None or verdict.champion_id != champion.id):
        return None
    if verdict is None:
        return NotPromoted(f"nobody has judged checkpoint {short}: `nightread models judge {short}`")
    if verdict.champion_id != champion.id:
        return NotPromoted(
            f"checkpoint {short} was judged beside another champion: `nightread models judge {short}` again"
        )
    names = ", ".join(_name(check) for check in gate.checks_with(session, verdict, verdict.result))
    if verdict.result == "failed":
        return NotPromoted(f"checkpoint {short} did not pass the gate: {names}")
    if verdict.result == "undecided":
        return Undecided(
            f"the gate had too few films to decide on checkpoint {short}: {names}. Look at `nightread models verdict "
            f'{short}`; to promote it all the same, add --accept-undecided "WHY"'
        )
    return None


def _name(check: GateCheck) -> str:
    needed = f" (about {check.positives_needed} positives needed)" if check.positives_needed else ""
    return f"{check.name} {check.subject}".strip() + needed


def renew_policy(session: Session, checkpoint: Path, *, note: str) -> None:
    """Activate the policy again with category A's threshold taken from `checkpoint`."""
    thresholds = read_header(checkpoint).cuts(policy.THRESHOLD)
    current = active_policy(session).policy
    stored = policy.store(session, policy.as_promoted(current), capacity=thresholds, by=actor(), note=note)
    policies.activate(session, stored, by=actor())


def rollback(context: Context, session: Session, *, reason: str) -> Checkpoint:
    """Make the last retired champion the champion again, whatever the gate said of it; today's is refused.

    So a second rollback goes one champion further back, and never to the one that was taken back. Raises NotPromoted
    where there is none.
    """
    registry.lock_promotions(session)
    taken_back, previous = registry.champion(session), registry.last_retired(session)
    if previous is None:
        raise NotPromoted("no checkpoint was champion before this one")
    promote(context, session, previous, reason=reason, override="a rollback")
    if taken_back is not None:
        registry.set_state(session, taken_back, "refused", by=actor(), reason=f"taken back: {reason}")
    return previous


def take_back(context: Context, unsound: UnsoundCheckpoint) -> None:
    """Go back from a champion that gives no probabilities to the last one that works; the other is refused.

    Where another process has done so already, nothing. Raises NoSoundCheckpoint.
    """
    if context.settings.checkpoint is not None:
        raise NoSoundCheckpoint(f"the checkpoint that NIGHTREAD_CHECKPOINT names cannot score: {unsound}. Name another")
    with session_scope(context.engine) as session:
        registry.lock_promotions(session)
        champion = registry.champion(session)
        if champion is None or champion.digest != unsound.digest:
            return
        reason = f"checkpoint {champion.short} was taken back: {unsound}"
        previous = next((row for row in registry.retired(session) if _goes_live(context, session, row, reason)), None)
        if previous is None:
            raise NoSoundCheckpoint(
                f"checkpoint {champion.short} cannot score: {unsound}. None before it can take its place; the studies "
                "wait. `nightread models add FILE`, then `nightread models promote`"
            )
        registry.set_state(session, champion, "refused", by=actor(), reason=f"taken back: {unsound}")
    log.error("checkpoint_taken_back", digest=champion.short, back_to=previous.short, reason=str(unsound))


def _goes_live(context: Context, session: Session, row: Checkpoint, reason: str) -> bool:
    try:
        promote(context, session, row, reason=reason, override="a rollback")
    except CheckpointError as error:
        log.error("checkpoint_refused", digest=row.short, error=type(error).__name__)
        return False
    return True
