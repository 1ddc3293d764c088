"""`nightread models`: the registry of checkpoints."""

from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.terminal.console import (
    DONE,
    SOME_LEFT_OUT,
    AsJson,
    Wide,
    open_context,
    open_engine,
    plausible_day,
    print_json,
    refuse,
    say,
)
from worker.wording import minute

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(no_args_is_help=True, help="Register, judge, promote and compare checkpoints.")

Digest = Annotated[str, typer.Argument(help="The digest's first characters, as `models list` shows them.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept with who and when.")]
CHECK_FIELDS = ("name", "subject", "films_from", "champion", "challenger", "difference", "low", "high", "bound",
                "result", "note")  # fmt: skip


@app.command("list")
def list_(wide: Wide = False, as_json: AsJson = False) -> None:
    """List the registered checkpoints, newest first."""
    from db import registry
    from db.session import read_scope
    from worker.terminal.listing import answer
    from worker.terminal.tables import checkpoints_table

    names = ("digest", "network", "state", "state_changed_at", "state_changed_by", "state_reason", "registered_at")
    with read_scope(open_engine()) as session:
        rows = [
            {name: getattr(row, name) for name in names} | {"purpose": row.header.get("purpose") or "real films"}
            for row in registry.everything(session)
        ]
    answer(rows, checkpoints_table(rows), as_json=as_json, wide=wide)


