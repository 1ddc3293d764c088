"""Decoder processes: films from disk to network input, beside the network.

A decoder is the one place where foreign bytes meet C code: it can crash, hang or eat memory. So it runs in a child
process with a time limit and a memory limit, and only the child pays. What comes back is small (a network input),
every core decodes, and no decoder's hold on the interpreter slows another.
"""

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import structlog
from pebble import ProcessExpired, ProcessPool

from training.imaging.look_ahead import look_ahead
from training.imaging.preprocessing import Preprocessing
from worker.errors import Unavailable
from worker.reasons import sentence
from worker.scoring.decoder_proof import begin_proof
from worker.scoring.decoding import DecodeOptions, Failure, NetworkInput, decode_film, prepare_child

log = structlog.get_logger()

FIRST_TRY_SECONDS = 10.0  # of a film's first try, if its time limit is longer: an ordinary film takes one or two
FILMS_PER_PROCESS = 2000  # then a decoder process is replaced: what a C library leaks stays small


class DecodersGone(Unavailable):
    """The pool of decoder processes broke down: a fault of this machine, for which no film is blamed."""


class ScoredFilm(Protocol):
    """A film that was scored: where it lies, and what must still lie there."""

    @property
    def path(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def pixel_digest(self) -> str | None: ...


AnyFilm = TypeVar("AnyFilm", bound=ScoredFilm)


class _Pool(ProcessPool):
    """pebble's pool, whose processes end before the semaphores that they share are unlinked.

    pebble unlinks them first: a process that is just starting then looks for them in vain, and prints a traceback.
    """

    def _stop_pool(self) -> None:
        if self._pool_manager_loop is not None:
            self._pool_manager_loop.join()  # it starts processes
        self._pool_manager.worker_manager.force_stop_workers()  # type: ignore[no-untyped-call]
        super()._stop_pool()  # type: ignore[no-untyped-call]


class DecoderPool:
    """Decoder processes; they start with the first film and end with the block."""

    def __init__(self, options: DecodeOptions, *, decoders: int) -> None:
        self.options, self._decoders = options, decoders
        self._pool = self._new_pool()
        self._replacing = threading.Lock()  # the web page's threads share a pool
        self._second_tries = SecondTries()

    def _new_pool(self) -> ProcessPool:
        # Never fork: a child forked from a process in which torch has run threads can hang for ever.
        return _Pool(
            max_workers=self._decoders,
            max_tasks=FILMS_PER_PROCESS,
            initializer=prepare_child,
            initargs=(self.options.memory_mb,),
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._end_pool()

    def _end_pool(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def submit(
        self,
        path: str,
        sop_instance_uid: str,
        pixel_digest: str | None = None,
        *,
        preprocessing: Preprocessing | None = None,
    ) -> "PendingFilm":
        """Begin to read one film, by the pool's own preprocessing unless another is named."""
        options = self.options if preprocessing is None else replace(self.options, preprocessing=preprocessing)

        def schedule(*, again: bool) -> "Future[Any]":
            args, longest = (path, sop_instance_uid, options, pixel_digest), options.timeout_seconds
            return self._schedule(decode_film, args=args, timeout=longest if again else min(FIRST_TRY_SECONDS, longest))

        return PendingFilm(schedule, second_tries=self._second_tries)

    def picture(self, film: ScoredFilm, preprocessing: Preprocessing) -> NetworkInput | Failure:
        """A film that was scored, as a preprocessing makes it. Raises DecodersGone."""
        pending = self.submit(film.path, film.sop_instance_uid, film.pixel_digest, preprocessing=preprocessing)
        return pending.awaited()

    def begin_proof(self) -> Callable[[], None]:
        """Begin to prove that a film can be decoded within the limits; returns what waits for the end of that, and
        raises TooLittleMemory."""
        return begin_proof(self._schedule, self.options)

    def inputs(self, films: Iterable[AnyFilm], *, ahead: int) -> Iterator[tuple[AnyFilm, NetworkInput | Failure]]:
        """Read films that were scored, up to `ahead` of them side by side, and give them back in their order.

        Raises DecodersGone.
        """

        def begin(film: AnyFilm) -> tuple[AnyFilm, PendingFilm]:
            return film, self.submit(film.path, film.sop_instance_uid, film.pixel_digest)

        for film, pending in look_ahead(begin, films, depth=ahead - 1):
            yield film, pending.awaited()

    def _schedule(self, function: Callable[..., Any], *, args: tuple[Any, ...], timeout: float) -> "Future[Any]":
        pool = self._pool
        try:
            future: Future[Any] = pool.schedule(function, args=args, timeout=timeout)
        except RuntimeError:  # pebble gives a pool up for good when a child ends while none has a film
            self._replace(pool)
            future = self._pool.schedule(function, args=args, timeout=timeout)
        return future

    def _replace(self, broken: ProcessPool) -> None:
        with self._replacing:
            if self._pool is broken:  # else another thread met it first
                log.warning("decoders_replaced")
                self._end_pool()
                self._pool = self._new_pool()


class Schedule(Protocol):
    """Begins a try of one film, behind what was begun before."""

    def __call__(self, *, again: bool) -> "Future[Any]": ...


class SecondTries:
    """Second tries of a pool's films, one at a time: films that hang hold one decoder for long, and never all."""

    def __init__(self) -> None:
        self._running: Future[Any] | None = None

    def begin(self, schedule: Schedule) -> "Future[Any] | None":
        """The second try of a film; None while another film's is not over."""
        if self._running is not None and not self._running.done():
            return None
        self._running = schedule(again=True)
        return self._running


class PendingFilm:
    """A film being read. When its child ends or takes too long it is given one more try: it may be a bystander.

    second: its first try failed.
    """

    def __init__(self, schedule: Schedule, *, second_tries: SecondTries) -> None:
        self._schedule, self._second_tries = schedule, second_tries
        self._waits, self.second = False, False
        self.future = schedule(again=False)

    def result(self) -> NetworkInput | Failure | None:
        """The outcome, or None when it is not known yet (also when a second try waits, or has just begun).

        Raises DecodersGone when it is the pool that failed, twice, and no film.
        """
        if self._waits:
            self._begin_second()
        if not self.future.done():
            return None
        failure: Failure | None = None
        try:
            outcome: NetworkInput | Failure = self.future.result()
            return outcome
        except TimeoutError:
            failure = Failure("decoder_timeout", sentence("decoder_timeout"))
        except ProcessExpired:
            failure = Failure("decoder_crashed", sentence("decoder_crashed"))
        except BrokenProcessPool as error:
            if self.second:
                raise DecodersGone("no decoder process can be kept alive on this machine: see the log") from error
        except Exception as error:  # noqa: BLE001 - whatever a film makes its decoder raise, only that film pays
            log.error("decoder_raised", error=type(error).__name__)
            return Failure("decoder_raised", f"decoding it raised {type(error).__name__}")
        if failure is not None and self.second:
            return failure
        self.second = True
        if failure is None:  # the pool's fault, and every film's
            self.future = self._schedule(again=True)
        else:
            self._begin_second()
        return None

    def _begin_second(self) -> None:
        begun = self._second_tries.begin(self._schedule)
        self._waits, self.future = begun is None, begun or Future()

    def awaited(self) -> NetworkInput | Failure:
        """The outcome, however long it takes. Raises DecodersGone."""
        while (outcome := self.result()) is None:
            wait([self.future], timeout=1)  # a second try that waits has no future of its own
        return outcome
