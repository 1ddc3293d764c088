"""Proof that the limits of the settings let a decoder process decode an ordinary film on this machine.

How much address space a decoder has taken before its first film depends on the machine (libraries reserve some for each
core). A limit below that would quarantine every film, each as if it were the film's fault.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pebble import ProcessPool
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from training.imaging.dicom import PixelLimits
from training.imaging.pixels import read_film
from worker.errors import Unavailable
from worker.scoring.decoding import DecodeOptions, prepare_child

SIDES = (2500, 3000)  # rows and columns of an ordinary film
PATIENCE_SECONDS = 60.0  # for a machine that does much else; the time limit of films is not what is proved here
MB_STEP = 64  # to which the least limit is rounded up


class TooLittleMemory(Unavailable):
    """No film can be decoded within NIGHTREAD_DECODE_MEMORY_MB on this machine."""


def begin_proof(schedule: Callable[..., "Future[Any]"], options: DecodeOptions) -> Callable[[], None]:
    """Begin to decode a generated film in a decoder process; returns what waits for it, and raises TooLittleMemory."""
    future = schedule(decode_generated, args=(generated_film(), options), timeout=PATIENCE_SECONDS)

    def wait() -> None:
        try:
            future.result()
        except TimeoutError:  # a machine that is busy, not a limit in which nothing can run
            return
        except Exception as error:  # a generated film is sound: whatever it raises, it is the limit's fault
            raise TooLittleMemory(
                f"NIGHTREAD_DECODE_MEMORY_MB is {options.memory_mb}, in which no film can be decoded on this machine: "
                f"set {least_memory_mb(options)} or more"
            ) from error

    return wait


def least_memory_mb(options: DecodeOptions) -> int:
    """The least limit in which a decoder process decodes the generated film, rounded up."""
    with ProcessPool(
        max_workers=1, initializer=prepare_child, initargs=(None,), context=multiprocessing.get_context("spawn")
    ) as pool:
        peak: int = pool.schedule(_peak_mb, args=(generated_film(), options), timeout=PATIENCE_SECONDS).result()
    return -(-peak // MB_STEP) * MB_STEP


def decode_generated(film: Dataset, options: DecodeOptions) -> None:
    """As every film is decoded, whole; raises whatever it raises."""
    read_film(film, limits=PixelLimits()).network_input(options.preprocessing)


def _peak_mb(film: Dataset, options: DecodeOptions) -> int:
    """The most address space that this process has had, with the film decoded. The limit counts the same."""
    decode_generated(film, options)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmPeak"].split()[0]) // 1024


def generated_film() -> Dataset:
    """A film of an ordinary size in JPEG 2000, not more than a quick gradient."""
    rows, columns = SIDES
    pixels = np.add.outer(np.arange(rows), np.arange(columns)).astype(np.uint16) % 4096
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = JPEG2000Lossless
    film.Rows, film.Columns, film.SamplesPerPixel = rows, columns, 1
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PhotometricInterpretation = "MONOCHROME2"
    film.PixelData = encapsulate([bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", bitspersample=12))])
    return film
