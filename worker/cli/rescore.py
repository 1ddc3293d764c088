"""`nightread rescore`: what another checkpoint ranked, by the one that is live."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from worker.terminal.console import (
    DONE,
    SOME_LEFT_OUT,
    STOPPED,
    AsJson,
    err,
    open_context,
    print_json,
    progress,
    refuse,
    say,
)
from worker.wording import counted

if TYPE_CHECKING:
    from worker.context import Context, Live

app = typer.Typer()


@app.command()
def rescore(
    checkpoint: Annotated[str | None, typer.Option(metavar="DIGEST", help="Only look, with this checkpoint.")] = None,
    read: Annotated[bool, typer.Option("--read", help="Also studies that have been read.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Move the studies to their new places without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score again what another checkpoint has ranked.

    Shows how ranks would move, and moves them if that is wanted. Nothing on the worklist changes before. What has
    been looked at is kept: a second run goes on from there.
    """
    from worker.checkpoints import rescoring
    from worker.terminal.listing import show
    from worker.terminal.refusals import usage_errors
    from worker.terminal.tables import comparison_tables

    context = open_context(log_level="warning")
    ranking, looking = _checkpoints(context, checkpoint)
    if live and looking is not ranking:
        refuse("--live is for the checkpoint that ranks: promote this one first")
    left = _look(context, looking, read=read)
    found = rescoring.preview(context, looking, read=read)
    if not as_json:
        titles = ("as it stands", f"with {looking.short}")
        show(*comparison_tables([found], titles=titles))
    if left:
        err.print(f"{counted(left, 'film')} could not be read or changed; the studies stay where they are.")
    moved = None
    if looking is ranking and (live or _agreed()):
        with usage_errors(rescoring.NotLive):
            moved = rescoring.make_live(context, looking, read=read)
    if as_json:
        print_json(asdict(found) | {"live": asdict(moved) if moved else None, "films_left_out": left})
    elif moved is not None:
        say(f"{counted(moved.moved, 'study', 'studies')} moved; {moved.left_out:,} left out.")
    else:
        say("Nothing has moved." + (" `nightread rescore --live` does it." if looking is ranking else ""))
    raise typer.Exit(SOME_LEFT_OUT if left else DONE)


def _look(context: "Context", looking: "Live", *, read: bool) -> int:
    """Look at the films that this checkpoint has not seen; returns how many it still has not."""
    from worker.checkpoints import rescoring

    films = rescoring.to_see(context, looking, read=read)
    if not films:
        return 0
    try:
        with progress("Looking at films", total=films) as advance:
            rescoring.look(context, looking, read=read, on_films=advance)
    except KeyboardInterrupt:
        refuse("stopped; what was looked at is kept, and the next run goes on from here", code=STOPPED)
    return rescoring.to_see(context, looking, read=read)


def _checkpoints(context: "Context", digest: str | None) -> "tuple[Live, Live]":
    """The live checkpoint, and the one to score with: the same, or the registered one with this digest."""
    from db import registry
    from db.session import read_scope
    from worker.scoring.shadow import beside
    from worker.terminal.refusals import usage_errors

    ranking = context.live()
    if digest is None:
        return ranking, ranking
    with usage_errors(registry.UnknownCheckpoint), read_scope(context.engine) as session:
        return ranking, beside(context, registry.by_digest(session, digest), ranking)


def _agreed() -> bool:
    """Ask a person at a terminal; a program that reads the output is not asked, and has not agreed."""
    return sys.stdin.isatty() and sys.stdout.isatty() and typer.confirm("Move the studies to their new places?")
