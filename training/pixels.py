"""One DICOM data set or PNG -> one float32 image in [0, 1], white = dense, as a radiologist's display would show it."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from training.decoders import Pixels, decode
from training.dicom import (
    DAMAGE,
    DEFAULT_LIMITS,
    BadPixelHeader,
    ConstantImage,
    PixelHeader,
    PixelLimits,
    TooLarge,
    Undecodable,
    UnusablePixels,
    open_dataset,
)
from training.greys import grey_table

__all__ = [
    "Film",
    "PixelLimits",
    "UnusablePixels",
    "open_dataset",
    "read_film",
    "read_png",
]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, the Y of DICOM's YBR_FULL (C.7.6.3.1.2)
BLOCK_ROWS = 32  # a block of the film, its indices and its greys stay in the processor's cache


@dataclass(frozen=True)
class Film:
    """A decoded film.

    image: float32 (rows, columns) in [0, 1], white = dense.
    pixel_digest: SHA-256 (hex) of the decoded stored values, their shape, type and photometric interpretation: the
    same for the same film in every lossless transfer syntax.
    """

    image: NDArray[np.float32]
    pixel_digest: str


def read_film(dataset: Dataset, *, limits: PixelLimits = DEFAULT_LIMITS) -> Film:
    """Decode a single-frame image and show it as its header wants it shown.

    Raises an UnusablePixels whose `reason` says what is wrong: no_pixel_data, multi_frame, bad_pixel_header,
    unsupported_pixels, unsupported_transfer_syntax, too_large, truncated, undecodable, bad_modality_lut,
    constant_image.
    """
    header = PixelHeader.of(dataset, limits=limits)
    stored, photometric = decode(dataset, header)
    digest = _digest(stored, photometric)
    if header.photometric == "PALETTE COLOR":
        stored = _palette_to_rgb(stored, dataset)
    if stored.ndim == 3:
        bits = stored.dtype.itemsize * 8 if header.samples == 1 else header.bits_stored
        image = (stored.astype(np.float32) @ LUMA) / np.float32(2**bits - 1)
    else:
        image = _shown(dataset, header, stored)
    if image.min() == image.max():
        raise ConstantImage
    return Film(image, digest)


def read_png(source: Path | BinaryIO, *, limits: PixelLimits = DEFAULT_LIMITS) -> NDArray[np.float32]:
    """A grey image from a PNG: float32 (height, width) in [0, 1].

    8 or 16 bits grey; of colours and palettes (some NIH films were saved as RGBA) the luminance, transparency ignored.
    Raises TooLarge or Undecodable; OSError when the file cannot be reached.
    """
    content = source.read_bytes() if isinstance(source, Path) else source.read()
    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as png:
            if png.width * png.height > limits.max_pixels:
                raise TooLarge(f"The image has {png.height} x {png.width} pixels, more than the limits allow.")
            if png.mode.startswith("I"):
                return np.asarray(png, dtype=np.float32) / np.float32(65535)
            return np.asarray(png.convert("L"), dtype=np.float32) / np.float32(255)
    except UnusablePixels:
        raise
    except UnidentifiedImageError as error:
        raise Undecodable("The file is not a PNG.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Undecodable("The PNG is damaged.") from error


def _shown(dataset: Dataset, header: PixelHeader, stored: Pixels) -> NDArray[np.float32]:
    """Stored values -> greys. A window that shows nothing of this film is taken for a mistake and left out."""
    image = _look_up(grey_table(dataset, header, stored), stored)
    if image.min() == image.max():
        image = _look_up(grey_table(dataset, header, stored, windowed=False), stored)
    return image


def _look_up(greys: NDArray[np.float32], stored: Pixels) -> NDArray[np.float32]:
    """greys: one per bit pattern. 6 ms for 2500 x 2048 values; in one go, and checking the bounds, 30."""
    patterns = stored.view(f"u{stored.dtype.itemsize}")
    image = np.empty(stored.shape, dtype=np.float32)
    for top in range(0, len(image), BLOCK_ROWS):
        block = slice(top, top + BLOCK_ROWS)
        np.take(greys, patterns[block], out=image[block], mode="clip")
    return image


def _palette_to_rgb(indices: Pixels, dataset: Dataset) -> Pixels:
    try:
        return np.asarray(apply_color_lut(indices, dataset))
    except DAMAGE as error:
        raise BadPixelHeader("The colour palette is missing or damaged.") from error


def _digest(stored: Pixels, photometric: str) -> str:
    digest = hashlib.sha256(f"{stored.shape} {stored.dtype.str} {photometric}".encode())
    digest.update(np.ascontiguousarray(stored).data)
    return digest.hexdigest()
