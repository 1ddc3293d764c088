"""One DICOM data set, PNG or JPEG -> a float32 image in [0, 1], white = dense, as a radiologist's display shows it."""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from training.imaging import digests, reduced_resolution
from training.imaging.decoders import Pixels, decode, decode_reduced
from training.imaging.dicom import (
    DAMAGE,
    DEFAULT_LIMITS,
    BadPixelHeader,
    ConstantImage,
    PixelHeader,
    PixelLimits,
    TooLarge,
    Undecodable,
    UnsupportedPixels,
    UnusablePixels,
)
from training.imaging.grayscale import grey_table, is_smooth
from training.imaging.preprocessing import Preprocessing

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, the Y of DICOM's YBR_FULL (C.7.6.3.1.2)
SAMPLE_STEP, MIN_SAMPLES = 61, 32  # look at every 61st row and column, at least at 32 of each
LEAST_CONTRAST = 2 / 255
LEAST_SIDE = 32  # pixels: of the smallest network's input


@dataclass(frozen=True)
class Film:
    """A decoded film.

    pixels: the stored values as unsigned bit patterns, (rows, columns); of a film in colour its luminance, float32.
    greys: float32 in [0, 1], white = dense: what each pattern looks like; None beside a luminance.
    pixel_digest: digest of the decoded stored values, their shape, type and photometric interpretation: the
    same for the same film in every lossless transfer syntax, when all of it was decoded.
    halvings: how often the film's resolution was halved, 0 to 2; whole: (rows, columns) before that.
    """

    pixels: NDArray[Any]
    greys: NDArray[np.float32] | None
    pixel_digest: str
    halvings: int = 0
    whole: tuple[int, int] = (0, 0)

    def network_input(self, preprocessing: Preprocessing) -> NDArray[np.float16]:
        """float16 (size, size) in 0 to 255. Raises UnsupportedPixels for a film of too few pixels."""
        if min(self.pixels.shape) < LEAST_SIDE:
            rows, columns = self.pixels.shape
            raise UnsupportedPixels(f"The image has {rows} x {columns} pixels: too few to show a chest.")
        if self.halvings and self.greys is not None:
            return reduced_resolution.network_input(
                self.pixels, self.greys, self.whole, preprocessing.size, halvings=self.halvings
            )
        return preprocessing.image(self.pixels, self.greys)

    @property
    def image(self) -> NDArray[np.float32]:
        """The film as it is shown: float32 (rows, columns) in [0, 1], white = dense."""
        image: NDArray[np.float32] = (
            self.pixels if self.greys is None else np.take(self.greys, self.pixels, mode="clip")
        )
        return image

    @property
    def is_constant(self) -> bool:
        """Whether it shows nothing: all but a hundredth of its pixels, looked at here and there, are of one grey."""
        step = max(1, min(SAMPLE_STEP, *(side // MIN_SAMPLES for side in self.pixels.shape)))
        few = replace(self, pixels=self.pixels[::step, ::step]).image
        black, white = np.percentile(few, (1, 99))
        return bool(white - black < LEAST_CONTRAST)


def read_film(
    dataset: Dataset,
    *,
    limits: PixelLimits = DEFAULT_LIMITS,
    reduced_for: int = 0,
    most_halvings: int = reduced_resolution.MOST_HALVINGS,
) -> Film:
    """Decode a single-frame image and show it as its header wants it shown.

    reduced_for: the side of a network input that is all that will be asked for; JPEG 2000 may then be decoded at a half
    or a quarter of its resolution, which are 1 and 2 halvings. 0: all of it is decoded.
    Raises an UnusablePixels whose `reason` says what is wrong: no_pixel_data, multi_frame, bad_pixel_header,
    unsupported_pixels, unsupported_transfer_syntax, too_large, truncated, undecodable, bad_modality_lut,
    constant_image.
    """
    header = PixelHeader.of(dataset, limits=limits)
    if reduced_for:
        halvings = min(most_halvings, reduced_resolution.halvings_for(header.rows, header.columns, reduced_for))
        reduced = _reduced(dataset, header, halvings)
        if reduced is not None and not reduced.is_constant:
            return reduced
    stored, photometric = decode(dataset, header)
    digest = digests.of_pixels(stored, photometric)
    if header.photometric == "PALETTE COLOR":
        stored = _palette_to_rgb(stored, dataset)
    if stored.ndim == 3:
        bits = stored.dtype.itemsize * 8 if header.samples == 1 else header.bits_stored
        film = Film((stored.astype(np.float32) @ LUMA) / np.float32(2**bits - 1), None, digest)
    else:
        patterns = stored.view(f"u{stored.dtype.itemsize}")
        film = Film(patterns, grey_table(dataset, header, stored), digest)
        if film.is_constant:  # a window that shows nothing of this film is taken for a mistake and left out
            film = Film(patterns, grey_table(dataset, header, stored, windowed=False), digest)
    if film.is_constant:
        raise ConstantImage
    return film


def _reduced(dataset: Dataset, header: PixelHeader, halvings: int) -> Film | None:
    """The film with its resolution halved so often; None where that would not do, or no decoder can."""
    if not halvings or not header.photometric.startswith("MONOCHROME") or not is_smooth(dataset):
        return None
    low = decode_reduced(dataset, header, halvings)
    if low is None:
        return None
    greys = grey_table(dataset, header, low)
    if not reduced_resolution.is_straight(low, greys):
        return None
    digest = digests.of_pixels(low, header.photometric)
    return Film(low, greys, digest, halvings=halvings, whole=(header.rows, header.columns))


def read_picture(source: Path | BinaryIO, *, limits: PixelLimits = DEFAULT_LIMITS) -> NDArray[np.float32]:
    """A grey image from a PNG or a JPEG: float32 (height, width) in [0, 1].

    8 bits grey, or 16 of a PNG; of colours and palettes (some NIH films were saved as RGBA) the luminance, transparency
    ignored. Raises TooLarge or Undecodable; OSError when the file cannot be reached.
    """
    content = source.read_bytes() if isinstance(source, Path) else source.read()
    try:
        with Image.open(BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > limits.max_pixels:
                raise TooLarge(f"The image has {picture.height} x {picture.width} pixels, more than the limits allow.")
            if picture.mode.startswith("I"):
                return np.asarray(picture, dtype=np.float32) / np.float32(65535)
            return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)
    except UnusablePixels:
        raise
    except UnidentifiedImageError as error:
        raise Undecodable("The file is no PNG and no JPEG.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Undecodable("The picture is damaged.") from error


def _palette_to_rgb(indices: Pixels, dataset: Dataset) -> Pixels:
    try:
        return np.asarray(apply_color_lut(indices, dataset))
    except DAMAGE as error:
        raise BadPixelHeader("The colour palette is missing or damaged.") from error
