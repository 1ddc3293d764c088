"""Films from disk to network input, in processes of their own.

A decoder is the one place where foreign bytes meet C code: it can crash, hang or eat memory. So it runs in a child
process with a time limit and a memory limit, and only the child pays. What comes back is small (a uint8 network input),
every core decodes, and no decoder's hold on the interpreter slows another.
"""

import hashlib
import multiprocessing
import resource
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool
from pydicom.dataset import Dataset

from training.imaging.child_process import exit_with_parent
from training.imaging.dicom import PixelLimits, UnusablePixels, dataset_in, read_content
from training.imaging.look_ahead import look_ahead
from training.imaging.pixels import LEAST_SIDE, Film, read_film
from training.imaging.preprocessing import Preprocessing
from training.imaging.quiet import quieten_pydicom
from worker.errors import Unavailable
from worker.scoring.allocator import keep_freed_memory

if TYPE_CHECKING:  # a decoder needs no database
    from worker.context import Context
from worker.reasons import sentence

log = structlog.get_logger()

FILMS_PER_PROCESS = 2000  # then a decoder process is replaced: what a C library leaks stays small


@dataclass(frozen=True)
class NetworkInput:
    """A film as the network sees it: uint8 (size, size), and the SHA-256 of its pixels and of its file."""

    image: NDArray[np.uint8]
    pixel_digest: str
    file_digest: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a film could not be read. `transient`: its file cannot be reached now; try again later."""

    reason: str
    sentence: str
    transient: bool = False


@dataclass(frozen=True)
class DecodeOptions:
    """Settings of every decoder process."""

    preprocessing: Preprocessing
    limits: PixelLimits
    timeout_seconds: float
    memory_mb: int
    halve_jpeg2000: bool = True

    @classmethod
    def of(cls, context: "Context", preprocessing: Preprocessing) -> Self:
        """The rules of this context for a checkpoint's films."""
        settings = context.settings
        return cls(
            preprocessing,
            context.pixel_limits,
            settings.decode.timeout_seconds,
            settings.decode.memory_mb,
            settings.halve_jpeg2000,
        )


def decode_film(
    path: str, sop_instance_uid: str, rules: DecodeOptions, pixel_digest: str | None = None
) -> NetworkInput | Failure:
    """Read one file, check that it still holds this instance, decode it and make the network's input.

    pixel_digest: that of a film that was scored; it must still show these pixels.
    """
    try:  # intake registered where the file really lay, within the roots: no link is followed from there
        content = read_content(Path(path), limits=rules.limits, follow_links=False)
        dataset = dataset_in(content, limits=rules.limits)
        if str(dataset.get("SOPInstanceUID", "")) != sop_instance_uid:
            return Failure("file_replaced", "the file now holds another instance than the one that was registered")
        half_for = rules.preprocessing.size if rules.halve_jpeg2000 else 0
        film = read_film(dataset, limits=rules.limits, half_for=half_for)
        if pixel_digest not in (None, film.pixel_digest) and pixel_digest != _other_digest(dataset, film, rules):
            return Failure("file_replaced", "the file now holds other pixels than those that were scored")
        file_digest = hashlib.sha256(content).hexdigest()
        return NetworkInput(film.network_input(rules.preprocessing), film.pixel_digest, file_digest)
    except UnusablePixels as error:
        return Failure(error.reason, str(error))
    except MemoryError:
        return Failure("too_large", f"decoding it needs more than {rules.memory_mb} MB of memory")
    except OSError as error:
        return Failure("file_unavailable", f"the file cannot be read: {error.strerror}", transient=True)


def _other_digest(dataset: Dataset, film: Film, rules: DecodeOptions) -> str:
    """Of a film decoded whole that of its half, if it has one, and of a half the whole's: which of them was scored
    depends on the size of the network's input."""
    other = 0 if film.whole is not None else LEAST_SIDE
    return read_film(dataset, limits=rules.limits, half_for=other).pixel_digest


def prepare_child(memory_mb: int) -> None:
    """In a new child: end with the parent, and leave no core file, for it would hold names.

    The address space is bounded, so that a bomb ends in MemoryError and not in swap.
    """
    exit_with_parent()
    quieten_pydicom()
    keep_freed_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))


class DecodersGone(Unavailable):
    """The pool of decoder processes broke down: a fault of the context, for which no film is blamed."""


class ScoredFilm(Protocol):
    """A film that was scored: where it lies, and what must still lie there."""

    @property
    def path(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def pixel_digest(self) -> str | None: ...


AnyFilm = TypeVar("AnyFilm", bound=ScoredFilm)


class DecoderPool:
    """Decoder processes; they start with the first film and end with the block."""

    def __init__(self, rules: DecodeOptions, *, decoders: int) -> None:
        self._rules, self._decoders = rules, decoders
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPool:
        # Never fork: a child forked from a process in which torch has run threads can hang for ever.
        return ProcessPool(
            max_workers=self._decoders,
            max_tasks=FILMS_PER_PROCESS,
            initializer=prepare_child,
            initargs=(self._rules.memory_mb,),
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

    def submit(self, path: str, sop_instance_uid: str, pixel_digest: str | None = None) -> "PendingFilm":
        """Begin to read one film."""
        return PendingFilm(lambda: self._schedule(path, sop_instance_uid, pixel_digest))

    def inputs(self, films: Iterable[AnyFilm], *, ahead: int) -> Iterator[tuple[AnyFilm, NetworkInput | Failure]]:
        """Read films that were scored, up to `ahead` of them side by side, and give them back in their order.

        Raises DecodersGone.
        """

        def begin(film: AnyFilm) -> tuple[AnyFilm, PendingFilm]:
            return film, self.submit(film.path, film.sop_instance_uid, film.pixel_digest)

        for film, pending in look_ahead(begin, films, depth=ahead - 1):
            yield film, pending.awaited()

    def _schedule(self, path: str, sop_instance_uid: str, pixel_digest: str | None) -> "Future[Any]":
        args, seconds = (path, sop_instance_uid, self._rules, pixel_digest), self._rules.timeout_seconds
        try:
            future: Future[Any] = self._pool.schedule(decode_film, args=args, timeout=seconds)
        except RuntimeError:  # pebble gives a pool up for good when a child ends while none has a film
            log.warning("decoders_replaced")
            self._end_pool()
            self._pool = self._new_pool()
            future = self._pool.schedule(decode_film, args=args, timeout=seconds)
        return future


class PendingFilm:
    """A film being read. When its child ends or takes too long it is given one more try: it may be a bystander."""

    def __init__(self, schedule: "Callable[[], Future[Any]]", *, tries: int = 2) -> None:
        self._schedule, self._tries_left = schedule, tries - 1
        self.future = schedule()

    def result(self) -> NetworkInput | Failure | None:
        """The outcome, or None when it is not known yet (also when a second try has just begun).

        Raises DecodersGone when it is the pool that failed, twice, and no film.
        """
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
            if not self._tries_left:
                raise DecodersGone("no decoder process can be kept alive on this machine: see the log") from error
        except Exception as error:  # noqa: BLE001 - whatever a film makes its decoder raise, only that film pays
            log.error("decoder_raised", error=type(error).__name__)
            return Failure("decoder_raised", f"decoding it raised {type(error).__name__}")
        if failure is not None and not self._tries_left:
            return failure
        self._tries_left -= 1
        self.future = self._schedule()
        return None

    def awaited(self) -> NetworkInput | Failure:
        """The outcome, however long it takes. Raises DecodersGone."""
        while (outcome := self.result()) is None:
            wait([self.future])
        return outcome
