"""A site's history, as the database keeps it."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import Review, Study, StudyPriority
from db.session import read_scope, session_scope
from training.findings import FINDINGS
from worker.ranking.priority import Standing
from worker.simulation.replay import HistoryRow, read_history


def add(session: Session, number: int, *, read_after_minutes: float | None, **verdicts: str) -> None:
    received = database_now(session) - timedelta(days=number)
    session.add(Study(id=number, study_instance_uid=f"2.25.{number}", received_at=received, state="scored"))
    session.flush()
    read_at = None if read_after_minutes is None else received + timedelta(minutes=read_after_minutes)
    place: dict[str, Any] = {"category": "C", "category_a": False, "urgency": 0.1, "ranked_at": received}
    session.add(StudyPriority(study_id=number, received_at=received, read_at=read_at, **place))
    for reader_and_finding, verdict in verdicts.items():
        reader, finding = reader_and_finding.split("_", 1)
        session.add(Review(study_id=number, finding=finding, verdict=verdict, reader=reader, reviewed_at=received))


def history(engine: Engine, *, days: float) -> dict[int, HistoryRow]:
    """The history by the number of days ago at which its studies came."""
    with read_scope(engine) as session:
        now = database_now(session)
        rows = read_history(session, since=now - timedelta(days=days))
    return {round((now - row.received_at) / timedelta(days=1)): row for row in rows}


def test_history_holds_the_studies_that_were_read_with_their_wait_and_place(engine: Engine) -> None:
    with session_scope(engine) as session:
        add(session, 1, read_after_minutes=30)
        add(session, 2, read_after_minutes=None)
        add(session, 3, read_after_minutes=-5)  # a RIS whose clock is behind
        add(session, 9, read_after_minutes=30)
    rows = history(engine, days=5)
    assert list(rows) == [1]
    assert rows[1].read_at - rows[1].received_at == timedelta(minutes=30)
    assert rows[1].place == Standing("C", 0.1)


def test_history_calls_normal_only_what_was_found_free_of_every_finding(engine: Engine) -> None:
    with session_scope(engine) as session:
        add(session, 1, read_after_minutes=1, **{f"kim_{finding}": "absent" for finding in FINDINGS})
        add(session, 2, read_after_minutes=1, kim_Mass="absent", kim_Edema="not_assessed")
        add(session, 3, read_after_minutes=1, kim_Mass="absent", lee_Mass="present", kim_Pleural_Thickening="present")
        add(session, 4, read_after_minutes=1)
    rows = history(engine, days=5)
    assert {number: row.normal for number, row in rows.items()} == {1: True, 2: False, 3: False, 4: False}
    assert rows[3].findings == {"Mass", "Pleural_Thickening"}
    assert not any(rows[number].findings for number in (1, 2, 4))
