"""`nightread status`, `runs`, `requeue`, `prune`: where the studies stand, and what a person does about it."""

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from worker.terminal.console import (
    SOME_LEFT_OUT,
    AsJson,
    Wide,
    err,
    open_context,
    open_engine,
    plausible_day,
    print_json,
    refuse,
    say,
)
from worker.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Engine

    from db.retention import Prunable
    from worker.dicom_network.prune_films import OldFilms
    from worker.settings import Settings
    from worker.terminal.listing import Listing

app = typer.Typer()


@app.command()
def status(
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List the files that could not become an instance.")
    ] = False,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="List what failed: study, file, reason; for `requeue`.")
    ] = False,
    skipped: Annotated[bool, typer.Option("--skipped", help="List what is not scored by intent, and why.")] = False,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count every row anew first, and mend totals that were kept wrong.")
    ] = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Count the studies and films by their state, and say why.

    received = scored + skipped + quarantined + waiting, always.
    """
    from worker.terminal.tables import rejected_table

    if rejected + quarantined + skipped + recount > 1:
        raise typer.BadParameter("name one of --rejected, --quarantined, --skipped and --recount")
    engine = open_engine()
    if rejected:
        from db.session import read_scope
        from db.totals import rejected_files

        with read_scope(engine) as session:
            _print(rejected_files(session), rejected_table, wide=wide, as_json=as_json)
    elif quarantined or skipped:
        _print_set_aside(engine, "quarantined" if quarantined else "skipped", wide=wide, as_json=as_json)
    else:
        from worker.settings import read_settings

        if recount:
            _recount(engine)
        print_totals(engine, read_settings(), as_json=as_json)


def _recount(engine: "Engine") -> None:
    """Mend the totals that are kept. Refuses where states and films contradict each other, which no recount mends."""
    from db import totals
    from db.session import read_scope, session_scope

    with session_scope(engine) as session:
        wrong = totals.recount(session)
    with read_scope(engine) as session:
        contradictions = totals.read_totals(session).contradictions
    found = "the totals were right" if not wrong else f"{counted(wrong, 'total')} had been kept wrong, and are mended"
    err.print(f"counted anew: {found}", highlight=False, soft_wrap=True)
    if contradictions:
        refuse(f"the state of {counted(contradictions, 'study', 'studies')} contradicts its films: report this",
               code=SOME_LEFT_OUT)  # fmt: skip


def print_totals(engine: "Engine", settings: "Settings", *, as_json: bool) -> None:
    """Print how many studies came and where each stands, and whether other settings decided what is skipped."""
    from db.session import read_scope
    from db.totals import kept_totals
    from worker.intake.view_rules import outdated, outdated_hint
    from worker.terminal.listing import show
    from worker.terminal.tables import totals_table

    with read_scope(engine) as session:
        totals = kept_totals(session)
    others = outdated(engine, settings)
    if as_json:
        print_json(vars(totals) | {"balance": totals.balance, "skipped_under_other_settings": others})
    else:
        listing = totals_table(totals)
        listing.remarks = [outdated_hint(others)] if others else []
        show(listing)


def _print_set_aside(engine: "Engine", state: Literal["skipped", "quarantined"], *, wide: bool, as_json: bool) -> None:
    from db.session import read_scope
    from db.set_aside import set_aside
    from worker.terminal.tables import set_aside_table

    with read_scope(engine) as session:
        rows = set_aside(session, state)
    _print(rows, lambda found: set_aside_table(state, found), wide=wide, as_json=as_json)


def _print(
    rows: "Sequence[Mapping[Any, Any]]", table: "Callable[[Sequence[Mapping[str, Any]]], Listing]", *, wide: bool,
    as_json: bool,
) -> None:  # fmt: skip
    from worker.terminal.listing import answer

    found = [dict(row) for row in rows]
    answer(found, table(found), as_json=as_json, wide=wide)


@app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show at most N runs.")] = 20,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """List the last runs: workers' nights and each `score`.

    Their numbers are what `nightread report --run NUMBER` takes.
    """
    from db.runs import listed
    from db.session import read_scope
    from worker.terminal.tables import runs_table

    with read_scope(open_engine()) as session:
        _print(listed(session, limit=limit), runs_table, wide=wide, as_json=as_json)


@app.command()
def requeue(
    study: Annotated[str | None, typer.Option(metavar="UID", help="One Study Instance UID.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason, as `status` names it.")] = None,
) -> None:
    """Let quarantined studies try again."""
    from db import ledger, lookup
    from db.session import session_scope

    engine = open_engine()
    with session_scope(engine) as session:
        known = study is None or lookup.study_with_uid(session, study) is not None
        code = reason.replace(" ", "_") if reason else None
        ids = ledger.requeue(session, study_instance_uid=study, reason=code)
    if ids:
        verb = "waits" if len(ids) == 1 else "wait"
        say(f"{counted(len(ids), 'study', 'studies')} {verb} again; "
                  "`nightread score` or the next sweep takes them.")  # fmt: skip
    elif not known:
        refuse(f"no study has the UID {study!r}; `nightread status --quarantined` lists those that can be requeued")
    elif study is not None:
        refuse("this study has nothing in quarantine" + (f" with the reason {reason!r}" if reason else ""))
    elif reason is not None:
        refuse(f"nothing in quarantine has the reason {reason!r}; `nightread status --quarantined` lists what there is")
    else:
        say("Nothing is in quarantine.")


@app.command()
def prune(
    before: Annotated[
        datetime,
        typer.Option(
            formats=["%Y-%m-%d"], callback=plausible_day, metavar="DATE", help="Only what was received before this day."
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and delete nothing.")] = False,
    reviewed: Annotated[bool, typer.Option("--reviewed", help="Also studies that a radiologist reviewed.")] = False,
    unread: Annotated[bool, typer.Option("--unread", help="Also studies that nobody has read yet.")] = False,
    films_only: Annotated[
        bool, typer.Option("--films-only", help="Only the received films of these studies; their results stay.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking, as a script needs it.")] = False,
) -> None:
    """Delete finished studies received before a date.

    Their results go with them, and so do films in the receiver's folder and the pictures that the web page keeps; files
    elsewhere are not touched. Unread and reviewed studies are kept unless --unread or --reviewed is given. What still
    waits is always kept.
    """
    from worker.context import actor
    from worker.dicom_network.prune_films import prunable_films, prune_films
    from worker.retention import Pruning, prunable, prunable_pictures, prune_pictures
    from worker.retention import prune as delete

    context = open_context(log_level="warning")
    midnight = before.replace(tzinfo=context.settings.zone).astimezone()
    pruning = Pruning(midnight, reviewed=reviewed, unread=unread)
    found = None if films_only else prunable(context.engine, pruning)
    films, pictures = prunable_films(context, pruning, results_stay=films_only), prunable_pictures(context, pruning)
    words = _prunable_words(found, films, pictures)
    if dry_run:
        say(f"would go: {words}")
        return
    if not yes:
        _ask_to_delete(words)
    if not films_only:
        found = delete(context.engine, pruning, by=actor())
    films = prune_films(context, pruning, by=actor(), results_stay=films_only)
    pictures = prune_pictures(context, pruning, by=actor())
    say(f"gone: {_prunable_words(found, films, pictures)}")


def _prunable_words(found: "Prunable | None", films: "OldFilms", pictures: "Sequence[Path]") -> str:
    received = (f"{counted(len(films.paths), 'received film')} ({films.size_bytes / 2**20:,.0f} MB), "
                f"{counted(len(pictures), 'picture or page', 'pictures and pages')} of the web page")  # fmt: skip
    if found is None:
        return received
    of_them = f" ({found.unread:,} of them unread)" if found.unread else ""
    kept = f"; {counted(found.unread_kept, 'unread study', 'unread studies')} kept" if found.unread_kept else ""
    return (f"{counted(found.studies, 'study', 'studies')}{of_them} with {counted(found.instances, 'instance')}, "
            f"{counted(found.rejected_files, 'rejected file')}, {received}{kept}")  # fmt: skip


def _ask_to_delete(words: str) -> None:
    if not sys.stdin.isatty():
        refuse("nobody can be asked: look with --dry-run, then delete with --yes")
    if not typer.confirm(f"Delete {words}?", err=True):
        refuse("nothing was deleted")
