"""`nightread drift`: how far the films have moved from those that the checkpoint knows."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.terminal.console import DONE, SOME_LEFT_OUT, AsJson, open_context, plausible_day, refuse

if TYPE_CHECKING:
    from worker.monitoring.drift import Judged

app = typer.Typer()


@app.command()
def drift(
    day: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            callback=plausible_day,
            metavar="DATE",
            help="A day in UTC; without it: the last one on which studies came.",
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=366, metavar="N", help="Number of days to judge, ending with --day.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Judge a day's films beside those that the checkpoint knows.

    The figures are kept. Ends with 1 when the last day has drifted so far that somebody must act, else with 0.
    """
    from worker.monitoring.drift import ACT, daily, last_day
    from worker.terminal.listing import answer
    from worker.terminal.tables import drift_table

    context = open_context(log_level="warning")  # the table says it all
    last = last_day(context) if day is None else day.date()
    if last is None:
        refuse("no study is finished yet, so there is nothing to judge; `nightread status` counts what waits")
    judged = [daily(context, day=last - timedelta(days=back)) for back in reversed(range(days))]
    answer([_record(each) for each in judged], *(drift_table(each) for each in judged), as_json=as_json)
    raise typer.Exit(SOME_LEFT_OUT if judged[-1].level == ACT else DONE)


def _record(judged: "Judged") -> dict[str, Any]:
    return {
        "day": judged.day.isoformat(),
        "checkpoint_digest": judged.digest,
        "films": judged.films,
        "level": judged.level,
        "retrain": judged.retrain,
        "remarks": list(judged.remarks),
        "figures": [vars(figure) for figure in judged.figures],
    }
