"""Decoder processes: what a film does to its decoder, and what the pool does about it."""

import multiprocessing
import re
import resource
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import permutations
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pebble import ProcessExpired
from pebble.pool.channel import WorkerChannel
from pebble.pool.process import WORKERS_NAME
from pydicom.uid import JPEG2000Lossless

import worker.scoring.decoder_pool
from tests.support.dicom_files import make_film, texture
from tests.support.hostile import decode_hostile_film
from training.imaging.dicom import PixelLimits
from training.imaging.preprocessing import Preprocessing
from worker.scoring.decoder_pool import DecoderPool, DecodersGone, PendingFilm, SecondTries
from worker.scoring.decoder_proof import TooLittleMemory
from worker.scoring.decoding import DecodeOptions, Failure, NetworkInput, decode_film, prepare_child

OPTIONS = DecodeOptions(Preprocessing(size=64), PixelLimits(), timeout_seconds=30, memory_mb=4096)


def ended(outcome: object) -> Future:
    future: Future = Future()
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


def reading(*outcomes: object) -> PendingFilm:
    """A reading whose tries end like this, one after the other."""
    rest = iter(outcomes)
    return PendingFilm(lambda *, again: ended(next(rest)), second_tries=SecondTries())  # noqa: ARG005


def digest_of(outcome: NetworkInput | Failure) -> str:
    assert isinstance(outcome, NetworkInput)
    return outcome.pixel_digest


def test_a_film_becomes_an_input_of_the_checkpoints_size(tmp_path):
    film = make_film(tmp_path / "a.dcm")
    network_input = decode_film(str(tmp_path / "a.dcm"), film.SOPInstanceUID, OPTIONS)
    assert isinstance(network_input, NetworkInput)
    assert network_input.image.shape == (64, 64)


def test_a_film_that_was_scored_must_still_show_the_same_pixels(tmp_path):
    film = make_film(tmp_path / "a.dcm")
    name, uid = str(tmp_path / "a.dcm"), film.SOPInstanceUID
    scored = digest_of(decode_film(name, uid, OPTIONS))
    assert isinstance(decode_film(name, uid, OPTIONS, scored), NetworkInput)
    make_film(tmp_path / "a.dcm", pixels=texture(seed=9), bits=12, SOPInstanceUID=uid)
    again = decode_film(name, uid, OPTIONS, scored)
    assert isinstance(again, Failure)
    assert again.reason == "file_replaced"


@pytest.mark.parametrize(("before", "after"), list(permutations((64, 128, 224), 2)))
def test_a_film_scored_at_one_resolution_is_the_same_at_another(tmp_path: Path, before: int, after: int) -> None:
    """Another checkpoint may read larger inputs: for 64 a quarter of this film is decoded, for 128 a half."""
    slope = np.add.outer(np.arange(800), np.arange(800)).astype(np.uint16) * 2
    window: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 3800}
    film = make_film(tmp_path / "a.dcm", pixels=slope, bits=12, transfer_syntax=JPEG2000Lossless, **window)
    name, uid = str(tmp_path / "a.dcm"), film.SOPInstanceUID
    scored, other = (replace(OPTIONS, preprocessing=Preprocessing(size=size)) for size in (before, after))
    digest = digest_of(decode_film(name, uid, scored))
    assert digest_of(decode_film(name, uid, other)) != digest
    assert isinstance(decode_film(name, uid, other, digest), NetworkInput)


def test_a_file_that_is_away_is_a_transient_failure(tmp_path):
    failure = decode_film(str(tmp_path / "gone.dcm"), "1.2", OPTIONS)
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.transient) == ("file_unavailable", True)


@pytest.mark.parametrize(
    ("error", "reason"), [(TimeoutError(), "decoder_timeout"), (ProcessExpired("died"), "decoder_crashed")]
)
def test_a_film_that_hangs_or_kills_its_decoder_gets_a_second_try_and_then_a_reason(error, reason):
    twice = reading(error, error)
    assert twice.result() is None
    failure = twice.result()
    assert isinstance(failure, Failure)
    assert failure.reason == reason


def test_a_bystander_of_a_crash_is_read_at_the_second_try():
    network_input = Failure("truncated", "stands for any outcome")
    once = reading(ProcessExpired("died"), network_input)
    assert once.result() is None
    assert once.result() is network_input


def test_second_tries_run_one_at_a_time():
    second_tries = SecondTries()
    begun: list[tuple[int, Future]] = []

    def film(number: int) -> PendingFilm:
        def schedule(*, again: bool) -> Future:
            if not again:
                return ended(TimeoutError())
            begun.append((number, Future()))
            return begun[-1][1]

        return PendingFilm(schedule, second_tries=second_tries)

    films = [film(number) for number in range(3)]
    for _ in range(2):
        assert [each.result() for each in films] == [None, None, None]
    assert [number for number, _ in begun] == [0]
    assert all(each.second for each in films)
    for number in range(3):
        begun[number][1].set_result("read")
        assert films[number].result() == "read"
        assert [each.result() for each in films[number + 1 :]] == [None] * (2 - number)
    assert [number for number, _ in begun] == [0, 1, 2]


