"""Heat maps against what radiologists outlined, and against networks that have forgotten what they learned.

    python -m tests.benchmarks.heatmaps --films ../shared/data/nih_films/img256 ../shared/data/nih_lungs \
        --boxes ../shared/data/nih_tables/BBox_List_2017.csv.gz --write

Pointing game (Zhang et al., IJCV 2018): a finding's map hits where its highest point lies in the box that NIH's
radiologists drew on a film with this finding; no tolerance around the box. Beside it stand three points that know
nothing of the film: one drawn at random from what is not black, the middle of what is not black, and the highest point
of the same finding's map on another film with a box (of the first and the last the expected share). The way of making
maps was chosen on the first, third, fifth ... of the films; --confirm plays on the others alone.

Randomisation (Adebayo et al., NeurIPS 2018): weights are drawn anew from the head down, and the map must change:
Spearman's rank correlation with the map of the trained network. --write keeps the pointing game in the checkpoint.
"""

import argparse
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from training.checkpoint import SHIPPED, Checkpoint, build, load_checkpoint, save_checkpoint
from training.explain import heatmaps
from training.findings import NIH_LABELS
from training.pointing import Pointing, wilson
from training.sources import encoded_films

SIDE = 1024  # of the films on which the boxes were drawn
ALIASES = {"Infiltrate": "Infiltration"}  # the list of boxes has its own word
DEPTHS = (0.0, 0.02, 0.25, 0.5, 1.0)  # shares of the layers, from the head down, that are drawn anew

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """An outlined finding, in shares of the film's sides."""

    finding: str
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        """Whether the point lies in it."""
        return bool(self.left <= x < self.right and self.top <= y < self.bottom)


@dataclass
class Game:
    """One finding's maps and the three points, over its boxes."""

    outlined: list[tuple[Box, int]] = field(default_factory=list)  # and the number of the film
    points: dict[int, tuple[float, float]] = field(default_factory=dict)  # the highest of each film's map
    random: float = 0.0  # expected hits
    centre: int = 0

    @property
    def boxes(self) -> int:
        return len(self.outlined)

    @property
    def hits(self) -> int:
        return sum(box.holds(*self.points[film]) for box, film in self.outlined)

    @property
    def other(self) -> float:
        """Expected hits of another film's point."""
        others = [
            [box.holds(*point) for film, point in self.points.items() if film != own] for box, own in self.outlined
        ]
        return float(sum(np.mean(hits) for hits in others if hits))

    @property
    def pointing(self) -> Pointing:
        """Counts for the checkpoint's record."""
        chance = max(self.random, self.centre, self.other) / max(1, self.boxes)
        return Pointing(self.boxes, self.hits, round(float(chance), 4))


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """NIH's BBox_List_2017.csv: image name -> its boxes."""
    boxes = defaultdict(list)
    for image, label, x, y, width, height in pd.read_csv(path).iloc[:, :6].itertuples(index=False):
        finding = NIH_LABELS[ALIASES.get(label, label)]
        if finding is not None:
            edges = (x / SIDE, y / SIDE, (x + width) / SIDE, (y + height) / SIDE)
            boxes[image].append(Box(finding, *edges))
    return boxes


def films_with_boxes(sources: Sequence[Path], boxes: dict[str, list[Box]]) -> Iterator[tuple[Grey, list[Box]]]:
    """The films of these folders that have a box."""
    names = {name: row for row, name in enumerate(boxes)}
    listed = list(boxes.values())
    for row, data in encoded_films(sources, names, on_damage=lambda path: print(f"{path} broke off")):
        with Image.open(io.BytesIO(data)) as image:
            yield np.asarray(image.convert("L")), listed[row]


