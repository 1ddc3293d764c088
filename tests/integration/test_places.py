"""The view study_place, which counts one study's rank, agrees with the worklist, which ranks them all."""

from itertools import pairwise

import pytest
from sqlalchemy import Engine, text

from db import worklist
from db.session import read_scope, session_scope
from tests.integration.test_reading_order import LISTS, fill, key, studies
from tests.support.reading_keys import why_before


@pytest.mark.parametrize("kind", LISTS)
def test_every_study_finds_its_rank_the_next_study_and_the_reason_that_priority_gives(engine: Engine, kind: str):
    filled = studies(kind)
    fill(engine, filled)
    with read_scope(engine) as session:
        rows = worklist.worklist(session)
        places = [worklist.place(session, row["study_id"]) for row in rows]
    assert [place and place["priority_rank"] for place in places] == list(range(1, len(rows) + 1))
    assert [place and place["next_study_id"] for place in places] == [row["study_id"] for row in rows[1:]] + [None]
    reasons = [place["above_next_because"] for place in places if place]
    assert reasons.pop() is None
    assert reasons == [why_before(earlier, later) for earlier, later in pairwise(sorted(map(key, filled)))]


def test_a_study_that_never_was_on_the_list_has_no_place(engine: Engine):
    fill(engine, studies("a quiet night"))
    with read_scope(engine) as session:
        assert worklist.place(session, 10_000) is None


def test_a_study_that_was_read_has_no_place(engine: Engine):
    fill(engine, studies("a quiet night"))
    with session_scope(engine) as session:
        session.execute(text("UPDATE study_priority SET read_at = received_at WHERE study_id = 7"))
    with read_scope(engine) as session:
        assert worklist.place(session, 7) is None
