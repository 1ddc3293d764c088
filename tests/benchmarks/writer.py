"""How fast a night's results are committed: films, priorities and outcomes in batches, as the service writes them.

    python -m tests.benchmarks.writer --films 20000 --batch 300

Three figures in films/s on PostgreSQL: the service's statements; the same without the two indexes that hold the reading
order, which is what they cost; and COPY of the same scores and priorities into bare tables, which nothing can beat.
"""

import argparse
import io
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil
from sqlalchemy import Engine, text

from db import ledger, results, schema
from db.ledger import ClaimedFilm, ClaimedStudy, Outcome
from db.models import FINDING_COLUMNS
from db.results import FilmResult, PriorityResult
from db.session import make_engine, session_scope
from tests.support.servers import PostgresServer

WORKER = "benchmark"
SETUP = """
    INSERT INTO policy (id, version, active, max_wait_minutes, category_a_share, created_at, created_by)
        VALUES (1, 1, true, 720, 0.1, now(), 'benchmark');
    INSERT INTO checkpoint (id, digest, path, network, state, state_changed_at, state_changed_by, header, registered_at)
        VALUES (1, 'c', '/', 'mobilenet', 'champion', now(), 'benchmark', '{}', now());
    INSERT INTO run (id, kind, started_at, checkpoint_id, policy_id, settings, scored, skipped, quarantined, films)
        VALUES (1, 'night', now(), 1, 1, '{}', 0, 0, 0, 0);
"""
NIGHT = """
    TRUNCATE study CASCADE;
    INSERT INTO study (id, study_instance_uid, accession_number, stat, received_at, state, revision, attempts, suspect,
                       claimed_by, lease_expires_at)
        SELECT id, '2.25.' || id, 'N' || id, false, now(), 'claimed', 1, 1, false,
               'benchmark', now() + interval '1 hour'
        FROM generate_series(1, {films}) id;
    INSERT INTO instance (id, study_id, sop_instance_uid, path, view, state, in_scope, received_at)
        SELECT id, id, '2.25.1.' || id, '/films/' || id, 'PA', 'waiting', true, now()
        FROM generate_series(1, {films}) id;
    INSERT INTO study_priority (study_id, stat, received_at, category, category_a, urgency, flag, policy_id, ranked_at)
        SELECT id, false, now(), 'B', false, 0.4, 'not_scored', 1, now() FROM generate_series(1, {films}) id;
"""
BARE = """
    DROP TABLE IF EXISTS bare_score; CREATE TABLE bare_score AS SELECT * FROM film_score WITH NO DATA;
    DROP TABLE IF EXISTS bare_priority; CREATE TABLE bare_priority AS SELECT * FROM study_priority WITH NO DATA;
"""


INDEXES = {
    "without the indexes of the reading order": """
        DROP INDEX ix_study_priority_order; DROP INDEX ix_study_priority_oldest;""",
    "with them": """
        CREATE INDEX ix_study_priority_order ON study_priority
            (stat DESC, category_a DESC, urgency DESC, received_at, study_id, read_at) WHERE read_at IS NULL;
        CREATE INDEX ix_study_priority_oldest ON study_priority
            (stat DESC, received_at, category_a DESC, urgency DESC, study_id, read_at) WHERE read_at IS NULL;""",
}


class Rate(NamedTuple):
    """Films per second, by the clock and by the processor time of client and server together.

    The two take turns, so on a machine with nothing else to do both are the same.
    """

    by_clock: float
    by_processor: float


def run(engine: Engine, script: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT", no_parameters=True) as connection:
        connection.exec_driver_sql(script)


def night(films: int) -> list[tuple[Outcome, FilmResult, PriorityResult]]:
    """Results of `films` studies of one film each, as a worker is about to record them."""
    dice = random.Random(1)
    held = []
    for number in range(1, films + 1):
        film = ClaimedFilm(number, f"2.25.1.{number}", f"/films/{number}", "PA")
        study = ClaimedStudy(number, f"2.25.{number}", 1, 1, False, (film,))
        probabilities = tuple(round(dice.random(), 6) for _ in FINDING_COLUMNS)
        result = FilmResult(number, "scored", pixel_digest="d" * 64, probabilities=probabilities)
        category = "A" if probabilities[3] > 0.9 else dice.choice("BCD")
        place = PriorityResult(number, category, round(dice.random(), 6), None, "Effusion", probabilities[7], 1)
        held.append((Outcome(study, "scored"), result, place))
    return held


def record(engine: Engine, held: Sequence[tuple[Outcome, FilmResult, PriorityResult]], *, batch: int) -> Rate:
    """Commit batch after batch, as worker.scoring.record does."""
    with engine.connect() as connection:  # the one connection that the pool will give to every batch
        server = psutil.Process(connection.scalar(text("SELECT pg_backend_pid()")))
    started, before = time.perf_counter(), time.process_time() + cpu_seconds(server)
    for first in range(0, len(held), batch):
        outcomes, films, places = zip(*held[first : first + batch], strict=True)
        with session_scope(engine) as session:
            ledger.settle(session, outcomes, worker=WORKER, run_id=1)
            results.record_films(session, films, checkpoint_id=1, run_id=1)
            results.record_priorities(session, places, policy_id=1)
    used = time.process_time() + cpu_seconds(server) - before
    return Rate(len(held) / (time.perf_counter() - started), len(held) / used)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def copy(engine: Engine, held: Sequence[tuple[Outcome, FilmResult, PriorityResult]], *, batch: int) -> float:
    """COPY scores and priorities into tables without keys or indexes; films per second."""
    connection: Any = engine.raw_connection()  # COPY is psycopg's own
    started = time.perf_counter()
    for first in range(0, len(held), batch):
        scores, places = io.StringIO(), io.StringIO()
        for outcome, film, place in held[first : first + batch]:
            number = outcome.study.study_id
            numbers = "\t".join(map(str, film.probabilities))
            scores.write(f"{number}\t{number}\t1\t1\t2026-11-20 23:00+00\t{numbers}\n")
            places.write(
                f"{number}\tf\t2026-11-20 23:00+00\t{place.category}\t{place.category == 'A'}\t{place.urgency}\t"
                f"Effusion\t{place.top_probability}\t\\N\t1\t1\t2026-11-20 23:00+00\t\\N\t\\N\n"
            )
        with connection.cursor() as cursor:
            for table, rows in (("bare_score", scores), ("bare_priority", places)):
                with cursor.copy(f"COPY {table} FROM STDIN") as stream:
                    stream.write(rows.getvalue())
        connection.commit()
    connection.close()
    return len(held) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    held = night(arguments.films)
    with PostgresServer() as server:
        engine = make_engine(server.url)
        schema.upgrade(engine)
        run(engine, SETUP)
        rates: dict[str, list[Rate]] = {name: [] for name in INDEXES}
        for _ in range(arguments.rounds):
            for name, script in INDEXES.items():  # in turns, so that both meet the machine's moods
                run(engine, script + NIGHT.format(films=arguments.films) + "ANALYZE;")
                rates[name].append(record(engine, held, batch=arguments.batch))
        for name, found in rates.items():
            clock, processor = (statistics.median(rate[kind] for rate in found) for kind in (0, 1))
            print(f"{name}: median {clock:,.0f} films/s by the clock, {processor:,.0f} by processor time", flush=True)
        run(engine, BARE)
        print(f"COPY into bare tables: {copy(engine, held, batch=arguments.batch):,.0f} films/s")
        engine.dispose()


if __name__ == "__main__":
    main()
