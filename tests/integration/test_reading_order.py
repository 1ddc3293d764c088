"""The views' order in SQL is the order that worker.priority defines, on both databases."""

import random
from datetime import timedelta

import pytest
from sqlalchemy import Engine, insert, text

from db import worklist
from db.base import database_now
from db.models import Study, StudyPriority
from db.session import read_scope, session_scope
from worker.ranking.priority import ReadingKey, Standing, reading_key

MAX_WAIT_MINUTES = 720  # what the views take where no policy is active
LISTS = {  # studies, share overdue, share STAT
    "a quiet night": (60, 0.05, 0.02),
    "a backlog that fills the head with overdue studies": (400, 0.7, 0.05),
    "nothing overdue": (250, 0.0, 0.1),
    "more STAT studies than the head holds": (260, 0.4, 0.8),
    "all alike": (30, 0.0, 0.0),
    "one import, overdue": (250, 1.0, 0.1),
}


def studies(kind: str) -> list[dict]:
    """Facts of unread studies with many ties; no wait is within two minutes of the maximum, as the clock runs on."""
    count, overdue, stat = LISTS[kind]
    dice = random.Random(kind)
    rows = []
    for number in range(1, count + 1):
        late = dice.random() < overdue
        waited = dice.randint(MAX_WAIT_MINUTES + 2, 3000) if late else dice.choice([0, 5, 30, 30, 700])
        if kind == "one import, overdue":
            waited = dice.choice([800, 1000])
        category = dice.choice("ABCD")
        rows.append(
            {
                "study_id": number,
                "waited": 30 if kind == "all alike" else waited,
                "stat": dice.random() < stat,
                "category": "C" if kind == "all alike" else category,
                "urgency": 0.1 if kind == "all alike" else dice.choice([0.0, 0.1, 0.4, 0.4, 1.2, dice.random()]),
            }
        )
    return rows


def fill(engine: Engine, rows: list[dict]) -> None:
    with session_scope(engine) as session:
        now = database_now(session)
        received = {row["study_id"]: now - timedelta(minutes=row["waited"]) for row in rows}
        session.execute(
            insert(Study),
            [
                {"id": number, "study_instance_uid": f"2.25.{number}", "received_at": at, "state": "scored"}
                for number, at in received.items()
            ],
        )
        session.execute(
            insert(StudyPriority),
            [
                {name: row[name] for name in ("study_id", "stat", "category", "urgency")}
                | {"category_a": row["category"] == "A", "received_at": received[row["study_id"]], "ranked_at": now}
                for row in rows
            ],
        )


def key(row: dict) -> ReadingKey:
    return reading_key(
        Standing(row["category"], row["urgency"]),
        stat=row["stat"],
        waited_minutes=row["waited"],
        study_id=row["study_id"],
        max_wait_minutes=MAX_WAIT_MINUTES,
    )


def expected_order(rows: list[dict]) -> list[int]:
    return [row["study_id"] for row in sorted(rows, key=key)]


@pytest.mark.parametrize("kind", LISTS)
def test_sql_ranks_the_list_as_the_reading_key_does(engine: Engine, kind: str):
    rows = studies(kind)
    fill(engine, rows)
    expected = expected_order(rows)
    with read_scope(engine) as session:
        whole = session.execute(text("SELECT priority_rank, study_id FROM worklist ORDER BY priority_rank")).all()
        head = session.execute(text("SELECT priority_rank, study_id FROM next_to_read ORDER BY priority_rank")).all()
        each = session.execute(text("SELECT priority_rank, study_id FROM study_place ORDER BY priority_rank")).all()
    assert [tuple(row) for row in whole] == list(enumerate(expected, start=1))
    assert [tuple(row) for row in head] == list(enumerate(expected[:50], start=1))
    assert each == whole


def test_a_filtered_part_holds_the_rows_of_the_whole_list_with_their_ranks(engine: Engine) -> None:
    fill(engine, studies("nothing overdue"))
    with read_scope(engine) as session:
        wanted = [dict(row) for row in worklist.worklist(session) if row["category"] == "C"]
        part = worklist.part(session, worklist.Filter(category="C"), offset=2, limit=10)
    assert [dict(row) for row in part.rows] == [row | {"total": len(wanted)} for row in wanted[2:12]]
    assert part.total == len(wanted)
