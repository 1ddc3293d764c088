"""`nightread pull`: fetch films from archives."""

from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.terminal.console import (
    SOME_LEFT_OUT,
    UNAVAILABLE,
    WRONG_USAGE,
    AsJson,
    open_context,
    plausible_day,
    print_json,
    refuse,
    say,
)
from worker.wording import counted

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from worker.context import Context
    from worker.dicom_network.pull import Pulled

app = typer.Typer()


def _day(meaning: str, name: str) -> Any:
    return typer.Option(name, formats=["%Y-%m-%d"], callback=plausible_day, metavar="DATE", help=meaning)


@app.command()
def pull(
    peers: Annotated[
        list[str] | None, typer.Argument(help="Peers to pull from; else those of NIGHTREAD_PULL_PEERS.")
    ] = None,
    first: Annotated[datetime | None, _day("First study date; else as the watermark says.", "--from")] = None,
    last: Annotated[datetime | None, _day("Last study date; else today.", "--to")] = None,
    between: Annotated[str | None, typer.Option(help="Only at these hours of the day, e.g. 22:00-06:00.")] = None,
    rate: Annotated[str | None, typer.Option(help="Maximum rate of films, e.g. 120/min, 2/s or 5000/h.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be fetched, and fetch nothing.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="List the studies that could not be fetched, and pull nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the frontal films that archives hold and this site does not.

    NIGHTREAD_PEERS names the archives. What is known is not fetched again, so the same command resumes a pull that was
    interrupted.
    """
    from worker.dicom_network.pull import Pace, Wish, planned, pull_each
    from worker.pacing import PaceError
    from worker.peers import peer_named
    from worker.queue.maintenance import notifier
    from worker.terminal.refusals import usage_errors

    context = open_context()
    context.seed()
    settings = context.settings
    names = dict.fromkeys(peers or settings.pull.peers)
    if not names:
        refuse("name a peer of NIGHTREAD_PEERS, or set NIGHTREAD_PULL_PEERS")
    if failed:
        _list_failed(context, list(names), as_json=as_json)
        return
    if first and last and first > last:
        refuse("--from is later than --to")
    with usage_errors(PaceError):
        pace = Pace.of(_or(between, settings.pull.between), _or(rate, settings.pull.rate), time_zone=settings.time_zone)
    wish = Wish(_date(first), _date(last), dry_run=dry_run)
    runs = [planned(context, peer_named(settings, name), wish) for name in names]
    try:
        pull_each(context, runs, wish, pace=pace, on_films=notifier(context))
    finally:  # what was done is said also where the database goes away, or somebody stops it
        _print(runs, dry_run=dry_run, as_json=as_json)
    _end(runs)


def _list_failed(context: "Context", peers: "Sequence[str]", *, as_json: bool) -> None:
    from db.pulls import unpulled
    from db.session import read_scope
    from worker.terminal.listing import answer
    from worker.terminal.tables import unpulled_table

    with read_scope(context.engine) as session:
        rows = unpulled(session, peers)
    answer(rows, unpulled_table(rows), as_json=as_json)


def _or(option: str | None, setting: str) -> str:
    return setting if option is None else option


def _date(moment: datetime | None) -> date | None:
    return None if moment is None else moment.date()


def _print(runs: "Sequence[Pulled]", *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json([run.as_json() for run in runs])
        return
    for run in runs:
        say(f"{run.peer.name}, {run.first} to {run.last}: {counted(run.studies, 'study', 'studies')} with "
            f"{counted(run.offered, 'film')}: {_counts(run, dry_run=dry_run)}.")  # fmt: skip


def _counts(run: "Pulled", *, dry_run: bool) -> str:
    """`40 fetched, 10 known, 12 left out (12 lateral view)`, and what failed."""
    done = f"{run.wanted:,} to fetch" if dry_run else f"{run.fetched:,} fetched"
    parts = [done, f"{run.known:,} known", f"{run.left_out.total():,} left out{_reasons(run.left_out)}"]
    if run.failed:
        parts.append(f"{run.failed.total():,} failed{_reasons(run.failed)}")
    return ", ".join(parts)


def _reasons(counts: "Counter[str]") -> str:
    found = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
    return f" ({found})" if found else ""


def _end(runs: "Sequence[Pulled]") -> None:
    """End the command by what went wrong, if anything did."""
    from worker.settings import WrongSettings

    errors = [run.error for run in runs if run.error is not None]
    if errors:
        wrong = any(isinstance(error, WrongSettings) for error in errors)
        refuse("; ".join(map(str, errors)), code=WRONG_USAGE if wrong else UNAVAILABLE)
    if any(run.failed for run in runs):
        raise typer.Exit(SOME_LEFT_OUT)
