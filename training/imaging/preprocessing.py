"""From one film to the network's input. The same code trains and serves, and every checkpoint names it.

Two steps with a small network input between them, which the training cache holds and a decoding process hands back. It
is float16 in 0 to 255: rounding it to whole greys moved probabilities by up to .10 (training-records.md, 17). This
module imports torch only where a tensor is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GAP = 2.0  # how many times the target's sides are left to the bilinear step, at least
BLOCK_ROWS = 32  # a block of the film, its indices and its greys stay in the processor's cache
ALIKE = 1e-6  # between two greys: a 4000th of a whole one

Greys = NDArray[np.float16 | np.uint8]
"""A network input or several, (size, size) or (N, size, size), in 0 to 255: float16, or whole greys as uint8."""


@dataclass(frozen=True)
class Preprocessing:
    """How a film becomes a network's input.

    name: "squash_inner", the only one: both sides to ``size`` without keeping the aspect, as NIH made its PNGs, and the
    outermost pixels replaced by those beside them (`as_network_input`).
    size: side of the input in pixels, 32 to 1024. channels: 1, or 3 equal ones for networks that began on ImageNet.
    mean, std: per channel, on the [0, 1] scale. Raises ValueError for anything else.
    """

    name: str = "squash_inner"
    size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.name != "squash_inner":
            raise ValueError(f"unknown preprocessing {self.name!r}; this version knows 'squash_inner'")
        if not 32 <= self.size <= 1024:
            raise ValueError(f"input size must be 32 to 1024 pixels, not {self.size}")
        if self.channels not in (1, 3) or not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("channels must be 1 or 3, with one mean and one std for each")
        if not np.isfinite([*self.mean, *self.std]).all() or min(self.std) <= 0:
            raise ValueError("mean and std must be finite numbers, std above zero")

    def image(self, film: NDArray[Any], greys: NDArray[np.float32] | None = None) -> NDArray[np.float16]:
        """float32 (H, W) in [0, 1] -> float16 (size, size) in 0 to 255.

        greys: float32 (values,); the film is then whole numbers from 0 on, (H, W), and these are what they look like.
        A film of full size is averaged over whole boxes, down to about twice the target, before the bilinear step,
        which is several times faster. It is a filter of its own (sharp edges differ from the plain one by up to 11 of
        255 on NIH originals), so it is part of what the name means and must not be dropped for a checkpoint's films.
        """
        factor = int(len(film) / self.size / GAP) or 1
        fewer = Image.fromarray(fewer_rows(film, greys, factor))  # mode "F", nothing rounded yet
        box = (0, 0, fewer.width, len(film) / factor)  # Pillow's own boxes do the columns
        network_input = fewer.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box, reducing_gap=GAP)
        return as_network_input(np.asarray(network_input))

    def tensor(self, images: "Greys | torch.Tensor") -> "torch.Tensor":
        """(N, size, size) in 0 to 255, array or tensor of any number type and device -> normalised float32
        (N, channels, size, size)."""
        import torch

        pixels = torch.as_tensor(images)[:, None].float() / 255  # (N, 1, size, size) in [0, 1]
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Preprocessing":
        """Read from a checkpoint's JSON header. Raises ValueError when a field is missing, unknown or out of range."""
        try:
            return cls(**{**header, "mean": tuple(header["mean"]), "std": tuple(header["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a preprocessing header: {error}") from error


def as_network_input(image: NDArray[np.float32]) -> NDArray[np.float16]:
    """Greys in [0, 1], (size, size) -> float16 in 0 to 255, the outermost pixels replaced by those beside them.

    On a film's edge lie the lines that scanners and exports leave, narrower than what a lower resolution shows. They
    moved probabilities more than all else that it changed (docs/background/performance.md), and tell a film's source.
    """
    pixels = np.clip(image[1:-1, 1:-1], 0, 1) * 255
    return np.pad(pixels.astype(np.float16), 1, mode="edge")


def as_picture(network_input: Greys) -> NDArray[np.uint8]:
    """A network input as it is drawn: whole greys."""
    picture: NDArray[np.uint8] = np.rint(network_input).astype(np.uint8)
    return picture


def fewer_rows(film: NDArray[Any], greys: NDArray[np.float32] | None, factor: int) -> NDArray[np.float32]:
    """The greys of a film, each `factor` rows averaged, the last ones from what is left: float32 (ceil(H / factor), W).

    A table that is a ramp needs no look-up: pixels are clipped to its ends and added as the whole numbers that they
    are, and only their averages become greys: 3 ms for 2750 x 2750 pixels, where looking all of them up takes 16.
    """
    if greys is None:
        return _averaged(film, lambda block: block, factor, sums=np.float32)
    ramp = ramp_of(greys)
    if ramp is None:
        return _averaged(film, lambda block: np.take(greys, block, mode="clip"), factor, sums=np.float32)
    low, high = sorted(ramp)
    sums = np.min_scalar_type(factor * high)
    averages = _averaged(film, lambda block: np.clip(block, low, high), factor, sums=sums, black=low)
    averages /= high - low
    return averages if ramp == (low, high) else 1 - averages


def _averaged(
    film: NDArray[Any], show: Callable[[NDArray[Any]], NDArray[Any]], factor: int, *, sums: DTypeLike, black: int = 0
) -> NDArray[np.float32]:
    """Each `factor` rows of what `show` makes of a film averaged, less `black`, block by block, so that no film stands
    in memory in another type than its own. sums: the type in which `factor` pixels are added."""
    averaged = np.empty((-(-len(film) // factor), film.shape[1]), dtype=np.float32)
    step = max(1, BLOCK_ROWS // factor)  # averaged rows in a block
    for top in range(0, len(averaged), step):
        shown = show(film[top * factor : (top + step) * factor])
        whole = len(shown) // factor
        boxes = shown[: whole * factor].reshape(whole, factor, film.shape[1])
        averaged[top : top + whole] = np.add.reduce(boxes, axis=1, dtype=sums) - black * factor
        averaged[top : top + whole] /= factor
        if len(shown) % factor:
            averaged[top + whole] = shown[whole * factor :].mean(axis=0) - black
    return averaged


def ramp_of(greys: NDArray[np.float32]) -> tuple[int, int] | None:
    """The last black value and the first white one of a table that is straight between them and flat outside, as most
    windows are, MONOCHROME1's from white to black; None for any other table."""
    black, white = np.flatnonzero(greys <= 0), np.flatnonzero(greys >= 1)
    if not len(black) or not len(white):
        return None
    ends = (int(black[-1]), int(white[0])) if black[0] < white[0] else (int(black[0]), int(white[-1]))
    straight = np.clip((np.arange(len(greys)) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return ends if np.abs(greys - straight).max() < ALIKE else None
