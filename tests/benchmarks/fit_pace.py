"""Images per second of `train fit`'s epoch, from the prepared set on disk, beside the same steps on batches in memory.

python -m tests.benchmarks.fit_pace [--turns 5] [--films 256]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from training import fit
from training.findings import FINDINGS
from training.fit import Films, Learner, launch, make_learner, train_epoch, training_batches
from training.networks import input_of
from training.settings import Settings

SIZE, BATCH = 160, 32  # pixels, films: a retraining's
PREPARED_FILMS = 4096  # enough of them that an epoch's are not the last epoch's


def films_on_disk(folder: Path) -> Films:
    """Images of noise, memory-mapped as a prepared folder's are."""
    rng = np.random.default_rng(0)
    path = folder / "images.npy"
    np.save(path, rng.integers(0, 256, (PREPARED_FILMS, SIZE, SIZE), dtype=np.uint8))
    labels = (rng.random((PREPARED_FILMS, len(FINDINGS))) < 0.2).astype(np.uint8)
    return Films(np.load(path, mmap_mode="r"), np.arange(PREPARED_FILMS), labels)


def in_memory(learner: Learner, films: Films, *, epoch: int) -> Callable[[], float]:
    """The same epoch with its batches read and augmented before the clock starts."""
    batches = list(training_batches(learner, films, epoch=epoch))

    def run() -> float:
        with patch.object(fit, "training_batches", lambda *_, **__: iter(batches)):
            return train_epoch(learner, films, epoch=epoch)

    return run


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of the clock and of the processor."""
    begun, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - spent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=5, help="how often each is measured, one after the other")
    arguments.add_argument("--films", type=int, default=256, help="films of one measurement")
    arguments.add_argument("--threads", type=int, default=1, help="of the network")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    settings = Settings(start="chance", batch_size=BATCH, steps_per_epoch=chosen.films // BATCH, accelerator="cpu")
    found: dict[str, list[tuple[float, float]]] = {"from disk": [], "in memory": []}
    with tempfile.TemporaryDirectory(prefix="nightread-pace-") as made:
        films, fabric = films_on_disk(Path(made)), launch(settings, Path(made))
        preprocessing = input_of(settings.network, size=SIZE)
        learner = make_learner(fabric, settings, films, findings=FINDINGS, preprocessing=preprocessing)
        train_epoch(learner, films, epoch=0)
        for turn in range(1, chosen.turns + 1):
            ready = in_memory(learner, films, epoch=2 * turn)
            found["in memory"].append(seconds(ready))
            found["from disk"].append(seconds(partial(train_epoch, learner, films, epoch=2 * turn + 1)))
    rates = pd.DataFrame(
        {name: chosen.films / np.median(measured, axis=0) for name, measured in found.items()},
        index=["images/s", "images/s of processor time"],
    ).T
    ratio = statistics.median(m[0] / d[0] for m, d in zip(found["in memory"], found["from disk"], strict=True))
    Console().print(rates.round(1).to_string(), f"\nfrom disk / in memory: {ratio:.3f} (median over the turns)")


if __name__ == "__main__":
    main()
