"""What it would save, and change, to decode JPEG 2000 at a quarter of its resolution: why Nightread does not.

python -m tests.benchmarks.reduced [--films 12]     (needs ../shared; OpenJPEG by Pillow, OpenJPH by imagecodecs)
"""

import argparse
import time
from collections.abc import Callable
from io import BytesIO

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from tests.benchmarks.films import SHARED, upscaled
from training.checkpoint import SHIPPED, load_checkpoint
from worker.inference import Classifier

MARGIN = 2  # the reduced image keeps at least this many times the network's input on both sides
WINDOW = (300, 3800)


def halvings(shape: tuple[int, ...], *, size: int) -> int:
    """How often both sides can be halved. A size of 3500 x 3000 for a 160-pixel input: three times."""
    count = 0
    while min(shape) // 2 ** (count + 1) >= MARGIN * size:
        count += 1
    return count


def by_pillow(codestream: bytes, count: int) -> NDArray[np.uint16]:
    with Image.open(BytesIO(codestream)) as film:
        film.reduce = count
        return np.asarray(film) >> 4  # Pillow scales 12 bits to 16


def timed(decode: Callable[[], NDArray[np.uint16]]) -> tuple[NDArray[np.uint16], float]:
    begun = time.process_time()
    pixels = decode()
    return pixels, 1000 * (time.process_time() - begun)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--films", type=int, default=12)
    torch.set_num_threads(1)
    checkpoint, rng = load_checkpoint(SHIPPED), np.random.default_rng(0)
    classifier = Classifier(checkpoint, device=torch.device("cpu"), batch_size=2)
    preprocessing, changes, cpu_ms = checkpoint.preprocessing, [], []
    for original in sorted(SHARED.glob("*.png"))[: arguments.parse_args().films]:
        rows, columns = (int(side) // 16 * 16 for side in rng.uniform(2000, 3500, size=2))
        pixels = upscaled(original, rows, columns, rng)
        count = halvings(pixels.shape, size=preprocessing.size)
        j2k = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", bitspersample=12, reversible=True, level=0)
        ht = imagecodecs.htj2k_encode(pixels, reversible=True)
        decoded = [
            timed(lambda: imagecodecs.jpeg2k_decode(j2k)),  # noqa: B023 - called at once
            timed(lambda: by_pillow(j2k, count)),  # noqa: B023
            timed(lambda: imagecodecs.htj2k_decode(ht)),  # noqa: B023
            timed(lambda: imagecodecs.htj2k_decode(ht, skipres=count)),  # noqa: B023
        ]
        squares = [preprocessing.image(shown(film)) for film, _ in decoded[:2]]
        whole, reduced = classifier.predict(np.stack(squares))
        changes.append(np.abs(whole - reduced).max())
        cpu_ms.append([spent for _, spent in decoded])
    names = ("JPEG 2000", "reduced", "HTJ2K", "reduced")
    spent = ", ".join(f"{name} {ms:.0f}" for name, ms in zip(names, np.median(cpu_ms, axis=0), strict=True))
    console = Console()
    console.print(f"CPU ms per film: {spent}")
    console.print(f"A film's largest change of a probability: median {np.median(changes):.3f}, most {max(changes):.3f}")


def shown(pixels: NDArray[np.uint16]) -> NDArray[np.float32]:
    low, high = WINDOW
    return np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1)


if __name__ == "__main__":
    main()