@app.command()
def add(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A checkpoint file.")]) -> None:
    """Register a checkpoint as a challenger.

    It is seen to work first; a copy is kept in the state folder.
    """
    from db.session import session_scope
    from worker.scoring.inference import prove

    context = open_context()
    prove(file)
    with session_scope(context.engine) as session:
        row = context.register(session, file)
        say(f"{row.short} is registered as {row.state}")


@app.command()
def judge(digest: Digest, as_json: AsJson = False) -> None:
    """Judge a registered checkpoint beside the champion.

    The films are confirmed ones of patients that nobody trains on. The verdict is kept; exit code 0 when it passed,
    1 when it was refused or left undecided.
    """
    from db import registry
    from db.session import read_scope
    from training.errors import TrainingFailed
    from worker.retraining.judging import judge_by_hand
    from worker.retraining.labels import CannotJudge

    context = open_context()
    with _registry_errors(CannotJudge, TrainingFailed):
        with read_scope(context.engine) as session:
            row = registry.by_digest(session, digest)
        judged = judge_by_hand(context, row)
    if as_json:
        _print_verdict_json(row.digest, judged.checks, result=judged.result)
    else:
        _print_checks(judged.checks)
        say(f"{row.short} {judged.reason}")
    raise typer.Exit(DONE if judged.result == "passed" else SOME_LEFT_OUT)


@app.command()
def verdict(digest: Digest, as_json: AsJson = False) -> None:
    """Show the last verdict of the gate on a checkpoint."""
    from db import gate, registry
    from db.session import read_scope

    with read_scope(open_engine()) as session:
        with _registry_errors():
            row = registry.by_digest(session, digest)
        found = gate.latest(session, row.id)
        if found is None:
            refuse("nobody has judged this checkpoint: `nightread models judge`")
        checks = gate.checks_of(session, found)
        if as_json:
            _print_verdict_json(row.digest, checks, result=found.result)
            return
        _print_checks(checks)
        judged = f"{found.result} on {minute(found.judged_at)} by {found.judged_by}"
        say(f"{judged}: {found.films} films of {found.patients} patients")
        if found.accepted_by is not None:
            say(f"accepted by {found.accepted_by}: {found.accepted_reason}")


def _print_checks(checks: "Sequence[Any]") -> None:
    from worker.terminal.listing import show
    from worker.terminal.tables import verdict_table

    show(verdict_table(checks))


def _print_verdict_json(digest: str, checks: "Sequence[Any]", *, result: str) -> None:
    lines = [{name: getattr(check, name) for name in CHECK_FIELDS} for check in checks]
    print_json({"digest": digest, "result": result, "checks": lines})


@app.command()
def promote(
    digest: Digest,
    reason: Reason,
    accept_undecided: Annotated[
        str | None, typer.Option(help="Why it goes live though the gate had too few films to decide; it is kept.")
    ] = None,
    override: Annotated[str | None, typer.Option(help="Why it goes live against the gate; it is kept.")] = None,
) -> None:
    """Make a checkpoint that passed the gate the one that ranks.

    Workers take it up between two batches. A checkpoint that the gate left undecided needs --accept-undecided with
    a reason; one that failed needs --override.
    """
    from db import registry
    from db.session import session_scope
    from worker.checkpoints import promotion

    context = open_context()
    with _registry_errors(promotion.NotPromoted), session_scope(context.engine) as session:
        row = registry.by_digest(session, digest)
        promotion.promote(context, session, row, reason=reason, override=override, accept_undecided=accept_undecided)
    say("promoted; `nightread rescore` scores what the old one has ranked")


@app.command()
def rollback(reason: Reason) -> None:
    """Go back to the champion before this one."""
    from db.session import session_scope
    from worker.checkpoints import promotion

    context = open_context()
    with _registry_errors(promotion.NotPromoted), session_scope(context.engine) as session:
        row = promotion.rollback(context, session, reason=reason)
    say(f"{row.short} ranks again")


@app.command()
def shadow(digest: Digest, reason: Reason) -> None:
    """Let a challenger score beside the champion.

    It sees the same films, and ranks nothing.
    """
    from db import registry
    from db.session import session_scope
    from worker.scoring.shadow import NoShadow, enter

    context = open_context()
    champion = context.live()
    with _registry_errors(NoShadow), session_scope(context.engine) as session:
        row = registry.by_digest(session, digest)
        enter(context, session, row, champion=champion, reason=reason)
    say(f"{row.short} is in shadow; `nightread models compare` shows what it would change")


@app.command()
def unshadow(reason: Reason) -> None:
    """End the shadow; what it saw is kept."""
    from db.session import session_scope
    from worker.scoring.shadow import NoShadow, leave

    with _registry_errors(NoShadow), session_scope(open_engine()) as session:
        row = leave(session, reason=reason)
    say(f"{row.short} is a challenger again")


@app.command()
def compare(
    digest: Annotated[
        str | None, typer.Argument(help="The digest's first characters; by default the shadow's.")
    ] = None,
    days: Annotated[float, typer.Option(min=0.1, metavar="N", help="Studies received in the last N days.")] = 7.0,
    night: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], callback=plausible_day, metavar="DATE", help="Only this night."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how another checkpoint would have ordered each night.

    Of the studies that it and the champion have seen.
    """
    from db import registry
    from db import shadow as rows
    from db.base import database_now
    from db.session import read_scope
    from worker.checkpoints.comparison import compare, pairs_by_night
    from worker.scoring.shadow import beside
    from worker.terminal.listing import answer
    from worker.terminal.tables import comparison_tables

    context = open_context()
    champion = context.live()
    with read_scope(context.engine) as session:
        with _registry_errors():
            row = registry.by_digest(session, digest) if digest else registry.shadow(session)
        if row is None or row.id == champion.checkpoint_id:
            refuse("name a checkpoint that does not rank: `nightread models list`; none is in shadow")
        studies = rows.of_night(session, f"{night:%Y-%m-%d}") if night else rows.of_days(session, days)
        nights = pairs_by_night(session, studies, champion, beside(context, row, champion))
        found = [compare(name, pairs, now=database_now(session)) for name, pairs in nights.items()]
    tables = comparison_tables(found, titles=("champion", row.short))
    answer(map(asdict, found), *tables, as_json=as_json)


def _registry_errors(*kinds: type[Exception]) -> AbstractContextManager[None]:
    """An unknown digest, and what else keeps a checkpoint from being used so, in one sentence."""
    from db.registry import UnknownCheckpoint
    from worker.terminal.refusals import usage_errors

    return usage_errors(UnknownCheckpoint, *kinds)
