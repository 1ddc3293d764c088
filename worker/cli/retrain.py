"""`nightread retrain`: what the schedule does, by hand."""

import signal
from typing import Annotated, NoReturn

import typer

from worker.terminal.console import DONE, SOME_LEFT_OUT, UNAVAILABLE, AsJson, err, open_context, print_json, say

app = typer.Typer()


@app.command()
def retrain(
    cause: Annotated[str, typer.Option(hidden=True, help="Who asks: hand, schedule, drift or resume.")] = "hand",
    as_json: AsJson = False,
) -> None:
    """Train a challenger from confirmed studies, and judge it.

    It is judged beside the champion. If it is interrupted or killed, the same command resumes it. Exit code 0: the
    challenger passed the gate, or there was nothing to train; 1: it was refused or left undecided, or the training
    failed; 3: another retraining is under way.
    """
    from db.training_runs import Busy, Lost
    from worker.retraining.run import in_background
    from worker.retraining.run import retrain as run
    from worker.terminal.listing import show
    from worker.terminal.refusals import usage_errors
    from worker.terminal.tables import verdict_table

    context = open_context(service=cause != "hand")
    in_background(context.settings.retrain.nice)
    # Also where a shell's "&" or cron made this process ignore SIGINT, by which a lost lease ends the work.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _stop)
    with usage_errors(Busy, Lost, code=UNAVAILABLE):
        outcome = run(context, cause=cause, say=lambda stage: err.print(stage, highlight=False))
    if outcome is None:
        err.print("nothing to resume")
        return
    if as_json:
        print_json(outcome.record())
    else:
        if outcome.judged is not None and cause == "hand":
            show(verdict_table(outcome.judged.checks))
        say(f"retraining {outcome.run_id} {outcome.state}: {outcome.reason}")
    raise typer.Exit(DONE if outcome.state in ("passed", "ended") else SOME_LEFT_OUT)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt
