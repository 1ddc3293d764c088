"""Does anything grow with the settled studies? Each question that the service and its people ask, at two sizes.

    python -m tests.benchmarks.archive_at_size --output record.json
    python -m tests.benchmarks.archive_at_size --sizes 100000 1000000 --waiting 100000

The archives have the same density (8640 studies a day), so the larger one only goes further back. Each is asked twice:
with nothing waiting, and with a backlog. The plans are PostgreSQL's own, of the statements that the service sends
(auto_explain), and a question grows where the larger archive makes it touch more pages: pages do not depend on what
else the machine does, as milliseconds do. Ten million studies take 17 GB and most of an hour.

PostgreSQL is started for this and removed at the end, or is the one of --url, where a superuser may make databases;
those stay, and are not filled again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Engine, event, make_url, text
from sqlalchemy.orm import Session

from db import deliveries, health, ledger, lookup, retention, runs, totals, training_runs, worklist
from db.base import database_now
from db.session import make_engine
from tests.benchmarks.archive_rows import Archive
from tests.benchmarks.machine import machine
from tests.support.contexts import seeded_context, site_settings
from training.checkpoint import SHIPPED
from worker.context import Context
from worker.doctor import examine_role
from worker.explain import explain_named
from worker.intake.view_rules import outdated
from worker.monitoring import drift
from worker.ranking import activation
from worker.report.page import write_report
from worker.scoring.leases import end_leases

AUTO_EXPLAIN = (
    "LOAD 'auto_explain'",
    "SET auto_explain.log_min_duration = 0",
    "SET auto_explain.log_analyze = on",
    "SET auto_explain.log_buffers = on",
    "SET auto_explain.log_timing = off",
    "SET auto_explain.log_format = json",
    "SET auto_explain.log_level = notice",
    "SET max_parallel_workers_per_gather = 0",  # figures of one core
)
GROWS = 1.5  # times as many pages
SPARE = 100  # pages that may come with a deeper index
FILM = "1.2.826.0.1.3680043.10.43.1.2."  # how UIDs of the archive's films begin

Question = Callable[[Session], object]


@dataclass
class Answer:
    """What one question cost: `pages` of 8 kB that the server touched, and the dearest statement's plan."""

    milliseconds: float
    pages: int
    statements: int
    plan: list[str] = field(default_factory=list)


def questions(context: Context, archive: Archive, folder: Path) -> Mapping[str, Question]:
    """All of them, by what a person would call them. What they write is rolled back, but for the day's drift."""
    engine, settings = context.engine, context.settings
    last_day = drift.last_day(context) or date.max
    newest = FILM + str(archive.settled - 1).zfill(18)

    def old(session: Session) -> dict[str, Any]:
        """The oldest 5000 studies, as a site's retention would reach them in one night."""
        return {"before": database_now(session) - timedelta(hours=1, seconds=10 * (archive.settled - 5000))}

    def sweep(session: Session) -> None:
        end_leases(session, settings)
        runs.close_idle(session, idle_minutes=settings.run_idle_minutes)
        totals.add_up(session)
        training_runs.forsaken(session)
        activation.catch_up(engine)
        ledger.studies_to_notify(session, renotify_minutes=settings.renotify_minutes, limit=100)

    def status(session: Session) -> None:
        totals.kept_totals(session)
        outdated(engine, settings)

    def publish(session: Session) -> None:
        deliveries.publishable(session, quiet_seconds=300, longest_minutes=60, max_age_hours=24, limit=20)

    return {
        "claim 16": lambda session: ledger.claim(session, worker="benchmark", studies=16, lease_minutes=1),
        "sweep": sweep,
        "end of a run": lambda session: runs.close(session, -(-archive.settled // 8640)),
        "is a received film registered": lambda session: lookup.recorded_paths(session, ["/films/new"]),
        "worklist, first page": lambda session: worklist.worklist(session, limit=50),
        "worklist, category B": lambda session: worklist.part(session, worklist.Filter("B"), offset=0, limit=50),
        "worklist, all of it": lambda session: sum(1 for _ in worklist.stream(session)),
        "explain": lambda _: explain_named(context, newest),
        "status": status,
        "status --quarantined": lambda session: _set_aside(session),
        "requeue": lambda session: ledger.requeue(session, reason="no_such_reason"),
        "metrics": health.health,
        "health check of a worker": lambda _: list(examine_role(context, "worker")),
        "health check of beat": lambda _: list(examine_role(context, "beat")),
        "an autoscaler's query": lambda session: session.scalar(text("SELECT studies FROM waiting_studies")),
        "publish": publish,
        "send": lambda session: deliveries.claim(session, worker="benchmark", lease_minutes=1),
        "deliver --list": lambda session: deliveries.listed(session, limit=50),
        "drift of a day": lambda _: drift.daily(context, day=last_day - timedelta(days=1)),
        "last day for drift": lambda _: drift.last_day(context),
        "report of the last run": lambda _: write_report(context, run="latest", output=folder / "page.html"),
        "prune --dry-run": lambda session: retention.prunable(session, **old(session)),
        "prune, 500 studies": lambda session: retention.prune_studies(session, limit=500, **old(session)),
        "prune, none left": lambda session: retention.prune_studies(
            session, limit=500, before=database_now(session) - timedelta(days=36_500)
        ),
    }


def _set_aside(session: Session) -> object:
    from db.set_aside import set_aside

    return set_aside(session, "quarantined", limit=21)


def ask(engine: Engine, plans: list[dict[str, Any]], question: Question) -> Answer:
    """Ask twice, the second time for the figures: pages that were read from disk once are no matter of size."""
    for _ in range(2):
        plans.clear()
        began = time.perf_counter()
        with Session(engine) as session:
            question(session)
            session.rollback()
        milliseconds = 1000 * (time.perf_counter() - began)
    pages = [_pages(plan["Plan"]) for plan in plans]
    dearest = max(zip(pages, range(len(plans)), strict=True), default=None)
    lines = [] if dearest is None else list(_lines(plans[dearest[1]]["Plan"]))
    return Answer(round(milliseconds, 1), sum(pages), len(plans), lines)


def _pages(node: Mapping[str, Any]) -> int:
    return sum(int(node.get(name, 0)) for name in ("Shared Hit Blocks", "Shared Read Blocks", "Temp Read Blocks"))


def _lines(node: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """A plan as lines: each node with what it reads, its rows (times its loops) and the pages in and below it."""
    what = [node["Node Type"], node.get("Index Name", ""), node.get("Relation Name", ""), node.get("Alias", "")]
    words = " ".join(dict.fromkeys(word for word in what if word))
    rows = f"{node['Actual Rows']:.0f}" + (f" x {node['Actual Loops']}" if node["Actual Loops"] != 1 else "")
    yield f"{'  ' * depth}{words}: {rows} rows, {_pages(node)} pages"
    for child in node.get("Plans", ()):
        yield from _lines(child, depth + 1)


@contextmanager
def watched(engine: Engine) -> Iterator[list[dict[str, Any]]]:
    """The plans of all statements of this engine, as they were carried out."""
    plans: list[dict[str, Any]] = []

    def note(diagnostic: Any) -> None:
        message = diagnostic.message_primary or ""
        if "plan:\n" in message:
            plans.append(json.loads(message.partition("plan:\n")[2]))

    def watch(connection: Any, _record: object) -> None:
        for statement in AUTO_EXPLAIN:
            connection.execute(statement)
        connection.commit()
        connection.add_notice_handler(note)

    event.listen(engine, "connect", watch)
    engine.dispose()
    try:
        yield plans
    finally:
        event.remove(engine, "connect", watch)
        engine.dispose()


def measure(server: str, archive: Archive, folder: Path, *, show_plans: bool) -> dict[str, dict[str, Answer]]:
    """The answers of one archive, by what waits and by question."""
    url = _database(server, f"archive_{archive.settled}")
    context = seeded_context(site_settings(folder, database_url=url), champion=SHIPPED)
    answers: dict[str, dict[str, Answer]] = {}
    for waits, fill in (("nothing waits", archive.add_settled), ("a backlog waits", archive.add_waiting)):
        began = time.monotonic()
        if not _holds(context.engine, archive.settled + (archive.waiting if waits.startswith("a") else 0)):
            fill(context.engine)
        print(f"{archive.settled:,} settled, {waits}: filled in {time.monotonic() - began:.0f} s", flush=True)
        answers[waits] = {}
        with watched(context.engine) as plans:
            for name, question in questions(context, archive, folder).items():
                answer = answers[waits][name] = ask(context.engine, plans, question)
                print(f"  {name:32} {answer.milliseconds:10.1f} ms {answer.pages:10,} pages", flush=True)
                if show_plans:
                    print(*(f"      {line}" for line in answer.plan), sep="\n", flush=True)
    context.engine.dispose()
    return answers


def _holds(engine: Engine, studies: int) -> bool:
    with engine.connect() as connection:
        return (connection.scalar(text("SELECT max(id) FROM study")) or 0) >= studies


def _database(server: str, name: str) -> str:
    engine = make_engine(server)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(text("SELECT count(*) FROM pg_database WHERE datname = :name"), {"name": name}):
            connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def compared(smaller: Answer, larger: Answer) -> dict[str, Any]:
    """Two answers side by side; with the plans where the larger archive costs more pages."""
    grows = larger.pages > GROWS * smaller.pages + SPARE
    plans = {"plan": smaller.plan, "plan_at_size": larger.plan} if grows else {}
    figures = {"milliseconds": [smaller.milliseconds, larger.milliseconds], "pages": [smaller.pages, larger.pages]}
    return {**figures, "statements": larger.statements, "grows": grows, **plans}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=(1_000_000, 10_000_000), metavar="STUDIES")
    parser.add_argument("--unread", type=int, default=100_000)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--url", help="a PostgreSQL server instead of one made for this")
    parser.add_argument("--plans", action="store_true", help="print the dearest plan of each question")
    parser.add_argument("--output", type=Path, help="write the record here as JSON")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        server = arguments.url or stack.enter_context(_server())
        archives = [Archive(size, arguments.unread, arguments.waiting) for size in arguments.sizes]
        small, large = (measure(server, archive, folder, show_plans=arguments.plans) for archive in archives)
    asked = {
        waits: {name: compared(answer, large[waits][name]) for name, answer in answers.items()}
        for waits, answers in small.items()
    }
    record = {"machine": machine(), "archives": [asdict(archive) for archive in archives], "questions": asked}
    grown = [f"{name} ({waits})" for waits, each in asked.items() for name in each if each[name]["grows"]]
    print(f"grow with the settled studies: {', '.join(grown) or 'none'}")
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


@contextmanager
def _server() -> Iterator[str]:
    from tests.support.servers import PostgresServer

    settings = {"shared_buffers": "2GB", "max_wal_size": "2GB", "maintenance_work_mem": "512MB"}
    with PostgresServer(settings=settings) as server:
        yield server.url


if __name__ == "__main__":
    main()
