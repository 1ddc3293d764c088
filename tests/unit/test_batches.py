"""When a batch is full enough: films that come one after the other are waited for, a straggler is not."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from db.ledger import ClaimedFilm, ClaimedStudy
from worker.monitoring.prometheus import WorkMetrics
from worker.scoring.decoder_pool import PendingFilm, SecondTries
from worker.scoring.decoding import NetworkInput
from worker.scoring.in_flight import InFlight
from worker.scoring.scorer import Scorer

PATIENCE_SECONDS = 2.0
INPUT = NetworkInput(np.zeros((8, 8), np.uint8), "digest")


class FilmsToCome:
    """Decoders whose films are finished by the test."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, _path: str, _sop_instance_uid: str) -> PendingFilm:
        def schedule(*, again: bool) -> "Future[Any]":
            self.futures.append(Future())
            return self.futures[-1]

        return PendingFilm(schedule, second_tries=SecondTries())


def in_flight_with_films_that_come_after(seconds: Sequence[float | None], *, stop: bool = False) -> InFlight:
    """Films in flight that are ready that long from now; None: never."""
    settings = SimpleNamespace(straggler_seconds=PATIENCE_SECONDS, lease_minutes=60)
    decoders = FilmsToCome()
    scorer = SimpleNamespace(
        decoders=decoders,
        classifier=SimpleNamespace(batch_size=4),
        context=SimpleNamespace(settings=settings),
        metrics=WorkMetrics(),
        should_stop=lambda: stop,
    )
    in_flight = InFlight(cast(Scorer, scorer))
    films = [ClaimedFilm(number, f"2.25.{number}", "/film", "PA") for number in range(len(seconds))]
    in_flight.begin(
        [ClaimedStudy(number, f"2.25.9{number}", 1, 1, False, (films[number],)) for number in range(len(films))]
    )
    for delay, future in zip(seconds, decoders.futures, strict=True):
        if delay is not None:
            threading.Timer(delay, future.set_result, [INPUT]).start()
    return in_flight


def test_films_that_come_slowly_one_after_the_other_fill_a_batch() -> None:
    slow = [0.8 * number for number in range(1, 6)]  # the fourth comes long after the patience for the first
    in_flight = in_flight_with_films_that_come_after(slow)
    assert len(in_flight.next_batch()) == 4


def test_a_straggler_holds_up_nobody_longer_than_the_patience() -> None:
    assert len(in_flight_with_films_that_come_after([0, 0.1, None, None]).next_batch()) == 2


def test_a_worker_that_must_stop_waits_for_no_film() -> None:
    assert in_flight_with_films_that_come_after([None], stop=True).next_batch() == []


def test_films_at_their_second_try_keep_no_others_from_being_claimed() -> None:
    in_flight = in_flight_with_films_that_come_after([None, None, None])
    scorer = cast(Any, in_flight.scorer)
    scorer.films_ahead = 3
    assert in_flight.room == 0
    for future in list(scorer.decoders.futures):
        future.set_exception(TimeoutError())
    assert in_flight.next_batch() == []
    assert in_flight.room == 3
