"""`nightread simulate`: what a reading order buys, side by side."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.terminal.console import AsJson, open_context, require_place_for

if TYPE_CHECKING:
    from worker.context import Context
    from worker.simulation.simulate import Row

MAIN_GROUPS = ("all", "normal", "category A", "Pneumothorax", "Effusion", "Consolidation")  # that are shown by default

app = typer.Typer()


@app.command()
def simulate(
    department: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON: arrivals and reading rates by hour, readers."),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON: prevalences and operating points per finding."),
    ] = None,
    history: Annotated[
        int | None, typer.Option(min=1, max=36_500, metavar="DAYS", help="Replay this site's own last DAYS instead.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Simulated days per seed.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Independent repetitions.")] = 4,
    preemptive: Annotated[bool, typer.Option(help="A more urgent film interrupts a reading.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (.png, .svg or .pdf).")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every finding and category, not only the main groups.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate what a reading order buys.

    Minutes to the report, by finding, under several policies side by side.
    """
    from worker.simulation import plot as plotting
    from worker.simulation import simulate as simulation
    from worker.simulation.reading_room import SimulationError
    from worker.terminal.listing import answer
    from worker.terminal.refusals import usage_errors
    from worker.terminal.tables import simulation_table

    if plot is not None:
        require_place_for(plot)
    context = open_context()
    live = context.live()
    with usage_errors(SimulationError, plotting.PlotUnavailable):
        if history is not None:
            rows = _replayed(context, days=history)
        else:
            rows = simulation.simulate_files(
                policy=live.policy,
                department_file=department,
                cases_file=cases,
                aucs=live.header.training.get("auroc", {}),
                preemptive=preemptive,
                extent=simulation.Extent(days=days, seeds=seeds),
            )
        if plot is not None:
            plotting.plot(rows, plot)
    answer(
        simulation.as_records(rows), simulation_table(rows, groups=None if everything else MAIN_GROUPS), as_json=as_json
    )


def _replayed(context: "Context", *, days: int) -> "list[Row]":
    from db.base import database_now
    from db.session import read_scope
    from worker.simulation.replay import read_history, replay
    from worker.simulation.simulate import default_disciplines

    policy = context.live().policy
    with read_scope(context.engine) as session:
        since = database_now(session) - timedelta(days=days)
        return replay(read_history(session, since=since), disciplines=default_disciplines(policy))
