"""The ledger at size: how long the head of the list, one study's rank, the totals and the end of a run take.

    python -m tests.benchmarks.worklist_at_size --studies 10000000 --unread 100000
    python -m tests.benchmarks.worklist_at_size --database sqlite --studies 1000000 --unread 100000

PostgreSQL is started for this and removed at the end, or is the one of --url (an empty database, or one that an earlier
run of this filled with as many studies). Ten million studies take 6 GB and some minutes. What the
indexes cost the writer stands in writer.py.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import Connection, Engine, text

from db import runs, schema, totals
from db.session import make_engine, read_scope, session_scope

MINUTES = 1000  # over which the unread studies came; a maximum wait of half of it makes half of them overdue
MIXES = {"none overdue": 100_000_000, "half overdue": MINUTES // 2, "all overdue": 1}
TIMES = 41

# A number in [0, 1) that looks random and is the same on both databases.
DICE = "(((id * 7919) % 1000003) / 1000003.0)"
SERIES = {
    "postgresql": "SELECT id FROM generate_series(CAST({first} AS bigint), {last}) AS id",
    "sqlite": "WITH RECURSIVE n(id) AS (SELECT {first} UNION ALL SELECT id + 1 FROM n WHERE id < {last}) "
    "SELECT id FROM n",
}
MOMENT = {
    "postgresql": "now() - make_interval(secs => ({studies} - id) * {gap})",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || (({studies} - id) * {gap}) || ' seconds')",
}
STUDY = """
    INSERT INTO study (id, study_instance_uid, accession_number, stat, received_at, state, revision, attempts, suspect)
    SELECT id, '2.25.' || (id * 1000003), 'N' || id, id % 100 = 0, {moment}, 'scored', 1, 1, false FROM ({series}) s"""
PRIORITY = """
    INSERT INTO study_priority (study_id, stat, received_at, category, category_a, urgency, top_finding,
                                top_probability, checkpoint_id, policy_id, ranked_at, read_at)
    SELECT id, stat, received_at, CASE WHEN dice >= 0.9 THEN 'A' WHEN dice >= 0.6 THEN 'B' ELSE 'D' END, dice >= 0.9,
           1.4 * dice, 'Effusion', dice, 1, 1, received_at, CASE WHEN id <= {read} THEN received_at END
    FROM (SELECT id, stat, received_at, {dice} AS dice FROM study WHERE id BETWEEN {first} AND {last}) s"""
POLICY = """
    INSERT INTO policy (id, version, active, max_wait_minutes, category_a_share, created_at, created_by)
    VALUES (1, 1, true, 720, 0.1, '2026-01-01 00:00:00', 'benchmark')"""
CHECKPOINT = """
    INSERT INTO checkpoint (id, digest, path, network, state, state_changed_at, state_changed_by, header, registered_at)
    VALUES (1, 'c', '/', 'mobilenet', 'champion', '2026-01-01 00:00:00', 'benchmark', '{}', '2026-01-01 00:00:00')"""

HEAD = "SELECT * FROM next_to_read ORDER BY priority_rank LIMIT 50"
RANK = "SELECT priority_rank FROM study_place WHERE study_id = {}"


@contextmanager
def _plain(engine: Engine) -> Iterator[Connection]:
    """A transaction whose statements hold % without meaning a parameter."""
    with engine.connect().execution_options(no_parameters=True) as connection, connection.begin():
        yield connection


def build(engine: Engine, *, studies: int, unread: int) -> None:
    """Fill an empty database, or leave one that holds as many studies already."""
    schema.upgrade(engine)
    with engine.connect() as connection:
        if connection.scalar(text("SELECT max(id) FROM study")) == studies:
            return
    dialect, gap, step = engine.dialect.name, MINUTES * 60 / unread, 500_000
    with _plain(engine) as connection:
        connection.exec_driver_sql(POLICY)
        connection.exec_driver_sql(CHECKPOINT)
    for first in range(1, studies + 1, step):
        places = {"first": first, "last": min(first + step - 1, studies), "read": studies - unread, "dice": DICE}
        places["moment"] = MOMENT[dialect].format(studies=studies, gap=gap)
        with _plain(engine) as connection:
            if dialect == "postgresql":
                connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # no foreign key is checked
            connection.exec_driver_sql(STUDY.format(**places, series=SERIES[dialect].format(**places)))
            connection.exec_driver_sql(PRIORITY.format(**places))
    with session_scope(engine) as session:
        totals.recount(session)
    _vacuum(engine)


def _vacuum(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE")


def measure(engine: Engine, *, studies: int, plans: bool) -> None:
    """Print milliseconds of the head and of two studies' ranks under each mix, and on request the plans."""
    queries = {
        "top fifty": HEAD,
        "rank of the newest": RANK.format(studies - 3),
        "rank of one": RANK.format(studies - 7),
    }
    for mix, max_wait_minutes in MIXES.items():
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE policy SET max_wait_minutes = {max_wait_minutes}")  # noqa: S608
        for name, query in queries.items():
            with engine.connect().execution_options(no_parameters=True) as connection:
                times = [_milliseconds(connection, query) for _ in range(TIMES)]
                print(f"{mix:14} {name:20} {_summary(times)}", flush=True)
                if plans:
                    explain = (
                        "EXPLAIN (ANALYZE, BUFFERS)" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
                    )
                    print(*(f"    {row[-1]}" for row in connection.exec_driver_sql(f"{explain} {query}")), sep="\n")


