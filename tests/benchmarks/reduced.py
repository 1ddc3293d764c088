"""Cost and effect of decoding JPEG 2000 at a lower resolution (training/imaging/reduced_resolution.py).

python -m tests.benchmarks.reduced [--films 38] [--window 2048 3800] [--sides 2000 3500]     (needs ../shared)
"""

import argparse
import time

import numpy as np
import torch
from pydicom.uid import JPEG2000Lossless
from rich.console import Console

from tests.benchmarks.films import SHARED, SIDES_PIXELS, upscaled
from tests.support.dicom_files import make_film
from training.checkpoint import SHIPPED, load_checkpoint, read_header
from training.imaging.pixels import Film, read_film
from training.imaging.reduced_resolution import MOST_HALVINGS
from worker.ranking.policy import THRESHOLD
from worker.ranking.priority import DEFAULT_POLICY, categories, urgencies
from worker.scoring.inference import Classifier


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--films", type=int, default=38)
    arguments.add_argument("--window", type=float, nargs=2, default=(2048, 3800), help="center and width, of 4096")
    arguments.add_argument("--sides", type=int, nargs=2, default=SIDES_PIXELS, help="of the films, in pixels")
    chosen = arguments.parse_args()
    center, width = chosen.window
    least, most = chosen.sides
    torch.set_num_threads(1)
    checkpoint, rng = load_checkpoint(SHIPPED), np.random.default_rng(0)
    classifier = Classifier(checkpoint, device=torch.device("cpu"), batch_size=4)
    thresholds = read_header(SHIPPED).cuts(THRESHOLD)
    ways: dict[str, list[np.ndarray]] = {
        "whole": [],
        "half": [],
        "as served": [],
        "one in a hundred input pixels by one": [],
    }
    cpu_ms, halvings = [], []
    for original in sorted(SHARED.glob("*.png"))[: chosen.films]:
        rows, columns = (int(side) for side in rng.uniform(least, most, size=2))
        pixels = upscaled(original, rows, columns, rng)
        dataset = make_film(
            pixels=pixels, bits=12, transfer_syntax=JPEG2000Lossless, WindowCenter=center, WindowWidth=width
        )
        inputs, spent = [], []
        for allowed in range(MOST_HALVINGS + 1):
            begun = time.process_time()
            film: Film = read_film(dataset, reduced_for=checkpoint.preprocessing.size, most_halvings=allowed)
            inputs.append(film.network_input(checkpoint.preprocessing))
            spent.append(1000 * (time.process_time() - begun))
        halvings.append(film.halvings)
        moved = rng.choice([-1, 0, 1], inputs[0].shape, p=[0.005, 0.99, 0.005])
        inputs.append(np.clip(inputs[0] + moved, 0, 255).astype(np.float16))
        for way, probabilities in zip(ways, classifier.predict(np.stack(inputs)), strict=True):
            ways[way].append(probabilities)
        cpu_ms.append(spent)
    console = Console()
    console.print("films by the halvings they are served with:", np.bincount(halvings, minlength=3).tolist())
    console.print("CPU ms per film: whole {:.0f}, half {:.0f}, as served {:.0f}".format(*np.median(cpu_ms, axis=0)))
    whole = np.array(ways.pop("whole"))
    for way, found in ways.items():
        changes = np.abs(np.array(found) - whole).max(axis=1)
        moved_category = categories(whole, DEFAULT_POLICY, thresholds) != categories(found, DEFAULT_POLICY, thresholds)
        ranks = [np.argsort(np.argsort(-urgencies(each, DEFAULT_POLICY))) for each in (whole, found)]
        console.print(
            f"{way}: largest change of a film's probabilities: median {np.median(changes):.4f}, most"
            f" {changes.max():.4f}; of {len(whole)} films {moved_category.sum()} change their category,"
            f" {(ranks[0] != ranks[1]).sum()} their rank by urgency, by {np.abs(ranks[0] - ranks[1]).max()} at most"
        )


if __name__ == "__main__":
    main()
