"""Films turned, moved, scaled and relit a little, so that few of them last longer.

What is drawn for a film depends on (seed, position in the stream of training films) and on nothing else. So a run that
was killed and resumed sees the very same films, on any number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

GRAIN: Final = 0.1  # of the pixels, moved by one grey
SHIFT: Final = 0.15  # pixels, either way
SHARPNESS: Final = 0.1  # of what differs from the neighbours' mean, more or less of it


@dataclass(frozen=True)
class Augmentation:
    """The most that is done either way: degrees, shares of the side, doublings of size and contrast, gray in [0, 1]."""

    rotation_degrees: float = 10
    translation: float = 0.06
    scale: float = 0.12
    brightness: float = 0.12
    contrast: float = 0.2

    def __call__(self, images: Tensor, *, seed: int, positions: Sequence[int]) -> Tensor:
        """(N, size, size) in 0 to 255 on any device -> float32 (N, size, size) in 0 to 255, black where nothing was."""
        drawn = torch.from_numpy(_drawn(seed, positions)).to(images.device)  # (N, 6), each uniform in [-1, 1]
        turn = drawn[:, 0] * np.deg2rad(self.rotation_degrees)
        zoom = torch.exp2(drawn[:, 1] * self.scale)
        move = drawn[:, 2:4] * 2 * self.translation  # grid_sample's side is 2 units long
        rows = [zoom * turn.cos(), -zoom * turn.sin(), move[:, 0], zoom * turn.sin(), zoom * turn.cos(), move[:, 1]]
        grid = affine_grid(
            torch.stack(rows, dim=1).view(-1, 2, 3), [len(images), 1, *images.shape[1:]], align_corners=False
        )
        moved = grid_sample(images[:, None].float(), grid, align_corners=False)[:, 0]  # (N, size, size)
        contrast = torch.exp2(drawn[:, 4] * self.contrast).view(-1, 1, 1)
        brightness = (drawn[:, 5] * self.brightness * 255).view(-1, 1, 1)
        return ((moved - 128) * contrast + 128 + brightness).clamp(0, 255)


def slightly_changed(images: Tensor, *, drawn: torch.Generator) -> Tensor:
    """Films (N, size, size), 0 to 255, as another way of making them smaller might have given them: with some grain,
    moved by parts of a pixel, sharper or smoother; float32 on the same device. `drawn` is on the CPU."""

    def random(*shape: int) -> Tensor:  # uniform in [-1, 1)
        return (2 * torch.rand(shape, generator=drawn) - 1).to(images.device)

    films = images.float()
    around = pad(films[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    above, below, left, right = around[:, :-2, 1:-1], around[:, 2:, 1:-1], around[:, 1:-1, :-2], around[:, 1:-1, 2:]
    down, across = SHIFT * random(len(films), 1, 1), SHIFT * random(len(films), 1, 1)
    sharper = SHARPNESS * random(len(films), 1, 1)
    moved = films + down * (below - above) / 2 + across * (right - left) / 2
    moved += sharper * (films - (above + below + left + right) / 4)
    grain = random(*films.shape)
    return (moved + grain.sign() * (grain.abs() < GRAIN)).clamp(0, 255)


def _drawn(seed: int, positions: Sequence[int]) -> NDArray[np.float32]:
    """Six numbers in [-1, 1) for each position, float32 (N, 6)."""
    return np.stack([np.random.default_rng((seed, position)).uniform(-1, 1, 6) for position in positions]).astype(
        np.float32
    )
