"""The profile of one film in a decoder: milliseconds of processor time for each step, by transfer syntax.

python -m tests.benchmarks.steps [--rows 2500 --columns 2048]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from tests.benchmarks.films import SYNTAXES, textured
from tests.support.dicom_files import make_film
from training.checkpoint import SHIPPED, read_header
from training.imaging import digests
from training.imaging.allocator import keep_freed_memory
from training.imaging.decoders import decode, decode_reduced
from training.imaging.dicom import DEFAULT_LIMITS, PixelHeader, open_dataset
from training.imaging.pixels import read_film
from training.imaging.preprocessing import Preprocessing
from training.imaging.reduced_resolution import halvings_for

TIMES = 9


def milliseconds(work: Callable[[], object]) -> float:
    """Of processor time, the median of a few."""
    spent = []
    for _ in range(TIMES):
        begun = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - begun))
    return statistics.median(spent)


def profile(path: Path, preprocessing: Preprocessing) -> dict[str, float]:
    """step -> milliseconds; "all" is measured by itself, and what the steps leave of it is tables and checks."""
    dataset = open_dataset(path)
    header = PixelHeader.of(dataset, limits=DEFAULT_LIMITS)

    def pixels() -> np.ndarray:
        low = decode_reduced(dataset, header, halvings) if halvings else None
        return decode(dataset, header)[0] if low is None else low

    size = preprocessing.size
    halvings = halvings_for(header.rows, header.columns, size)
    stored, film = pixels(), read_film(dataset, reduced_for=size)
    return {
        "open the file": milliseconds(lambda: open_dataset(path)),
        "decode": milliseconds(pixels),
        "digest of the pixels": milliseconds(lambda: digests.of_pixels(stored, header.photometric)),
        "window and squash": milliseconds(lambda: film.network_input(preprocessing)),
        "all": milliseconds(lambda: read_film(open_dataset(path), reduced_for=size).network_input(preprocessing)),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=2500)
    arguments.add_argument("--columns", type=int, default=2048)
    chosen = arguments.parse_args()
    keep_freed_memory()
    pixels = textured(0, chosen.rows, chosen.columns, np.random.default_rng(0))
    preprocessing = read_header(SHIPPED).preprocessing
    found = {}
    with tempfile.TemporaryDirectory(prefix="nightread-steps-") as made:
        for name, syntax in SYNTAXES.items():
            path = Path(made) / "film.dcm"
            make_film(path, pixels=pixels, bits=12, transfer_syntax=syntax, WindowCenter=2048, WindowWidth=3800)
            found[name] = profile(path, preprocessing)
    Console().print(pd.DataFrame(found).round(1).to_string())


if __name__ == "__main__":
    main()
