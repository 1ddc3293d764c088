"""`nightread deliver`: results on their way to other systems."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.terminal.console import AsJson, Wide, open_context, open_engine, refuse, say
from worker.wording import counted

if TYPE_CHECKING:
    from worker.context import Context

app = typer.Typer()

SHOWN = 1000


@app.command()
def deliver(
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Deliveries, for --retry.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List what is not sent yet, or was given up.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Let what failed or waits be due at once.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="With --list or --retry: all of them.")] = False,
    pause: Annotated[
        bool, typer.Option("--pause", help="Stop all deliveries at once, also between two sends.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let them go on.")] = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Send results to other systems until stopped.

    Needs no broker; with one, `nightread worker --queue delivery` does the same. NIGHTREAD_DELIVER_SR, _SC, _ORU and
    _FHIR name the peers that get results. With --list, --retry, --pause or --resume it does that instead.
    """
    if listing + retry + pause + resume > 1:
        raise typer.BadParameter("name one of --list, --retry, --pause and --resume")
    if listing:
        _list(everything=everything, wide=wide, as_json=as_json)
    elif retry:
        _retry(ids or [], everything=everything)
    elif pause or resume:
        _switch(paused=pause)
    else:
        _run()


def _list(*, everything: bool, wide: bool, as_json: bool) -> None:
    from db import deliveries
    from db.session import read_scope
    from worker.terminal.listing import answer
    from worker.terminal.tables import deliveries_table

    with read_scope(open_engine()) as session:
        rows = [dict(row) for row in deliveries.listed(session, everything=everything, limit=SHOWN)]
        paused = deliveries.is_paused(session)
    answer(rows, deliveries_table(rows, paused=paused), as_json=as_json, wide=wide)


def _retry(ids: list[int], *, everything: bool) -> None:
    from db import deliveries
    from db.session import session_scope
    from worker.context import actor

    if bool(ids) == everything:
        raise typer.BadParameter("name deliveries by their number, or all with --all")
    with session_scope(open_engine()) as session:
        count = deliveries.retry(session, None if everything else ids, by=actor())
    if ids and not count:
        refuse("none of these failed or waits, or a newer result has taken their place; see `nightread deliver --list`")
    say(f"{counted(count, 'delivery', 'deliveries')} due now.")


def _switch(*, paused: bool) -> None:
    from db import deliveries
    from db.session import session_scope
    from worker.context import actor

    with session_scope(open_engine()) as session:
        deliveries.set_paused(session, paused, by=actor())
    say("Deliveries are stopped; results wait in the outbox." if paused else "Deliveries go on.")


def _run() -> None:
    import signal
    import threading

    from worker.delivery import outbox

    context, stopping = _with_destinations(), threading.Event()
    outbox.destinations(context.settings)  # so that a wrong one fails here
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: stopping.set())
    outbox.run(context, should_stop=stopping.is_set)


def _with_destinations() -> "Context":
    context = open_context()
    if not context.settings.deliver.is_on:
        refuse("nothing is sent: NIGHTREAD_DELIVER_SR, _SC, _ORU or _FHIR must name a peer")
    return context
