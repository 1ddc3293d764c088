"""Single bit flips in compressed films: how many are refused, and how far the others move a probability.

python -m tests.benchmarks.flips [--syntax HTJ2KLossless --films 3 --flips 50 --seed 0 --half]
"""

import argparse
from collections import Counter

import numpy as np
import pydicom.uid
import torch
from pydicom.encaps import encapsulate, get_frame
from rich.console import Console

from tests.benchmarks.films import SHARED, upscaled
from tests.support.dicom_files import make_film
from training.checkpoint import SHIPPED, load_checkpoint
from training.imaging.dicom import UnusablePixels
from training.imaging.pixels import read_film
from training.imaging.quiet import quieten_pydicom
from worker.scoring.inference import Classifier

STEPS = (0.05, 0.01)  # of a probability, the larger first


def flipped(codestream: bytes, bit: int) -> bytes:
    damaged = bytearray(codestream)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def outcomes(
    classifier: Classifier, pixels: np.ndarray, syntax: pydicom.uid.UID, *, bits: np.ndarray, half: bool
) -> tuple[Counter[str], float]:
    """How flips at these places (shares of the codestream) end, and the largest change of a probability."""
    depth = 8 if syntax == pydicom.uid.JPEGBaseline8Bit else 12
    film = make_film(pixels=pixels >> (12 - depth), bits=depth, transfer_syntax=syntax)
    codestream = get_frame(film.PixelData, 0, number_of_frames=1)
    half_for = classifier.preprocessing.size if half else 0

    def probabilities() -> np.ndarray:
        return classifier.predict(read_film(film, half_for=half_for).network_input(classifier.preprocessing)[None])[0]

    whole, ends, worst = probabilities(), Counter[str](), 0.0
    for bit in (bits * len(codestream) * 8).astype(int):
        film.PixelData = encapsulate([flipped(codestream, bit)])
        try:
            change = float(np.abs(probabilities() - whole).max())
        except UnusablePixels as refused:
            ends[refused.reason] += 1
            continue
        worst = max(worst, change)
        ends[next((f"moved by more than {step}" for step in STEPS if change > step), "hardly moved")] += 1
    return ends, worst


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--syntax", default="HTJ2KLossless", help="its keyword in pydicom.uid")
    arguments.add_argument("--films", type=int, default=3)
    arguments.add_argument("--flips", type=int, default=50, help="of each film")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--half", action="store_true", help="decode at half the resolution where that is possible")
    asked = arguments.parse_args()

    quieten_pydicom()
    torch.set_num_threads(1)
    rng, originals = np.random.default_rng(asked.seed), sorted(SHARED.glob("*.png"))
    classifier = Classifier(load_checkpoint(SHIPPED), device=torch.device("cpu"), batch_size=1)
    ends, worst = Counter[str](), 0.0
    for i in range(asked.films):
        rows, columns = (int(side) // 2 * 2 for side in rng.uniform(1950, 2400, 2))
        pixels = upscaled(originals[i * 7 % len(originals)], rows, columns, rng)
        syntax = getattr(pydicom.uid, asked.syntax)
        of_film, largest = outcomes(classifier, pixels, syntax, bits=rng.random(asked.flips), half=asked.half)
        ends, worst = ends + of_film, max(worst, largest)
    Console().print(f"{asked.syntax}{' at half' if asked.half else ''}, seed {asked.seed}:", dict(ends),
                    f"largest change {worst:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
