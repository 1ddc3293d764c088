"""The view study_place, which counts one study's rank, agrees with the worklist, which ranks them all."""

from itertools import pairwise

import pytest
from sqlalchemy import Engine, text

from db import worklist
from db.session import read_scope, session_scope
from tests.integration.test_reading_order import LISTS, fill, studies
from worker.explain import why_before

WORDS = {
    "stat": "a human marked it STAT",
    "overdue": "it has waited longer than the maximum wait",
    "waited_longer": "both are overdue and it has waited longer",
    "category_a": "it is in category A",
    "urgency": "its urgency is higher",
    "arrival": "it arrived earlier",
    "number": "they are equal in every rule, and its number is lower",
}


@pytest.mark.parametrize("kind", LISTS)
def test_every_study_finds_its_rank_the_next_study_and_the_reason_that_priority_gives(engine: Engine, kind: str):
    fill(engine, studies(kind))
    with read_scope(engine) as session:
        rows = worklist.worklist(session)
        places = [worklist.place(session, row["study_id"]) for row in rows]
    assert [place and place["priority_rank"] for place in places] == list(range(1, len(rows) + 1))
    assert [place and place["next_study_id"] for place in places] == [row["study_id"] for row in rows[1:]] + [None]
    reasons = [place["above_next_because"] for place in places if place]
    assert reasons.pop() is None
    assert [WORDS[reason] for reason in reasons] == [why_before(row, below) for row, below in pairwise(rows)]


def test_neighbours_are_the_study_and_the_one_below_it(engine: Engine):
    fill(engine, studies("a quiet night"))
    with read_scope(engine) as session:
        order = [row["study_id"] for row in worklist.worklist(session)]
        assert [row["study_id"] for row in worklist.neighbours(session, order[10])] == order[10:12]
        assert [row["study_id"] for row in worklist.neighbours(session, order[-1])] == order[-1:]
        assert worklist.rank_of(session, order[10]) == 11
        assert worklist.rank_of(session, 10_000) is None
        assert worklist.neighbours(session, 10_000) == []


def test_a_study_that_was_read_has_no_place(engine: Engine):
    fill(engine, studies("a quiet night"))
    with session_scope(engine) as session:
        session.execute(text("UPDATE study_priority SET read_at = received_at WHERE study_id = 7"))
    with read_scope(engine) as session:
        assert worklist.place(session, 7) is None
        assert worklist.rank_of(session, 7) is None
