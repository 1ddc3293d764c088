"""Make the demo's own checkpoint: draw thousands of other phantoms, and let `nightread train` learn from them.

    make demo-checkpoint        or        python -m worker.demo.learn [FOLDER]

It learns from drawings, says so in its header, and must not rank real films. Needs the `train` extra and a few
minutes of one core; docs/reference/demo-checkpoint.md holds the figures of the file that ships.
"""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from training.findings import FINDINGS
from worker.demo.film import Film, picture
from worker.demo.night import ARTISTS
from worker.terminal.console import out, progress

CHECKPOINT = Path(__file__).parent / "phantoms.safetensors"

FILMS, ROWS, SHARE = 2400, 384, 0.1  # how many, how large, and how often each finding is drawn into one
SEED = 2026  # any but the demo's
PURPOSE = "demo, learned from drawings"
FIT = "--network small --start chance --size 128 --shares 0.7 0.15 0.15 --epochs 6 --batch-size 8 --no-augment"
FIT += f" --learning-rate 0.002 --accelerator cpu --seed {SEED}"


def phantom(number: int) -> Film:
    """One film of the training set; each finding is there or not whatever the others are."""
    rng = np.random.default_rng([SEED, number])
    findings = tuple(finding for finding in FINDINGS if rng.random() < SHARE)
    return Film(findings, side=str(rng.choice(["left", "right"])), view=str(rng.choice(["PA", "AP"])))


def draw_films(
    folder: Path, *, films: int = FILMS, rows: int = ROWS, on_film: Callable[[int], None] = lambda _: None
) -> Path:
    """Write the films as PNG, and beside them the table of what is drawn in each; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)

    def save(number: int) -> dict[str, object]:
        film, name = phantom(number), f"{number:05d}.png"
        image = picture(film, rng=np.random.default_rng([SEED, number, 1]), rows=rows)
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / name, compress_level=1)
        on_film(1)
        labels = {finding: int(finding in film.findings) for finding in FINDINGS}
        return {"image": name, "patient": f"phantom {number}", "view": film.view, **labels}

    with ThreadPoolExecutor(ARTISTS) as artists:
        labelled = list(artists.map(save, range(films)))
    table = folder / "labels.csv"
    with table.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, labelled[0])
        writer.writeheader()
        writer.writerows(labelled)
    return table


def train(*words: str | Path) -> None:
    command = [sys.executable, "-m", "worker.cli", "train", *map(str, words)]
    out.print(" ".join(["nightread", *command[3:]]), soft_wrap=True)
    subprocess.run(command, check=True)  # noqa: S603  # its words are ours


def main(folder: Path) -> None:
    """Draw, prepare, fit, evaluate; then the checkpoint takes the place of the one that ships.

    Raises SystemExit where the folder is there: a run of other code must not be gone on with.
    """
    if folder.exists():
        raise SystemExit(f"{folder} is there from an earlier run: remove it or name another folder")
    films, prepared, run = (folder / name for name in ("films", "prepared", "run"))
    with progress("Drawing films to learn from", total=FILMS) as advance:
        table = draw_films(films, on_film=advance)
    train("prepare", prepared, "--table", table, "--images", films, "--size", "128")
    train("fit", prepared, run, "--purpose", PURPOSE, *FIT.split())
    train("evaluate", run / "checkpoint.safetensors", prepared, folder / "evaluation", "--lists", run)
    shutil.copyfile(run / "checkpoint.safetensors", CHECKPOINT)
    out.print(f"the demo's checkpoint: {CHECKPOINT}", soft_wrap=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo-checkpoint"))
