"""Replays of histories that were worked out by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from worker.ranking.priority import DEFAULT_POLICY, Standing
from worker.simulation.reading_room import Discipline, SimulationError
from worker.simulation.replay import AS_READ, HistoryRow, replay
from worker.simulation.simulate import Row, default_disciplines

FIFO = Discipline("FIFO")
A_FIRST = Discipline("A first", ahead="A")


def row(rows: list[Row], discipline: str, group: str) -> Row:
    return next(r for r in rows if (r.discipline, r.group) == (discipline, group))


MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)


def read(received: float, read_at: float, category: str = "D", urgency: float = 0.0, **fields: Any) -> HistoryRow:
    came, was_read = (MIDNIGHT + timedelta(minutes=m) for m in (received, read_at))
    return HistoryRow(came, was_read, Standing(category, urgency), **fields)


def test_a_replay_gives_each_reading_moment_to_the_study_the_discipline_names():
    history = [
        read(0, 30, normal=True),
        read(5, 40, "D", 0.3, findings=frozenset({"Mass"})),
        read(10, 50, "A", 0.9, findings=frozenset({"Pneumothorax"})),
    ]
    rows = replay(history, disciplines=[FIFO, A_FIRST, Discipline("urgency", by_urgency=True)])
    assert row(rows, AS_READ, "Pneumothorax").mean == (40.0, None)
    assert row(rows, "FIFO", "Pneumothorax").mean.value == 40
    assert row(rows, "A first", "Pneumothorax").mean.value == 20
    assert row(rows, "A first", "Pneumothorax").saved.value == 20
    assert row(rows, "A first", "normal").mean.value == 40
    assert row(rows, "urgency", "Mass").mean.value == 35
    assert {row(rows, name, "all").mean.value for name in (AS_READ, "FIFO", "A first", "urgency")} == {35}


def test_a_replay_never_reads_a_study_before_it_came():
    rng = np.random.default_rng(7)
    received = np.sort(rng.uniform(0, 1000, 200))
    history = [
        read(r, r + wait, "ABCD"[i % 4], rng.random())
        for i, (r, wait) in enumerate(zip(received, rng.exponential(90, 200), strict=True))
    ]
    for found in replay(history, disciplines=default_disciplines(DEFAULT_POLICY)):
        if found.group == "all":
            assert found.studies == 200
            assert found.mean.value == pytest.approx(row(replay(history, disciplines=[]), AS_READ, "all").mean.value)


def test_studies_that_nobody_reviewed_count_as_neither_normal_nor_abnormal():
    rows = replay([read(0, 10), read(1, 20, normal=True)], disciplines=[FIFO])
    assert row(rows, "FIFO", "normal").studies == 1
    assert row(rows, "FIFO", "all").studies == 2


def test_an_impossible_history_is_refused():
    with pytest.raises(SimulationError, match="empty"):
        replay([], disciplines=[FIFO])
    with pytest.raises(SimulationError, match="before it was received"):
        replay([read(10, 5)], disciplines=[FIFO])