def measure_ledger(engine: Engine, *, studies: int) -> None:
    """Print how long the totals take, as they are kept and counted anew, and the end of a run of one study."""
    for name, ask in (("totals as kept", totals.kept_totals), ("totals counted", totals.read_totals)):
        with read_scope(engine) as session:
            began = time.perf_counter()
            ask(session)
            print(f"{name:35} {1000 * (time.perf_counter() - began):9.2f} ms", flush=True)
    with session_scope(engine) as session:
        run = runs.open_run(session, kind="score", checkpoint_id=1, policy_id=1, settings={}, shared=False)
        session.execute(text("UPDATE study SET run_id = :run WHERE id = :study"), {"run": run, "study": studies})
        began = time.perf_counter()
        runs.close(session, run)
        print(f"{'end of a run of one study':35} {1000 * (time.perf_counter() - began):9.2f} ms", flush=True)


def _milliseconds(connection: Connection, query: str) -> float:
    """At the server on PostgreSQL, without the planning that a prepared statement spares; in this process on SQLite."""
    if connection.dialect.name == "postgresql":
        explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query}").scalar_one()
        return float(explained[0]["Execution Time"])
    started = time.perf_counter()
    connection.exec_driver_sql(query).all()
    return 1000 * (time.perf_counter() - started)


def _summary(times: list[float]) -> str:
    return f"median {statistics.median(times):6.2f} ms, least {min(times):6.2f} ms"


def read_many(engine: Engine) -> None:
    """The head of the list after 60,000 readings, before the vacuum that the migration asks for and after it."""
    read = """UPDATE study_priority SET read_at = now() WHERE study_id IN (
        SELECT study_id FROM study_priority WHERE read_at IS NULL AND NOT stat ORDER BY received_at LIMIT 60000)"""
    steps = (("60,000 read, no vacuum", read), ("after the vacuum", "VACUUM (INDEX_CLEANUP ON) study_priority"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT", no_parameters=True) as connection:
        connection.exec_driver_sql("ALTER TABLE study_priority SET (autovacuum_enabled = off)")
        for name, statement in steps:
            connection.exec_driver_sql(statement)
            print(f"{name:35} {_summary([_milliseconds(connection, HEAD) for _ in range(TIMES)])}", flush=True)
        connection.exec_driver_sql("ALTER TABLE study_priority RESET (autovacuum_enabled)")


@contextmanager
def _database(kind: str, url: str | None) -> Iterator[Engine]:
    with ExitStack() as stack:
        if url is None and kind == "sqlite":
            url = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/nightread.db"
        elif url is None:
            from tests.support.servers import PostgresServer

            url = stack.enter_context(PostgresServer(settings={"shared_buffers": "1GB", "max_wal_size": "8GB"})).url
        engine = make_engine(url)
        stack.callback(engine.dispose)
        yield engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--url", help="an existing database instead of one made for this")
    parser.add_argument("--studies", type=int, default=10_000_000)
    parser.add_argument("--unread", type=int, default=100_000)
    parser.add_argument("--plans", action="store_true", help="print the plans too")
    arguments = parser.parse_args()
    with _database(arguments.database, arguments.url) as engine:
        build(engine, studies=arguments.studies, unread=arguments.unread)
        measure_ledger(engine, studies=arguments.studies)
        measure(engine, studies=arguments.studies, plans=arguments.plans)
        if engine.dialect.name == "postgresql" and arguments.url is None:
            read_many(engine)


if __name__ == "__main__":
    main()
