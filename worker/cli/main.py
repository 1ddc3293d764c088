"""The nightread command. Torch, Celery and pandas are imported by the commands that need them, not by `--help`."""

import csv
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from db.totals import read_totals
from training.checkpoint import CheckpointError
from training.cli import app as training
from worker import logs
from worker.cli import drift, read, receive, redecide, rescore, retrain, simulate
from worker.cli.models import app as models
from worker.cli.policy import app as policy
from worker.errors import Unavailable
from worker.settings import WrongSettings, read_settings
from worker.terminal.console import (
    DONE,
    SOME_LEFT_OUT,
    STOPPED,
    UNAVAILABLE,
    WRONG_USAGE,
    AsJson,
    err,
    open_context,
    out,
    print_json,
    progress,
    refuse,
)

app = typer.Typer(
    name="nightread",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with local variables would print headers
    help="Scores the night's chest films and says in SQL which to read first. Not a medical device.",
)
database = typer.Typer(no_args_is_help=True, help="The database's schema and roles.")
app.add_typer(database, name="db")
app.add_typer(training, name="train")
app.add_typer(models, name="models")
app.add_typer(policy, name="policy")
app.add_typer(receive.app)
read.register(app)
rescore.register(app)
redecide.register(app)
simulate.register(app)
retrain.register(app)
drift.register(app)

Paths = Annotated[list[Path], typer.Argument(help="Files or folders (searched to the bottom) that hold DICOM.")]


def main() -> None:
    """Run the command; what a person can mend is one line on standard error, not a traceback."""
    try:
        app()
    except WrongSettings as error:
        refuse(f"a setting is wrong: {error}")
    except ModuleNotFoundError as error:
        refuse(f"this command needs the package {error.name}: pip install 'nightread[train]'")
    except CheckpointError as error:
        refuse(f"checkpoint: {error}")
    except Unavailable as error:
        refuse(str(error), code=UNAVAILABLE)
    except (ArgumentError, NoSuchModuleError):
        refuse("NIGHTREAD_DATABASE_URL is no database URL: postgresql+psycopg://... or sqlite:///path")
    except DBAPIError as error:
        kind = type(error.orig).__name__
        refuse(f"the database does not answer or refuses ({kind}); see `nightread doctor`", code=UNAVAILABLE)
    except KeyboardInterrupt:
        refuse("stopped", code=STOPPED)
    except OSError as error:
        refuse(f"{error.strerror or type(error).__name__}: check the folders that the settings name", code=UNAVAILABLE)


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


def _receive(context: Any, paths: Sequence[Path]) -> Any:
    from worker.intake.receive import find_files, receive

    paths = _existing(paths)
    with progress("Reading headers", total=sum(1 for _ in find_files(paths))) as advance:
        return receive(context, paths, on_file=lambda: advance(1))


def _changed(received: Any) -> str:
    """A word on files that say or show something else than before."""
    return f" {received.changed} had changed and were taken over." if received.changed else ""


# ------------------------------------------------------------------------------------------------- the night's work


@app.command()
def score(paths: Paths) -> None:
    """Register and score everything at PATHS in this process: no broker, no worker."""
    from db.session import read_scope
    from worker.scoring.pipeline import open_scorer, score_until_done

    context = open_context(log_level="warning")  # a person watches the bar; a line per study would tear it apart
    received = _receive(context, paths)
    with read_scope(context.engine) as session:
        waiting = read_totals(session).waiting
    with open_scorer(context) as scorer, progress("Scoring studies", total=waiting) as advance:
        try:
            tally = score_until_done(scorer, on_settled=advance)
        except KeyboardInterrupt:
            refuse("stopped; what was scored is kept, and the next run goes on from here", code=STOPPED)
    out.print(f"{received.files} files: {received.new_instances} new instances, {received.known} known, "
              f"{received.rejected} rejected.{_changed(received)}")  # fmt: skip
    _print_books(context, as_json=False)
    raise typer.Exit(SOME_LEFT_OUT if tally.quarantined or tally.put_off else DONE)


