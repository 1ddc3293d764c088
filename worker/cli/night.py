"""`nightread score`, `enqueue`, `worker`, `beat`: the night's work."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.terminal.console import DONE, SOME_LEFT_OUT, STOPPED, UNAVAILABLE, open_context, progress, refuse, say
from worker.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.context import Context
    from worker.intake.receive import Received
    from worker.scoring.recording import Tally

app = typer.Typer()

Paths = Annotated[list[Path], typer.Argument(help="Files or folders (searched to the bottom) that hold DICOM.")]


@app.command()
def score(paths: Paths) -> None:
    """Register and score everything at PATHS, without a broker."""
    from db.session import read_scope
    from db.totals import kept_totals
    from worker.cli.ledger import print_totals

    paths = _existing(paths)
    context = open_context(log_level="warning", create=True)  # a line per study would tear the progress bar apart
    context.seed()
    _check_destinations(context)
    received = _receive(context, paths)
    with read_scope(context.engine) as session:
        waiting = kept_totals(session).waiting
    with progress("Scoring studies", total=waiting) as advance:
        try:
            tally = _scored(context, on_settled=advance)
        except KeyboardInterrupt:
            refuse("stopped. What was scored is kept; the next run goes on from there", code=STOPPED)
    say(f"{counted(received.files, 'file')}: {counted(received.new_instances, 'new instance')}, "
              f"{received.known} known, {received.rejected} rejected.{_changed(received)}{_copies(tally)}")  # fmt: skip
    print_totals(context.engine, context.settings, as_json=False)
    _deliver(context)
    _refuse_if_nothing_was_dicom(received)
    raise typer.Exit(SOME_LEFT_OUT if tally.quarantined or tally.put_off else DONE)


def _scored(context: "Context", *, on_settled: "Callable[[int], None]") -> "Tally":
    """Score until nothing waits; by the checkpoint before, where the one that ranks gives no probabilities."""
    from training.checkpoint import UnsoundCheckpoint
    from worker.checkpoints.promotion import take_back
    from worker.scoring.pipeline import score_until_done
    from worker.scoring.scorer import open_scorer

    while True:
        try:
            with open_scorer(context) as scorer:
                return score_until_done(scorer, on_settled=on_settled)
        except UnsoundCheckpoint as unsound:
            take_back(context, unsound)


def _check_destinations(context: "Context") -> None:
    """Refuse destinations that cannot be meant before the work is done."""
    if context.settings.deliver.is_on:
        from worker.delivery.outbox import destinations

        destinations(context.settings)


def _deliver(context: "Context") -> None:
    """Send the results of what was just scored, where the settings say to whom."""
    if not context.settings.deliver.is_on:
        return
    from worker.delivery.outbox import finish

    sent = finish(context)
    say(f"{counted(sent, 'result')} sent; `nightread deliver --list` shows what waits.")


@app.command()
def enqueue(
    paths: Paths,
    rate: Annotated[str | None, typer.Option(help="Maximum rate of new studies, e.g. 120/min, 2/s or 5000/h.")] = None,
    between: Annotated[str | None, typer.Option(help="Only at these hours of the day, e.g. 22:00-06:00.")] = None,
) -> None:
    """Register everything at PATHS and notify the workers.

    One message per study, a row id and nothing else.
    """
    from worker.pacing import PaceError, per_minute_of, window_of
    from worker.queue.app import make_app
    from worker.queue.backfill import Pace, backfill
    from worker.terminal.refusals import usage_errors

    paths, context = _existing(paths), open_context()
    with usage_errors(PaceError):
        pace = Pace(per_minute_of(rate) if rate else None, window_of(between) if between else None)
    celery = make_app(context.settings)
    with progress("Reading headers", total=None) as advance:  # counted first, a year's folders would be walked twice
        done = backfill(context, celery, paths, pace=pace, on_file=lambda: advance(1))
    received = done.received
    say(f"{counted(received.files, 'file')}: {counted(received.new_instances, 'new instance')} of "
              f"{counted(len(received.studies), 'study', 'studies')}, {received.known} known, "
              f"{received.rejected} rejected; {counted(done.notified, 'message')} sent."
              f"{_changed(received)}")  # fmt: skip
    if done.broker_away:
        refuse(
            "the broker does not answer. Nothing is lost: all is registered, and the next sweep sends the messages",
            code=UNAVAILABLE,
        )
    _refuse_if_nothing_was_dicom(received)


@app.command()
def worker(
    queue: Annotated[
        str,
        typer.Option(help="scoring; training, which runs retrainings; delivery, which sends results; or pulling."),
    ] = "scoring",
) -> None:
    """Take messages and score until stopped.

    SIGTERM gives back what is in flight.
    """
    if queue == "training":
        from worker.queue.trainer import run_training_worker

        run_training_worker(open_context(service=True))
    elif queue == "delivery":
        from worker.queue.deliverer import run_delivery_worker

        run_delivery_worker(open_context(service=True))
    elif queue == "pulling":
        from worker.queue.puller import run_pulling_worker

        run_pulling_worker(open_context(service=True))
    elif queue == "scoring":
        from worker.queue.service import run_worker

        run_worker(open_context(service=True))
    else:
        raise typer.BadParameter("the queue is scoring, training, delivery or pulling")


@app.command()
def beat() -> None:
    """Send what is due, by the schedules of the settings.

    A sweep every few seconds, drift and retraining. Two of them do no harm.
    """
    from worker.queue.beat import run_beat

    run_beat(open_context(service=True))


def _existing(paths: Sequence[Path]) -> list[Path]:
    """The paths, each once and none that lies in another, so that no file is counted twice."""
    for path in paths:
        try:
            path.lstat()
        except FileNotFoundError as error:
            raise typer.BadParameter(f"{path} does not exist") from error
        except OSError as error:
            raise typer.BadParameter(f"cannot look at this path: {error.strerror}") from error
    real = dict.fromkeys(Path(os.path.realpath(path)) for path in paths)
    return [path for path in real if real.keys().isdisjoint(path.parents)]


def _receive(context: "Context", paths: Sequence[Path]) -> "Received":
    from worker.intake.receive import find_files, receive

    with progress("Reading headers", total=sum(1 for _ in find_files(paths))) as advance:
        return receive(context, paths, on_file=lambda: advance(1))


def _changed(received: "Received") -> str:
    """A word on files that say or show something else than before."""
    return f" {counted(received.changed, 'changed file')} taken over." if received.changed else ""


def _copies(tally: "Tally") -> str:
    """A word on rejected files that `status` no longer counts among the rejected."""
    tried = tally.copies_tried
    if not tried:
        return ""
    return f" {counted(tried, 'rejected copy', 'rejected copies')} took the place of a film that failed."


def _refuse_if_nothing_was_dicom(received: "Received") -> None:
    if received.rejected and not received.new_instances and not received.known:
        refuse(f"none of {counted(received.files, 'file')} can be scored; `nightread status --rejected` says why")
    if not received.files:
        refuse("no file lies at these paths")
