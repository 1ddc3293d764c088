"""One film from disk to network input, in a decoder process: what it imports, every decoder of the pool imports."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydicom.dataset import Dataset

from training.imaging import digests
from training.imaging.allocator import keep_freed_memory
from training.imaging.child_process import exit_with_parent
from training.imaging.dicom import PixelLimits, UnusablePixels, dataset_in, read_content
from training.imaging.pixels import LEAST_SIDE, Film, read_film
from training.imaging.preprocessing import Greys, Preprocessing
from training.imaging.quiet import quieten_pydicom
from training.imaging.reduced_resolution import MOST_HALVINGS
from worker.reasons import ReasonCode

if TYPE_CHECKING:  # a decoder needs no database
    from worker.context import Context


@dataclass(frozen=True)
class NetworkInput:
    """A film as the network sees it: float16 (size, size), and the digests of its pixels and of its file."""

    image: Greys
    pixel_digest: str
    file_digest: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a film could not be read. `transient`: its file cannot be reached now; try again later."""

    reason: ReasonCode
    sentence: str
    transient: bool = False


@dataclass(frozen=True)
class DecodeOptions:
    """Settings of every decoder process. `roots`: real paths, below which registered films lie; none: anywhere."""

    preprocessing: Preprocessing
    limits: PixelLimits
    timeout_seconds: float
    memory_mb: int
    reduce_jpeg2000: bool = True
    roots: tuple[str, ...] = ()

    @classmethod
    def of(cls, context: "Context", preprocessing: Preprocessing) -> Self:
        """Options by the settings, for films that this checkpoint's preprocessing makes inputs of."""
        settings = context.settings
        return cls(
            preprocessing,
            context.pixel_limits,
            settings.decode.timeout_seconds,
            settings.decode.memory_mb,
            settings.reduce_jpeg2000,
            tuple(map(os.path.realpath, settings.roots)),
        )


def decode_film(
    path: str, sop_instance_uid: str, options: DecodeOptions, pixel_digest: str | None = None
) -> NetworkInput | Failure:
    """Read one file, check that it still holds this instance, decode it and make the network's input.

    The one door to a film that was registered: for scoring, heat maps, the morning page, rescoring and retraining.
    pixel_digest: that of a film that was scored; it must still show these pixels.
    """
    if not _is_within(path, options.roots):
        return Failure("outside_roots", "the file lies outside the folders that this site receives from")
    try:  # intake registered where the file really lay: no link is followed from there
        content = read_content(Path(path), limits=options.limits, follow_links=False)
        dataset = dataset_in(content, limits=options.limits)
        if str(dataset.get("SOPInstanceUID", "")) != sop_instance_uid:
            return Failure("file_replaced", "the file now holds another instance than the one that was registered")
        reduced_for = options.preprocessing.size if options.reduce_jpeg2000 else 0
        film = read_film(dataset, limits=options.limits, reduced_for=reduced_for)
        if pixel_digest not in (None, film.pixel_digest) and not _shows(dataset, pixel_digest, film, options):
            return Failure("file_replaced", "the file now holds other pixels than those that were scored")
        file_digest = digests.of_content(content)
        return NetworkInput(film.network_input(options.preprocessing), film.pixel_digest, file_digest)
    except UnusablePixels as error:
        return Failure(error.reason, str(error))
    except MemoryError:
        return Failure("too_large", f"decoding it needs more than {options.memory_mb} MB of memory")
    except OSError as error:
        return Failure("file_unavailable", f"the file cannot be read: {error.strerror}", transient=True)


def _is_within(path: str, roots: tuple[str, ...]) -> bool:
    real = Path(os.path.normpath(path))  # exact, since a path through a link is not opened
    return not roots or any(real.is_relative_to(root) for root in roots)


def _shows(dataset: Dataset, pixel_digest: str | None, film: Film, options: DecodeOptions) -> bool:
    """Whether these are the pixels of this digest at another resolution than that of `film`: at which one they were
    scored depends on the size of the network's input. The whole film, the dearest, comes last."""
    for halvings in range(MOST_HALVINGS, -1, -1):
        if halvings != film.halvings:
            other = read_film(dataset, limits=options.limits, reduced_for=LEAST_SIDE, most_halvings=halvings)
            if other.pixel_digest == pixel_digest:
                return True
    return False


def prepare_child(memory_mb: int | None) -> None:
    """In a new child: end with the parent, and leave no core file, for it would hold names.

    The address space is bounded, so that a bomb ends in MemoryError and not in swap; None: it is not.
    """
    exit_with_parent()
    quieten_pydicom()
    keep_freed_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))