@app.command()
def enqueue(
    paths: Paths,
    rate: Annotated[str | None, typer.Option(help="At most so many new studies: 120/min, 2/s or 5000/h.")] = None,
    between: Annotated[str | None, typer.Option(help="Only at these hours of the day, like 22:00-06:00.")] = None,
) -> None:
    """Register everything at PATHS and notify the workers: one message per study, a row id and nothing else."""
    from worker.intake.receive import find_files
    from worker.queue.app import make_app
    from worker.queue.backfill import BackfillError, backfill, studies_per_minute_of, window_of

    context, paths = open_context(), _existing(paths)
    try:
        pace = studies_per_minute_of(rate) if rate else None
        window = window_of(between) if between else None
    except BackfillError as error:
        raise typer.BadParameter(str(error)) from error
    celery = make_app(context.settings)
    with progress("Reading headers", total=sum(1 for _ in find_files(paths))) as advance:
        done = backfill(context, celery, paths, studies_per_minute=pace, window=window, on_file=lambda: advance(1))
    received = done.received
    out.print(f"{received.files} files: {received.new_instances} new instances of {len(received.studies)} studies, "
              f"{received.known} known, {received.rejected} rejected; {done.notified} messages sent."
              f"{_changed(received)}")  # fmt: skip
    if done.broker_away:
        refuse(
            "the broker does not answer. Nothing is lost: all is registered, and the next sweep sends the messages",
            code=UNAVAILABLE,
        )


@app.command()
def worker(
    queue: Annotated[str, typer.Option(help="scoring, or training: whose worker runs retrainings.")] = "scoring",
) -> None:
    """Take messages and score, until it is told to stop (SIGTERM gives back what is in flight)."""
    if queue == "training":
        from worker.queue.trainer import run_training_worker

        run_training_worker(open_context())
    elif queue == "scoring":
        from worker.queue.service import run_worker

        run_worker(open_context())
    else:
        raise typer.BadParameter("the queue is scoring or training")


@app.command()
def beat() -> None:
    """Send what is due: a sweep every few seconds. Two of them do no harm."""
    from worker.queue.beat import run_beat

    run_beat(open_context())


@app.command()
def requeue(
    study: Annotated[str | None, typer.Option(help="One Study Instance UID.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason, as `status` names it.")] = None,
) -> None:
    """Let quarantined studies try again."""
    from db import ledger
    from db.session import session_scope

    context = open_context()
    with session_scope(context.engine) as session:
        code = reason.replace(" ", "_") if reason else None
        ids = ledger.requeue(session, study_instance_uid=study, reason=code)
    if study is not None and not ids:
        refuse("this study has nothing in quarantine, or the database does not know it")
    out.print(f"{len(ids)} studies wait again; `nightread score` or the next sweep takes them.")


@app.command()
def prune(
    before: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Only what was received before this day.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and delete nothing.")] = False,
    reviewed: Annotated[bool, typer.Option("--reviewed", help="Also studies that a radiologist reviewed.")] = False,
) -> None:
    """Forget settled studies received before a day, with their results; what waits stays. The files are not touched."""
    from worker.retention import prune as forget

    gone = forget(open_context(), before=before.astimezone(), reviewed=reviewed, dry_run=dry_run)
    out.print(f"{'would go' if dry_run else 'gone'}: {gone.studies} studies ({gone.unread} of them unread) with "
              f"{gone.instances} instances, and {gone.rejected_files} rejected files.")  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the morning


