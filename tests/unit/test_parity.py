"""A film gives the network the same input from a PNG, as in training, and from DICOM, as in the night's work."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.support.dicom_files import make_film, texture
from training.imaging.pixels import read_film, read_picture
from training.imaging.preprocessing import Preprocessing

SYNTAXES = [
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEG2000Lossless,
    HTJ2KLossless,
    JPEGLSLossless,
    RLELossless,
]
PREPROCESSING = Preprocessing()
FLOAT16_STEP = 1 / 8  # of greys from 128 on: 12 bits are not 8, and round another way


def wrapped_input(grey: NDArray[np.float32], *, bits: int, photometric: str, syntax: UID) -> NDArray[np.float16]:
    """The network's input after the film, grey in [0, 1], has been written into a DICOM data set and read from it."""
    top = 2**bits - 1
    levels = np.rint(grey * top)
    if photometric == "MONOCHROME1":
        levels = top - levels
    pixels = levels.astype(np.uint8 if bits == 8 else np.uint16)
    # 8 bits come without a window, as NIH's conversions do; LINEAR from 0 to 4095 is center 2048, width 4096.
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits} if bits > 8 else {}
    inverse = {"PresentationLUTShape": "INVERSE"} if photometric == "MONOCHROME1" else {}
    film = make_film(pixels=pixels, bits=bits, photometric=photometric, transfer_syntax=syntax, **window, **inverse)
    return PREPROCESSING.image(read_film(film).image)


def assert_parity(path: Path, *, bits: int, photometric: str, syntax: UID) -> None:
    grey = read_picture(path)
    trained = PREPROCESSING.image(grey).astype(float)
    served = wrapped_input(grey, bits=bits, photometric=photometric, syntax=syntax).astype(float)
    assert np.abs(served - trained).max() <= FLOAT16_STEP


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_generated_films_are_the_same_to_the_network(tmp_path: Path, bits: int, photometric: str, syntax: UID) -> None:
    Image.fromarray(texture(300, 260, bits=8)).save(tmp_path / "film.png")
    assert_parity(tmp_path / "film.png", bits=bits, photometric=photometric, syntax=syntax)


@pytest.mark.real
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLosslessSV1, HTJ2KLossless], ids=lambda s: s.keyword)
def test_real_nih_films_are_the_same_to_the_network(shared: Path, bits: int, photometric: str, syntax: UID) -> None:
    paths = sorted((shared / "data" / "nih_films" / "originals_1024").glob("*.png"))
    chosen = [path for path in paths if Image.open(path).mode != "L"][:1] + paths[:3]
    for path in chosen:
        assert_parity(path, bits=bits, photometric=photometric, syntax=syntax)
