"""The worklist obeys the reading order, and readings last as long as they should."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.ranking.priority import Standing, reading_key
from worker.simulation.reading_room import (
    Department,
    Discipline,
    ReadingClock,
    ReadingRoom,
    SimulationError,
    Studies,
    Worklist,
)

FLAT = (6.0,) * 24
MAX_WAIT = 100.0


def department(*minutes: float, **fields: Any) -> Department:
    return Department(arrivals_per_hour=FLAT, reading_minutes=minutes or (10.0,) * 24, **fields)


def studies(arrived: list[float], *, category: str = "", urgency: list[float] | None = None, stat: str = "") -> Studies:
    count = len(arrived)
    return Studies(
        arrived=np.array(arrived),
        stat=np.array([mark == "!" for mark in stat.ljust(count)]),
        category=np.array(list(category.ljust(count, "D"))),
        urgency=np.zeros(count) if urgency is None else np.array(urgency),
        groups={},
    )


waiting_studies = st.lists(
    st.tuples(st.integers(0, 300), st.booleans(), st.sampled_from("ABCD"), st.sampled_from([0.0, 0.2, 0.4, 1.1])),
    min_size=1,
    max_size=15,
)


@given(waiting_studies, st.lists(st.integers(0, 60), min_size=15, max_size=15))
def test_the_worklist_takes_what_the_reading_order_names(rows, gaps):
    rows.sort()
    arrived, stat, category, urgency = (np.array(column) for column in zip(*rows, strict=True))
    asked = Studies(arrived, stat, category, urgency, groups={})
    worklist = Worklist(asked, Discipline("nightread", ahead="A", by_urgency=True, max_wait_minutes=MAX_WAIT))
    keyed = {}
    for study, (arrived, stat, category, urgency) in enumerate(rows):
        worklist.add(study)
        keyed[study] = (arrived, stat, Standing(category, urgency))
    now = rows[-1][0]
    for gap in gaps[: len(rows)]:
        now += gap

        def place(study: int, now: float = now) -> tuple:
            arrived, stat, standing = keyed[study]
            return reading_key(
                standing, stat=stat, waited_minutes=now - arrived, study_id=study, max_wait_minutes=MAX_WAIT
            )

        expected = min(keyed, key=place)
        assert worklist.take(now) == expected
        del keyed[expected]
    assert len(worklist) == 0


@given(st.permutations(range(8)))
def test_a_study_that_waits_again_keeps_its_place(order):
    asked = studies([float(i) for i in range(8)], urgency=[0.1, 0.5, 0.2, 0.9, 0.4, 0.3, 0.8, 0.6])
    worklist = Worklist(asked, Discipline("urgency", by_urgency=True, max_wait_minutes=MAX_WAIT))
    for study in order:
        worklist.add(study)
    first = worklist.take(8.0)
    worklist.add(first)
    assert [worklist.take(8.0) for _ in range(8)] == [3, 6, 7, 1, 4, 5, 2, 0]


# Reading times


def test_a_reading_that_runs_into_a_faster_hour_is_done_sooner():
    clock = ReadingClock(department(*[60.0] * 7, *[4.0] * 17))
    # half a study is done from 06:30 to 07:00, the other half takes two minutes
    assert clock.finish(6.5 * 60, 1.0) == pytest.approx(7 * 60 + 2)
    assert clock.done_between(6.5 * 60, 7 * 60 + 1) == pytest.approx(0.75)


def test_a_reading_may_keep_the_pace_of_the_hour_in_which_it_began():
    clock = ReadingClock(department(*[60.0] * 7, *[4.0] * 17, pace_from_start=True))
    assert clock.finish(6.5 * 60, 1.0) == pytest.approx(7.5 * 60)
    assert clock.done_between(6.5 * 60, 7 * 60) == pytest.approx(0.5)


def test_what_arrives_while_nobody_reads_waits_for_the_morning():
    clock = ReadingClock(department(*[math.inf] * 7, *[5.0] * 13, *[math.inf] * 4))
    assert clock.finish(2 * 60, 1.0) == pytest.approx(7 * 60 + 5)
    assert clock.finish(20 * 60 - 1, 1.0) == pytest.approx(24 * 60 + 7 * 60 + 4)


@given(st.floats(0, 1e6), st.floats(0.001, 50), st.lists(st.floats(1, 200), min_size=24, max_size=24))
def test_a_reading_holds_as_much_work_as_it_was_given(start, work, minutes):
    clock = ReadingClock(department(*minutes))
    assert clock.done_between(start, clock.finish(start, work)) == pytest.approx(work, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"arrivals_per_hour": (1.0,) * 23},
        {"reading_minutes": (0.0,) * 24},
        {"arrivals_per_hour": (-1.0,) * 24},
        {"readers": 0},
        {"readers": 1.5},
        {"readers": 2.0},
        {"readers": math.inf},
        {"arrivals_per_hour": (math.nan,) * 24},
        {"arrivals_per_hour": (math.inf,) * 24},
        {"reading_minutes": (math.nan,) * 24},
        {"stat_share": 7},
        {"stat_reading_factor": -1},
        {"stat_reading_factor": math.nan},
        {"abnormal_reading_factor": -3},
        {"abnormal_reading_factor": math.inf},
        {"reading_minutes": (math.inf,) * 24, "pace_from_start": True},
    ],
)
def test_an_impossible_department_is_refused(wrong):
    with pytest.raises(ValidationError):
        Department(**({"arrivals_per_hour": FLAT, "reading_minutes": (10.0,) * 24} | wrong))
    with pytest.raises(SimulationError, match="nobody ever reads"):
        ReadingClock(department(*[math.inf] * 24))


# The room


def reported(asked: Studies, discipline: Discipline, *, work: list[float], readers: int = 1) -> list[float]:
    room = ReadingRoom(asked, np.array(work), discipline, department(readers=readers))
    return room.run().reported.tolist()


def test_one_reader_reads_in_the_order_of_the_discipline():
    asked = studies([0, 1, 2, 3], category="DDBA")
    tens = [1.0, 1.0, 1.0, 1.0]
    assert reported(asked, Discipline("FIFO"), work=tens) == [10, 20, 30, 40]
    assert reported(asked, Discipline("category", ahead="ABC"), work=tens) == [10, 40, 30, 20]
    assert reported(asked, Discipline("A first", ahead="A"), work=tens) == [10, 30, 40, 20]


def test_two_readers_share_the_list():
    assert reported(studies([0, 0, 1]), Discipline("FIFO"), work=[1.0, 2.0, 1.0], readers=2) == [10, 20, 20]


def test_an_overdue_study_goes_before_category_a():
    asked = studies([0, 1, 2], category="DDA")
    hurried = Discipline("A first", ahead="A", max_wait_minutes=5)
    assert reported(asked, hurried, work=[1.0] * 3) == [10, 20, 30]


def test_an_interrupted_reading_goes_on_where_it_stopped():
    asked = studies([0, 4, 6], category="DAD")
    preemptive = Discipline("A first", ahead="A", preemptive=True)
    room = ReadingRoom(asked, np.ones(3), preemptive, department())
    outcome = room.run()
    assert outcome.reported.tolist() == pytest.approx([20, 14, 30])
    assert outcome.reading.tolist() == pytest.approx([10, 10, 10])


def test_only_stat_interrupts_a_reading_that_was_overdue():
    hurried = Discipline("A first", ahead="A", max_wait_minutes=5, preemptive=True)
    assert reported(studies([0, 1, 12], category="DDA"), hurried, work=[1.0] * 3) == [10, 20, 30]
    assert reported(studies([0, 1, 12], category="DDA", stat="  !"), hurried, work=[1.0] * 3) == [10, 30, 22]


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 500), st.floats(0.05, 3), st.sampled_from("ABCD")), min_size=1, max_size=40),
    st.integers(1, 3),
    st.booleans(),
)
def test_every_study_is_reported_once_and_no_work_is_lost(rows, readers, preemptive):
    rows.sort()
    arrived, work, category = zip(*rows, strict=True)
    discipline = Discipline("category", ahead="ABC", max_wait_minutes=60, preemptive=preemptive)
    room = ReadingRoom(
        studies(list(arrived), category="".join(category)), np.array(work), discipline, department(readers=readers)
    )
    outcome = room.run()
    assert np.isfinite(outcome.reported).all()
    assert outcome.reading == pytest.approx(10 * np.array(work), abs=1e-6)
    assert (outcome.reported - arrived >= outcome.reading - 1e-6).all()
