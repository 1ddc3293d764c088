"""From a data set or a PNG to one image in [0, 1]."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import data_store
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from tests.support.dicom_files import LOSSLESS_SYNTAXES, make_film, texture
from training.imaging.dicom import (
    BadPixelHeader,
    ConstantImage,
    PixelLimits,
    UnsupportedPixels,
    UnusablePixels,
    open_dataset,
)
from training.imaging.pixels import read_film, read_picture
from training.imaging.preprocessing import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PYDICOM_FILES = Path(data_store.__file__).parent / "data"


def reason(film: Dataset) -> str:
    with pytest.raises(UnusablePixels) as refused:
        read_film(film)
    return refused.value.reason


def png(image: Image.Image) -> BytesIO:
    file = BytesIO()
    image.save(file, format="PNG")
    file.seek(0)
    return file


def test_a_film_is_one_float_image_between_zero_and_one() -> None:
    film = read_film(make_film())
    assert film.image.shape == (96, 80)
    assert film.image.dtype == np.float32
    assert (film.image.min(), film.image.max()) == (0, 1)


@pytest.mark.parametrize("signed", [False, True])
def test_the_pixel_digest_is_the_same_in_every_lossless_syntax(signed: bool) -> None:
    pixels = texture(64, 48, bits=12, signed=signed)
    films = [make_film(pixels=pixels, bits=12, transfer_syntax=syntax) for syntax in LOSSLESS_SYNTAXES]
    assert len({read_film(film).pixel_digest for film in films}) == 1


def test_the_pixel_digest_tells_other_pixels_shapes_and_photometrics_apart() -> None:
    pixels = texture(40, 30)
    changed = pixels.copy()
    changed[0, 0] ^= 1
    films = [
        make_film(pixels=pixels, bits=12),
        make_film(pixels=changed, bits=12),
        make_film(pixels=pixels.reshape(30, 40), bits=12),
        make_film(pixels=pixels, bits=12, photometric="MONOCHROME1"),
    ]
    assert len({read_film(film).pixel_digest for film in films}) == 4


@pytest.mark.parametrize("value", [0, 1000, 4095])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_a_film_of_one_value_shows_nothing(value: int, window: dict[str, Any]) -> None:
    with pytest.raises(ConstantImage):
        read_film(make_film(pixels=np.full((9, 9), value, np.uint16), bits=12, **window))


def test_a_film_that_shows_something_in_a_few_pixels_alone_shows_nothing() -> None:
    pixels = np.zeros((400, 400), np.uint16)
    pixels[7, 9] = 1
    with pytest.raises(ConstantImage):
        read_film(make_film(pixels=pixels, bits=12))


def test_a_window_that_shows_a_few_pixels_alone_is_left_out() -> None:
    pixels = texture(400, 300)
    pixels[0, 0] = 4095
    network_input = read_film(make_film(pixels=pixels, bits=12, WindowCenter=4094.5, WindowWidth=1)).network_input(
        Preprocessing()
    )
    assert (network_input == read_film(make_film(pixels=pixels, bits=12)).network_input(Preprocessing())).all()


@pytest.mark.parametrize("shape", [(2, 2), (1, 6000), (4000, 31)])
def test_a_film_of_too_few_pixels_makes_no_square(shape: tuple[int, int]) -> None:
    film = read_film(make_film(pixels=texture(*shape), bits=12))
    with pytest.raises(UnsupportedPixels):
        film.network_input(Preprocessing())


def test_values_that_lie_in_other_bits_than_the_lowest_are_refused() -> None:
    film = make_film(pixels=texture() << 4, bits=12)
    film.HighBit = 15
    with pytest.raises(BadPixelHeader, match="High Bit"):
        read_film(film)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_grey_in_three_channels_becomes_grey(photometric: str, syntax: str) -> None:
    grey = texture(20, 30, bits=8)
    neutral = grey if photometric == "RGB" else np.full_like(grey, 128)
    film = make_film(pixels=np.stack([grey, neutral, neutral], axis=2), photometric=photometric, transfer_syntax=syntax)
    np.testing.assert_allclose(read_film(film).image, grey / 255, atol=1 / 255)


def test_colours_become_their_luminance() -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    image = read_film(make_film(pixels=primaries, photometric="RGB")).image
    np.testing.assert_allclose(image, [[0.299, 0.587, 0.114]], atol=1e-6)


def test_planes_one_after_the_other_are_colours_too() -> None:
    grey = texture(20, 30, bits=8)
    film = make_film(pixels=np.stack([grey] * 3, axis=2), photometric="RGB", PlanarConfiguration=1)
    film.PixelData = np.stack([grey] * 3).tobytes()
    np.testing.assert_allclose(read_film(film).image, grey / 255, atol=1e-6)


def test_a_baseline_jpeg_in_colour_is_read() -> None:
    grey = texture(64, 48, bits=8)
    film = make_film(pixels=np.stack([grey] * 3, axis=2), photometric="YBR_FULL_422", transfer_syntax=JPEGBaseline8Bit)
    assert np.abs(read_film(film).image - grey / 255).mean() < 0.02


def test_a_palette_is_resolved_to_its_luminance() -> None:
    film = make_film(pixels=np.array([[0, 1], [2, 3]], np.uint8), photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(film, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(film, f"{colour}PaletteColorLookupTableData", np.array([0, 20000, 40000, 65535], "<u2").tobytes())
    np.testing.assert_allclose(read_film(film).image, np.array([[0, 20000], [40000, 65535]]) / 65535, atol=1e-4)


def test_a_palette_that_is_missing_is_a_bad_header() -> None:
    assert reason(make_film(pixels=texture(8, 8, bits=8), photometric="PALETTE COLOR")) == "bad_pixel_header"


def test_the_error_of_a_refused_film_names_nobody() -> None:
    film = make_film(transfer_syntax=JPEG2000Lossless)
    film.PixelData = film.PixelData[:-200]
    with pytest.raises(UnusablePixels) as refused:
        read_film(film)
    for secret in (film.SOPInstanceUID, film.StudyInstanceUID, film.PatientID, str(film.PatientName)):
        assert secret not in str(refused.value)


@pytest.mark.parametrize("size", ["J2KR", "J2KI", "UNCI"])
def test_a_real_chest_film_has_dark_lungs_and_a_white_spine(size: str) -> None:
    image = read_film(open_dataset(PYDICOM_FILES / f"RG1_{size}.dcm")).image  # MONOCHROME1
    rows, columns = image.shape
    spine = image[rows // 3 : rows // 2, int(0.47 * columns) : int(0.53 * columns)]
    lungs = image[rows // 4 : rows // 3, int(0.2 * columns) : int(0.3 * columns)]
    assert lungs.mean() < spine.mean() - 0.2


def test_a_lossless_copy_of_a_real_film_has_its_digest() -> None:
    digests = {read_film(open_dataset(PYDICOM_FILES / f"RG3_{kind}.dcm")).pixel_digest for kind in ("UNCR", "J2KR")}
    assert len(digests) == 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_a_png_of_any_mode_is_read_as_grey(mode: str) -> None:
    grey = texture(20, 30, bits=8)
    image = Image.fromarray(grey).convert(mode)
    read = read_picture(png(image))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, grey / 255, atol=1e-6)


def test_a_png_of_sixteen_bits_keeps_them() -> None:
    grey = texture(20, 30, bits=16)
    np.testing.assert_allclose(read_picture(png(Image.fromarray(grey))), grey / 65535, atol=1e-6)


def test_the_alpha_channel_of_a_png_hides_nothing() -> None:
    grey = texture(20, 30, bits=8)
    transparent = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    np.testing.assert_allclose(read_picture(png(Image.fromarray(transparent, "RGBA"))), grey / 255, atol=1e-6)


def test_a_png_from_a_path_a_broken_one_and_a_huge_one(tmp_path: Path) -> None:
    content = png(Image.fromarray(texture(20, 30, bits=8))).getvalue()
    (tmp_path / "film.png").write_bytes(content)
    assert read_picture(tmp_path / "film.png").shape == (20, 30)
    for broken, expected in ((content[:-40], "undecodable"), (b"", "undecodable"), (b"GIF89a", "undecodable")):
        with pytest.raises(UnusablePixels) as refused:
            read_picture(BytesIO(broken))
        assert refused.value.reason == expected
    with pytest.raises(UnusablePixels) as refused:
        read_picture(BytesIO(content), limits=PixelLimits(max_pixels=100))
    assert refused.value.reason == "too_large"
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "gone.png")


def test_serving_needs_neither_torch_nor_pandas() -> None:
    code = "import sys, training.imaging.pixels; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_collected_films_all_end_in_an_image_or_a_reason(shared: Path) -> None:
    reasons: dict[str, int] = {}
    for path in sorted((shared / "data" / "dicom").glob("*/*")):
        if not path.is_file() or path.stat().st_size > 500_000:
            continue
        try:
            image = read_film(open_dataset(path)).image
            assert 0 <= image.min() < image.max() <= 1
            outcome = "read"
        except UnusablePixels as refused:
            assert path.stem not in str(refused)  # noqa: PT017 - both outcomes are right, and both are looked at
            outcome = refused.reason
        reasons[outcome] = reasons.get(outcome, 0) + 1
    assert reasons["read"] > 120
    assert reasons.get("undecodable", 0) <= 1  # a JPEG 2000 stream that is cut at a delimiter it contains
