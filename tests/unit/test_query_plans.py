"""A question about one study or film looks at its rows by an index, whatever else the database holds (SQLite).

PostgreSQL's plans at size are measured by tests/benchmarks/archive_at_size.py.
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from db import deliveries, health, ledger, lookup, morning, retention, runs, schema, worklist
from db.base import Base
from db.session import make_engine
from db.set_aside import set_aside

# One row per finding, the answer itself, one cell of it, and the one active policy; each is short at any size.
SHORT = ("CONSTANT ROW", "n", "study_findings", "deciding", "policy USING INDEX uq_policy_active")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = tmp_path_factory.mktemp("plans") / "nightread.db"
    engine = make_engine(f"sqlite:///{path}")
    schema.upgrade(engine)
    yield engine
    engine.dispose()


def scans(engine: Engine, query: str) -> set[str]:
    """The steps of a query's plan that read a whole table or index."""
    with engine.connect() as connection:
        steps = [row[-1] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {query}"))]
    return {step.removeprefix("SCAN ") for step in steps if step.startswith("SCAN ")} - set(SHORT)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM study_place WHERE study_id = 7",
        "SELECT * FROM study_place WHERE accession_number = 'N7'",
        "SELECT * FROM study_contribution WHERE study_id = 7",
        "SELECT * FROM study_findings WHERE study_instance_uid = '2.25.7'",
        "SELECT * FROM review_log WHERE study_id = 7",
        "SELECT * FROM finding_score WHERE instance_id = 7 AND finding = 'Mass'",
        "SELECT f.* FROM film_log i JOIN finding_score f ON f.instance_id = i.instance_id WHERE i.study_id = 7",
    ],
)
def test_a_question_about_one_study_scans_no_table(engine: Engine, query: str) -> None:
    assert scans(engine, query) == set()


LARGE = ("study", "instance", "study_priority", "film_score", "delivery")  # with every settled study they grow


PARTIAL = {str(index.name) for table in Base.metadata.tables.values() for index in table.indexes
           if index.dialect_options["sqlite"]["where"] is not None}  # fmt: skip
WHOLE = re.compile(r"(?:SCAN|SEARCH) (?P<table>[a-z_]+?)(?:_\d+)?(?: USING (?:COVERING )?INDEX (?P<index>\w+))?")


def large_scans(engine: Engine, ask: Callable[[Session], object]) -> set[str]:
    """The large tables that the statements of a function read whole: by no index, or along one that holds every row.

    SQLite says SEARCH also where it looks through all rows for a minimum.
    """
    statements: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        with Session(engine) as session:
            ask(session)
            session.rollback()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        plans = [
            connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            for statement, parameters in statements
            if statement.startswith(("SELECT", "UPDATE", "DELETE"))
        ]
    steps = filter(None, (WHOLE.fullmatch(row[-1]) for plan in plans for row in plan))
    return {step["table"] for step in steps if step["index"] not in PARTIAL}.intersection(LARGE)


@pytest.mark.parametrize(
    "ask",
    [
        health.health,
        ledger.any_held,
        ledger.any_waiting,
        ledger.requeue,
        lambda session: ledger.requeue(session, reason="truncated"),
        lambda session: ledger.claim(session, worker="test", studies=16, lease_minutes=1),
        lambda session: lookup.recorded_paths(session, ["/films/1.dcm"]),
        lambda session: set_aside(session, "quarantined"),
        lambda session: morning.quarantined(session, limit=20),
        lambda session: worklist.part(session, worklist.Filter(), offset=0, limit=50),
        lambda session: lookup.first_films(session, [1, 2]),
        lambda session: deliveries.claim(session, worker="test", lease_minutes=1),
        lambda session: deliveries.listed(session, limit=20),
        lambda session: deliveries.any_unpublished(session, max_age_hours=24),
        lambda session: runs.close_idle(session, idle_minutes=10),
        lambda session: retention.prune_studies(session, before=datetime(2026, 1, 1, tzinfo=UTC), limit=500),
    ],
)
def test_what_the_service_asks_all_day_reads_no_table_of_settled_studies_whole(
    engine: Engine, ask: Callable[[Session], object]
) -> None:
    assert large_scans(engine, ask) == set()


def test_a_question_that_reads_all_studies_would_be_seen(engine: Engine) -> None:
    assert large_scans(engine, lambda session: session.scalar(text("SELECT count(detail) FROM study"))) == {"study"}