@app.command()
def status(
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List the files that could not become an instance instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The totals: received = scored + skipped + quarantined + waiting, and why."""
    context = open_context()
    if rejected:
        _print_rejected(context, as_json=as_json)
    else:
        _print_books(context, as_json=as_json)


def _print_rejected(context: Any, *, as_json: bool) -> None:
    from db.session import read_scope
    from db.totals import rejected_files
    from worker.terminal.tables import rejected_table

    with read_scope(context.engine) as session:
        files = [dict(row) for row in rejected_files(session)]
    if as_json:
        print_json(files)
    else:
        out.print(rejected_table(files))


def _print_books(context: Any, *, as_json: bool) -> None:
    from db.session import read_scope
    from worker.terminal.tables import totals_table

    with read_scope(context.engine) as session:
        totals = read_totals(session)
    if as_json:
        print_json(vars(totals) | {"balance": totals.balance})
    else:
        out.print(totals_table(totals))


@app.command()
def worklist(
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """What to read first: the unread studies in reading order."""
    from db.session import read_scope
    from db.worklist import columns
    from db.worklist import worklist as read_worklist
    from worker.terminal.tables import worklist_table

    with read_scope(open_context().engine) as session:
        names, rows = columns(session), [dict(row) for row in read_worklist(session, limit=limit)]
    if as_json:
        print_json(rows)
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
    else:
        out.print(worklist_table(rows))


@app.command()
def report(
    run: Annotated[str, typer.Option(help="A run's number, or latest.")] = "latest",
    output: Annotated[Path, typer.Option(help="Where the page goes.", dir_okay=False)] = Path("morning.html"),
    top: Annotated[int, typer.Option(min=1, help="So many studies of the list's top.")] = 50,
) -> None:
    """Write the morning page: one HTML file with the list, its pictures and the totals."""
    from db.morning import NoSuchRun
    from worker.report.page import write_report

    try:
        out.print(f"{write_report(open_context(), run=run, output=output, top=top)}", soft_wrap=True)
    except NoSuchRun as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def explain(
    what: Annotated[str, typer.Argument(help="A file, a Study or SOP Instance UID, or an accession number.")],
    heatmap: Annotated[Path | None, typer.Option(help="Write Grad-CAM pictures of a film into this folder.")] = None,
    layers: Annotated[bool, typer.Option(help="With --heatmap: also every filter of every layer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Why a file is scored or not, or why a study stands where it stands."""
    from worker.explain import NothingToExplain, explain_file, explain_named
    from worker.terminal.tables import explained_tables

    context = open_context()
    try:
        found = explain_file(context, Path(what)) if os.path.isfile(what) else explain_named(context, what)  # noqa: PTH113
    except NothingToExplain as error:
        raise typer.BadParameter(str(error)) from error
    if heatmap is not None:
        from worker.explain import NoFilm, write_heatmaps

        try:
            for path in write_heatmaps(context, what, heatmap, layers=layers):
                err.print(f"wrote {path}", soft_wrap=True)
        except NoFilm as error:
            refuse(str(error))
    if as_json:
        print_json({"heading": found.heading, "facts": found.facts, "tables": found.tables, **found.structured})
    else:
        out.print(*explained_tables(found))


@app.command()
def doctor(
    role: Annotated[
        str | None, typer.Option(help="worker, beat, training or receiver: only whether its work gets on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check settings, database, schema, checkpoint, device, broker, clock and disk; exit 2 or 3 when one is wrong."""
    from worker.doctor import ROLES, CheckResult, examine, examine_role
    from worker.terminal.tables import doctor_table

    if role is not None and role not in ROLES:
        raise typer.BadParameter(f"the role is one of {', '.join(ROLES)}")
    failed = UNAVAILABLE
    try:
        context = open_context()
        results = list(examine(context) if role is None else examine_role(context, role))
    except WrongSettings as error:
        results, failed = [CheckResult("settings", False, str(error))], WRONG_USAGE
    if as_json:
        print_json([vars(result) for result in results])
    else:
        out.print(doctor_table(results))
    raise typer.Exit(DONE if all(result.ok for result in results) else failed)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the films, the database and the picture go.")] = Path("morning"),
) -> None:
    """Draw thirty phantom studies, score them, and show the morning they make."""
    from worker.demo.run import run_demo

    settings = read_settings()
    logs.configure(level="warning", style=settings.log.format)
    morning = run_demo(folder, settings=settings, console=Console())
    raise typer.Exit(SOME_LEFT_OUT if morning.surprises else DONE)


# ------------------------------------------------------------------------------------------------------ the database


@database.command("upgrade")
def db_upgrade() -> None:
    """Bring the database's schema up to this version."""
    from db import schema
    from db.session import make_engine

    engine = make_engine(read_settings().database_url)
    before = schema.current_revision(engine)
    try:
        schema.upgrade(engine)
    except schema.WrongEncoding as error:
        refuse(str(error), code=UNAVAILABLE)
    out.print(f"schema: {before or 'empty'} -> {schema.head_revision()}")


@database.command("roles")
def db_roles(
    password_dir: Annotated[Path, typer.Option(help="A folder with one file per role, named like it.")],
) -> None:
    """Make PostgreSQL's roles nightread_migrate, nightread_worker and nightread_reader, or change their passwords."""
    from db import roles
    from db.session import make_engine

    engine = make_engine(read_settings().database_url)
    if engine.dialect.name != "postgresql":
        raise typer.BadParameter("roles are PostgreSQL's; for SQLite the file's permissions decide")
    try:
        passwords = {role: (password_dir / role).read_text().strip() for role in roles.ROLES}
    except OSError as error:
        raise typer.BadParameter(f"cannot read a password file: {error.strerror}") from error
    roles.create_roles(engine, passwords)
    out.print(f"roles: {', '.join(roles.ROLES)}")


if __name__ == "__main__":
    main()