def test_a_pool_that_broke_once_begins_all_its_films_anew_at_once():
    second_tries = SecondTries()
    tries = [iter((BrokenProcessPool(), "read")) for _ in range(3)]
    films = [
        PendingFilm(lambda rest=rest, *, again: ended(next(rest)), second_tries=second_tries)  # noqa: ARG005
        for rest in tries
    ]
    assert [film.result() for film in films] == [None, None, None]
    assert [film.result() for film in films] == ["read", "read", "read"]


def test_a_limit_in_which_no_film_can_be_decoded_is_refused_with_the_least_that_works():
    with DecoderPool(replace(OPTIONS, memory_mb=128), decoders=1) as pool:
        require_working = pool.begin_proof()
        with pytest.raises(TooLittleMemory, match=r"NIGHTREAD_DECODE_MEMORY_MB is 128.* set \d+ or more") as refused:
            require_working()
    (least,) = map(int, re.findall(r"set (\d+)", str(refused.value)))
    with DecoderPool(replace(OPTIONS, memory_mb=least), decoders=1) as pool:
        pool.begin_proof()()


def test_a_decoder_that_raises_what_nobody_foresaw_costs_only_its_film():
    failure = reading(AttributeError("odd")).result()
    assert isinstance(failure, Failure)
    assert failure.reason == "decoder_raised"
    assert "odd" not in failure.sentence


def test_a_pool_that_breaks_twice_blames_no_film():
    twice = reading(BrokenProcessPool("All workers expired"), BrokenProcessPool("All workers expired"))
    assert twice.result() is None
    with pytest.raises(DecodersGone):
        twice.result()


def test_a_decoder_that_is_killed_between_two_films_is_replaced(tmp_path):
    film = make_film(tmp_path / "a.dcm")
    before = psutil.Process().children()
    with DecoderPool(OPTIONS, decoders=1) as reader:

        def read() -> object:
            film_read = reader.submit(str(tmp_path / "a.dcm"), film.SOPInstanceUID)
            while (outcome := film_read.result()) is None:
                time.sleep(0.05)
            return outcome

        assert isinstance(read(), NetworkInput)
        for child in set(psutil.Process().children()) - set(before):
            if "spawn_main" in "".join(child.cmdline()):
                child.kill()
        time.sleep(1)  # the pool notices
        assert isinstance(read(), NetworkInput)
        assert isinstance(read(), NetworkInput)


def test_two_threads_that_meet_a_broken_pool_replace_it_once():
    with DecoderPool(OPTIONS, decoders=1) as pool:
        broken = pool._pool
        pool._replace(broken)
        new = pool._pool
        pool._replace(broken)
        assert new is not broken
        assert pool._pool is new, "the first one's films may be in it"


def test_no_decoder_lives_when_the_semaphores_it_may_still_look_for_are_unlinked(tmp_path, monkeypatch):
    film = make_film(tmp_path / "a.dcm")
    alive: list[int | None] = []
    others = multiprocessing.active_children()  # of another pool that this process has
    close = WorkerChannel.close

    def closed(channel: WorkerChannel) -> None:
        children = [process for process in multiprocessing.active_children() if process not in others]
        alive.extend(process.pid for process in children if process.name == WORKERS_NAME)
        close(channel)

    monkeypatch.setattr(WorkerChannel, "close", closed)
    with DecoderPool(OPTIONS, decoders=2) as pool:  # the second has just been started when the first has read its film
        assert isinstance(pool.submit(str(tmp_path / "a.dcm"), film.SOPInstanceUID).awaited(), NetworkInput)
    assert alive == []


def test_the_children_read_what_the_parent_asks_for(tmp_path):
    film = make_film(tmp_path / "a.dcm")
    with DecoderPool(OPTIONS, decoders=1) as reader:
        found = reader.submit(str(tmp_path / "a.dcm"), film.SOPInstanceUID).future.result(timeout=60)
    assert isinstance(found, NetworkInput)
    assert found.pixel_digest == digest_of(decode_film(str(tmp_path / "a.dcm"), film.SOPInstanceUID, OPTIONS))


def _hang(path: str, uid: str, reports: Connection) -> None:
    """A process of its own, whose decoder hangs in this film."""
    worker.scoring.decoder_pool.decode_film = decode_hostile_film  # type: ignore[attr-defined]  # imported there
    with DecoderPool(OPTIONS, decoders=1) as reader:
        reader.submit("/nowhere", "").future.exception(timeout=60)  # its process is up
        reader.submit(path, uid)
        time.sleep(1)  # and is at the film
        reports.send("it hangs")
        time.sleep(3600)


def test_a_decoder_that_hangs_ends_with_the_worker_that_is_killed(tmp_path):
    film = make_film(tmp_path / "a.dcm", SeriesDescription="hangs")
    hears, says = multiprocessing.Pipe(duplex=False)
    spawn = multiprocessing.get_context("spawn")
    victim = spawn.Process(target=_hang, args=(str(tmp_path / "a.dcm"), film.SOPInstanceUID, says))
    victim.start()
    assert hears.poll(60)
    children = psutil.Process(victim.pid).children(recursive=True)
    assert len(children) > 0
    victim.kill()
    _, left = psutil.wait_procs(children, timeout=10)
    for child in left:
        child.kill()
    assert left == []


def test_a_decoder_that_crashes_leaves_no_core_file() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare_child, initargs=(4096,)) as pool:
        assert pool.submit(resource.getrlimit, resource.RLIMIT_CORE).result() == (0, 0)