def middle_of(lit: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The middle of what is not black, as shares of the sides."""
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    return (columns[0] + columns[-1] + 1) / 2 / lit.shape[1], (rows[0] + rows[-1] + 1) / 2 / lit.shape[0]


def share_within(lit: npt.NDArray[np.bool_], box: Box) -> float:
    """How likely a random point of what is not black lies in the box."""
    height, width = lit.shape
    inside = lit[
        round(box.top * height) : round(box.bottom * height), round(box.left * width) : round(box.right * width)
    ]
    return float(inside.sum() / lit.sum())


def play(checkpoint: Checkpoint, network: nn.Module, films: Sequence[tuple[Grey, list[Box]]]) -> dict[str, Game]:
    """The pointing game of each finding that has a box."""
    games: dict[str, Game] = defaultdict(Game)
    for number, (film, boxes) in enumerate(films):
        findings = sorted({box.finding for box in boxes} & set(checkpoint.findings))
        points = dict(zip(findings, _points(checkpoint, network, film, findings), strict=True))
        lit = film > 0
        for box in (box for box in boxes if box.finding in points):
            game = games[box.finding]
            game.outlined.append((box, number))
            game.points[number] = points[box.finding]
            game.random += share_within(lit, box)
            game.centre += box.holds(*middle_of(lit))
    return games


def _points(
    checkpoint: Checkpoint, network: nn.Module, film: Grey, findings: Sequence[str]
) -> Iterator[tuple[float, float]]:
    """The highest point of each finding's map, as shares of the sides."""
    preprocessing, outputs = checkpoint.preprocessing, [checkpoint.findings.index(finding) for finding in findings]
    network_input = preprocessing.image(film.astype(np.float32) / 255)
    for heat in heatmaps(network, network_input, preprocessing=preprocessing, outputs=outputs):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        yield (column + 0.5) / preprocessing.size, (row + 0.5) / preprocessing.size


def forgotten(checkpoint: Checkpoint, depth: float) -> nn.Module:
    """The network with this share of its layers, from the head down, drawn anew."""
    network = build(checkpoint)
    layers = [module for module in network.modules() if hasattr(module, "reset_parameters")]
    for layer in layers[len(layers) - round(depth * len(layers)) :]:
        cast(nn.Linear, layer).reset_parameters()
    return network.eval()


def likeness(checkpoint: Checkpoint, films: Sequence[Grey], *, depth: float) -> float:
    """Mean Spearman correlation of each film's map with that of a network that forgot; of its most probable finding."""
    trained, other, preprocessing = build(checkpoint), forgotten(checkpoint, depth), checkpoint.preprocessing
    correlations = []
    for film in films:
        network_input = preprocessing.image(film.astype(np.float32) / 255)
        with torch.inference_mode():
            output = int(trained(preprocessing.tensor(network_input[None])).argmax())
        maps = [
            heatmaps(each, network_input, preprocessing=preprocessing, outputs=[output])[0] for each in (trained, other)
        ]
        found = spearmanr(*(each[::4, ::4].ravel() for each in maps)).statistic
        correlations.append(0.0 if np.isnan(found) else float(found))
    return float(np.mean(correlations))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--films", type=Path, nargs="+", required=True, help="folders or archives with NIH's films")
    arguments.add_argument("--boxes", type=Path, required=True, help="BBox_List_2017.csv")
    arguments.add_argument("--checkpoint", type=Path, default=SHIPPED)
    arguments.add_argument("--forget-films", type=int, default=20, help="films of the randomisation")
    arguments.add_argument(
        "--confirm", action="store_true", help="only films on which no way of making maps was chosen"
    )
    arguments.add_argument("--write", action="store_true", help="keep the pointing game in the checkpoint's header")
    given = arguments.parse_args()
    torch.manual_seed(0)
    checkpoint = load_checkpoint(given.checkpoint, findings=None)
    films = list(films_with_boxes(given.films, read_boxes(given.boxes)))
    films = films[1::2] if given.confirm else films
    games = play(checkpoint, build(checkpoint), films)
    print(f"{len(films)} films, checkpoint {checkpoint.digest[:12]}\n")
    print("| finding | boxes | hits | 95 % interval | random point | centre | another film's | shown |")
    print("|---|---|---|---|---|---|---|---|")
    for finding, game in sorted(games.items(), key=lambda pair: -pair[1].boxes):
        low, high = wilson(game.hits, game.boxes)
        shown = "yes" if game.pointing.beats_chance else "no"
        shares = " | ".join(f"{hits / game.boxes:.2f}" for hits in (game.random, game.centre, game.other))
        print(f"| {finding} | {game.boxes} | {game.hits} | {low:.2f} to {high:.2f} | {shares} | {shown} |")
    print("\n| layers drawn anew, from the head down | rank correlation with the map before |\n|---|---|")
    forgetting = [film for film, _ in films[: given.forget_films]]
    for depth in DEPTHS:
        print(f"| {depth:.0%} | {likeness(checkpoint, forgetting, depth=depth):.2f} |")
    if given.write:
        record = {finding: game.pointing._asdict() for finding, game in sorted(games.items())}
        header = replace(checkpoint.header, training={**checkpoint.training, "pointing": record})
        print(f"\n{given.checkpoint} is now {save_checkpoint(given.checkpoint, header, state=checkpoint.state)}")


if __name__ == "__main__":
    main()
