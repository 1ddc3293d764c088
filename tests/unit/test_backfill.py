"""A backfill keeps to its window and its rate, and goes on where it stopped."""

from datetime import datetime
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError as BrokerAway

from tests.support.contexts import MakeContext
from tests.support.dicom_files import make_film, texture
from worker.context import Context
from worker.pacing import PaceError, per_minute_of, window_of
from worker.queue import backfill as module
from worker.queue.backfill import Pace, backfill

APP = None  # no message is sent here


@pytest.fixture
def context(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(module, "notify_waiting", lambda _context, _app, limit: limit)
    monkeypatch.setattr(module, "PORTION_FILES", 2)
    return make_context()


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-07T{clock}:00")


@pytest.mark.parametrize(
    ("window", "now", "minutes"),
    [
        ("22:00-06:00", "21:30", 30),
        ("22:00-06:00", "22:00", 0),
        ("22:00-06:00", "00:15", 0),
        ("22:00-06:00", "05:59", 0),
        ("22:00-06:00", "06:00", 16 * 60),
        ("1:00-5:30", "00:00", 60),
        ("1:00-5:30", "05:30", 19 * 60 + 30),
    ],
)
def test_a_window_opens_and_closes_also_over_midnight(window, now, minutes):
    assert window_of(window).seconds_until_open(at(now)) == minutes * 60


@pytest.mark.parametrize("text", ["", "22-06", "24:00-06:00", "22:00-22:00", "tonight"])
def test_a_window_that_is_none_is_refused(text):
    with pytest.raises(PaceError):
        window_of(text)


@pytest.mark.parametrize(
    ("text", "rate"), [("120", 120), ("120/min", 120), ("2/s", 120), ("3000/h", 50), ("0.5/min", 0.5)]
)
def test_a_rate_is_studies_per_minute(text, rate):
    assert per_minute_of(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["0", "-3", "fast", "3/day", ""])
def test_a_rate_that_is_none_is_refused(text):
    with pytest.raises(PaceError):
        per_minute_of(text)


def test_new_studies_cost_their_share_of_the_rate_and_known_ones_nothing(context: Context, tmp_path: Path):
    for i in range(4):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    pauses: list[float] = []
    done = backfill(context, APP, [tmp_path], pace=Pace(1, sleep=pauses.append))
    assert (len(done.received.studies), done.notified) == (4, 4)
    assert pauses == pytest.approx([120, 120], abs=30)
    pauses.clear()
    done = backfill(context, APP, [tmp_path], pace=Pace(1, sleep=pauses.append))
    assert (done.received.known, pauses) == (4, [0, 0])


def test_a_closed_window_is_waited_for_before_each_portion(context: Context, tmp_path: Path):
    for i in range(4):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    clocks = iter([at("21:59"), at("22:30")])
    pauses: list[float] = []
    pace = Pace(window=window_of("22:00-06:00"), sleep=pauses.append, now=lambda: next(clocks))
    backfill(context, APP, [tmp_path], pace=pace)
    assert pauses == [60]


def test_a_broker_that_is_away_does_not_keep_studies_from_being_registered(
    context: Context, tmp_path: Path, monkeypatch
):
    def away(*_args, limit):
        raise BrokerAway

    monkeypatch.setattr(module, "notify_waiting", away)
    for i in range(3):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    done = backfill(context, APP, [tmp_path], pace=Pace())
    assert (len(done.received.studies), done.notified, done.broker_away) == (3, 0, True)
