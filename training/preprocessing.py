"""From one film to the network's input. The same code trains and serves, and every checkpoint names it.

Two steps with a uint8 square between them: the square is what the training cache holds and what a decoding process
hands back, and it is small enough to travel. This module imports torch only where a tensor is made.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How a film becomes a network's input.

    name: "squash", the only one so far: both sides to ``size`` without keeping the aspect, as NIH made its PNGs.
    size: side of the square in pixels, 32 to 1024. channels: 1, or 3 equal ones for networks that began on ImageNet.
    mean, std: per channel, on the [0, 1] scale. Raises ValueError for anything else.
    """

    name: str = "squash"
    size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.name != "squash":
            raise ValueError(f"unknown preprocessing {self.name!r}; this version knows 'squash'")
        if not 32 <= self.size <= 1024:
            raise ValueError(f"input size must be 32 to 1024 pixels, not {self.size}")
        if self.channels not in (1, 3) or not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("channels must be 1 or 3, with one mean and one std for each")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")

    def image(self, film: NDArray[np.float32]) -> NDArray[np.uint8]:
        """float32 (H, W) in [0, 1] -> uint8 (size, size).

        ``reducing_gap=2`` box-averages down to twice the target before the bilinear step, which is several times
        faster on a full-size film. It is a filter of its own (sharp edges differ from the plain one by up to 11 of
        255 on NIH originals), so it is part of what "squash" means and must not be dropped for a checkpoint's films.
        """
        whole = Image.fromarray(np.ascontiguousarray(film, dtype=np.float32))  # mode "F", nothing rounded yet
        square = whole.resize((self.size, self.size), Image.Resampling.BILINEAR, reducing_gap=2.0)
        rounded: NDArray[np.uint8] = np.rint(np.clip(np.asarray(square), 0, 1) * 255).astype(np.uint8)
        return rounded

    def tensor(self, images: "NDArray[np.uint8] | torch.Tensor") -> "torch.Tensor":
        """uint8 (N, size, size), array or tensor on any device -> normalised float32 (N, channels, size, size)."""
        import torch

        pixels = torch.as_tensor(images)[:, None].float() / 255  # (N, 1, size, size) in [0, 1]
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def to_header(self) -> dict[str, Any]:
        """Plain values for the checkpoint's JSON header."""
        return asdict(self)

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Preprocessing":
        """The way back from ``to_header``. Raises ValueError when a field is missing, unknown or out of range."""
        try:
            return cls(**{**header, "mean": tuple(header["mean"]), "std": tuple(header["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a preprocessing header: {error}") from error
