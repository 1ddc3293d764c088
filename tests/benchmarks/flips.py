"""Single bit flips in compressed films: how many are refused, and how far the others move a probability.

python -m tests.benchmarks.flips --side 1024 [--syntax HTJ2KLossless --films 4 --flips 50 --seed 0 --reduced]
"""

import argparse
from collections import Counter

import numpy as np
import pydicom.uid
import torch
from pydicom.encaps import encapsulate, get_frame

from tests.benchmarks.films import SHARED, upscaled
from tests.support.dicom_files import make_film
from training.checkpoint import SHIPPED, load_checkpoint
from training.imaging.dicom import UnusablePixels
from training.imaging.pixels import read_film
from training.imaging.quiet import quieten_pydicom
from worker.scoring.inference import Classifier

STEPS = (0.05, 0.01)  # of a probability, the larger first
MOVED, HARDLY = "moved by more than {}", "hardly moved"
SYNTAXES = (
    "JPEGBaseline8Bit", "JPEGExtended12Bit", "JPEGLosslessSV1", "JPEGLossless", "JPEGLSLossless", "JPEGLSNearLossless",
    "JPEG2000Lossless", "JPEG2000", "HTJ2KLossless", "HTJ2K", "RLELossless",
)  # fmt: skip


def flipped(codestream: bytes, bit: int) -> bytes:
    damaged = bytearray(codestream)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def outcomes(
    classifier: Classifier, pixels: np.ndarray, syntax: pydicom.uid.UID, *, bits: np.ndarray, reduced: bool
) -> tuple[Counter[str], float]:
    """How flips at these places (shares of the codestream) end, and the largest change of a probability."""
    depth = 8 if syntax == pydicom.uid.JPEGBaseline8Bit else 12
    film = make_film(pixels=pixels >> (12 - depth), bits=depth, transfer_syntax=syntax)
    codestream = get_frame(film.PixelData, 0, number_of_frames=1)
    reduced_for = classifier.preprocessing.size if reduced else 0

    def probabilities() -> np.ndarray:
        return classifier.predict(
            read_film(film, reduced_for=reduced_for).network_input(classifier.preprocessing)[None]
        )[0]

    whole, ends, worst = probabilities(), Counter[str](), 0.0
    for bit in (bits * len(codestream) * 8).astype(int):
        film.PixelData = encapsulate([flipped(codestream, bit)])
        try:
            change = float(np.abs(probabilities() - whole).max())
        except UnusablePixels as refused:
            ends[refused.reason] += 1
            continue
        worst = max(worst, change)
        ends[next((MOVED.format(step) for step in STEPS if change > step), HARDLY)] += 1
    return ends, worst


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--syntax", nargs="+", default=SYNTAXES, help="keywords in pydicom.uid")
    arguments.add_argument("--films", type=int, default=4)
    arguments.add_argument("--flips", type=int, default=50, help="of each film")
    arguments.add_argument("--side", type=int, help="of the films in pixels; by default drawn from 1950 to 2400")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--reduced", action="store_true", help="decode at a lower resolution where that is possible")
    asked = arguments.parse_args()

    quieten_pydicom()
    torch.set_num_threads(1)
    originals = sorted(SHARED.glob("*.png"))
    classifier = Classifier(load_checkpoint(SHIPPED), device=torch.device("cpu"), batch_size=1)
    print(
        "| syntax | flips | refused | scored | moved by more than .05 | by more than .01 | largest change |\n"
        + "|---" * 7
        + "|"
    )
    for syntax in asked.syntax:
        rng, ends, worst = np.random.default_rng(asked.seed), Counter[str](), 0.0
        for i in range(asked.films):
            sides = (asked.side, asked.side) if asked.side else rng.uniform(1950, 2400, 2)
            rows, columns = (int(side) // 2 * 2 for side in sides)
            pixels = upscaled(originals[i * 7 % len(originals)], rows, columns, rng)
            bits = rng.random(asked.flips)
            of_film, largest = outcomes(
                classifier, pixels, getattr(pydicom.uid, syntax), bits=bits, reduced=asked.reduced
            )
            ends, worst = ends + of_film, max(worst, largest)
        print(table_row(syntax, ends, worst), flush=True)


def table_row(syntax: str, ends: Counter[str], worst: float) -> str:
    """One line of the table, as Markdown."""
    moved = [ends.pop(MOVED.format(step), 0) for step in STEPS]
    scored = sum(moved) + ends.pop(HARDLY, 0)
    refused = sum(ends.values())
    counts = (syntax, scored + refused, refused, scored, moved[0], sum(moved), f"{worst:.3f}")
    return f"| {' | '.join(map(str, counts))} |"


if __name__ == "__main__":
    main()
