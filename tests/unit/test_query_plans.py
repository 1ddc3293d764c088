"""A question about one study or film looks at its rows by an index, whatever else the database holds (SQLite)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from db import schema
from db.health import health
from db.session import make_engine, read_scope

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


def test_what_a_metrics_page_asks_scans_no_study_and_no_film(engine: Engine) -> None:
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: Any, *_others: object) -> None:
        asked.append((statement, values))

    event.listen(engine, "before_cursor_execute", note)
    try:
        with read_scope(engine) as session:
            health(session)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        steps = [
            row[-1]
            for statement, values in asked
            if statement.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        ]
    assert len(asked) > 3
    long = [step for step in steps if step.startswith(("SCAN study", "SCAN instance", "SCAN film_score"))]
    assert set(long) <= {"SCAN instance USING INDEX ix_instance_waiting"}, "that index holds what waits, and no more"
