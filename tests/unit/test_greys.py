"""One grey per stored value: every rule of the display pipeline, on films small enough to reckon by hand."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from tests.support.dicom_files import make_film
from training.imaging.dicom import BadModalityLut, ConstantImage
from training.imaging.pixels import read_film

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RAMP = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)  # 12 bits, from the lowest to the highest


def shown(pixels: NDArray[Any] = RAMP, *, bits: int = 12, **attributes: Any) -> NDArray[np.float32]:
    return read_film(make_film(pixels=pixels, bits=bits, **attributes)).image


def lut(*, first: int, bits: int, entries: list[int], data: Any = None, count: int | None = None) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [count or len(entries), first, bits])
    if data is None:
        item.add_new("LUTData", "US", entries)
    else:
        item.add_new("LUTData", "OW", data)
    return [item]


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": 2048, "WindowWidth": 4096},
        {"WindowCenter": 2000, "WindowWidth": 500},
        {"WindowCenter": [1000, 3000], "WindowWidth": [800, 10]},
        {"WindowCenter": 1500, "WindowWidth": 1},
        {"WindowCenter": 1500, "WindowWidth": 300, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 0.5, "WindowWidth": 0.25, "VOILUTFunction": "LINEAR_EXACT", "RescaleSlope": 1 / 4096,
         "RescaleIntercept": 0},
        {"WindowCenter": 900, "WindowWidth": 1800, "RescaleSlope": 0.684, "RescaleIntercept": -200},
        {"VOILUTSequence": lut(first=1000, bits=12, entries=[*range(0, 4096, 2), 4095])},
        {"VOILUTSequence": lut(first=0, bits=8, entries=[0, 1, 5, 200, 255])},
        {"VOILUTSequence": lut(first=0, bits=12, entries=[0, 4095]), "WindowCenter": 2000, "WindowWidth": 100},
        {"ModalityLUTSequence": lut(first=0, bits=16, entries=[v * v // 256 for v in range(4096)]),
         "WindowCenter": 20000, "WindowWidth": 30000},
    ],
)  # fmt: skip
def test_the_greys_are_those_of_pydicom(attributes: dict[str, Any]) -> None:
    film = make_film(pixels=RAMP, bits=12, **attributes)
    levels = apply_modality_lut(RAMP, film)
    theirs = apply_voi_lut(levels.astype(np.uint16) if "VOILUTSequence" in film else levels, film).astype(float)
    if "VOILUTSequence" in film:
        low, high = 0.0, 2.0 ** film.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "ModalityLUTSequence" in film:
        low, high = 0.0, 2.0**16 - 1
    else:
        slope, intercept = float(film.get("RescaleSlope", 1)), float(film.get("RescaleIntercept", 0))
        low, high = intercept, 4095 * slope + intercept
    np.testing.assert_allclose(read_film(film).image, (theirs - low) / (high - low), atol=2e-4)


@pytest.mark.parametrize("highest", [2047, 4095, 4096, 5000, 32767])
def test_the_highest_entry_is_white_of_a_voi_lut_that_does_not_fill_the_bits_it_declares(highest: int) -> None:
    entries = [round(highest * value / 4095) for value in range(4096)]
    image = shown(VOILUTSequence=lut(first=0, bits=16, entries=entries))
    np.testing.assert_allclose(image, RAMP / 4095, atol=5e-4)


def test_a_sigmoid_window_is_half_at_its_center_and_never_overflows() -> None:
    image = shown(WindowCenter=2048, WindowWidth=1, VOILUTFunction="SIGMOID")
    assert image[0, 0] == 0
    assert image[-1, -1] == 1
    soft = shown(WindowCenter=float(RAMP[4, 0]), WindowWidth=1000, VOILUTFunction="SIGMOID")
    assert soft[4, 0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", False),  # contradicts itself: the photometric interpretation decides
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # once, not twice
        ("MONOCHROME1", "IDENTITY", True),
    ],
)
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_a_film_is_inverted_at_most_once(
    photometric: str, shape: str | None, inverted: bool, window: dict[str, Any]
) -> None:
    if shape:
        window = window | {"PresentationLUTShape": shape}
    image = shown(photometric=photometric, **window)
    assert image[0, 0] == (1 if inverted else 0)
    assert image[-1, -1] == (0 if inverted else 1)


def test_without_a_window_eight_bits_span_their_range_and_more_bits_the_values_that_occur() -> None:
    eight = shown(np.array([[50, 100], [150, 200]], np.uint8), bits=8)
    np.testing.assert_allclose(eight, np.array([[50, 100], [150, 200]]) / 255, atol=1e-6)
    signed = shown(np.array([[-128, 0], [1, 127]], np.int8), bits=8)
    np.testing.assert_allclose(signed, np.array([[0, 128], [129, 255]]) / 255, atol=1e-6)
    ten_in_sixteen = shown(np.array([[500, 600], [700, 1000]], np.uint16), bits=16)
    np.testing.assert_allclose(ten_in_sixteen, [[0, 0.2], [0.4, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("center", "width"),
    [(None, 400), (400, None), (500, 0), (500, -10), ("", ""), (99999, 10), (-5000, 100)],
)
def test_a_window_that_is_missing_senseless_or_beside_the_film_is_left_out(center: Any, width: Any) -> None:
    film = make_film(pixels=RAMP, bits=12)
    for keyword, value in (("WindowCenter", center), ("WindowWidth", width)):
        if value is not None:
            setattr(film, keyword, value)
    np.testing.assert_allclose(read_film(film).image, RAMP / 4095, atol=1e-6)


@pytest.mark.parametrize("text", [b"nan", b"inf", b"abc ", b"1e999 ", b"1,5 "])
def test_a_window_that_is_no_number_is_left_out(text: bytes) -> None:
    film = _with_raw(make_film(pixels=RAMP, bits=12, WindowWidth=100), 0x0028, 0x1050, text)
    np.testing.assert_allclose(read_film(film).image, RAMP / 4095, atol=1e-6)


@pytest.mark.parametrize("text", [b"0 ", b"nan ", b"inf ", b"1e308 "])
def test_a_rescale_that_makes_no_sense_is_an_error(text: bytes) -> None:
    film = _with_raw(make_film(pixels=RAMP, bits=12, RescaleIntercept=0), 0x0028, 0x1053, text)
    with pytest.raises(BadModalityLut):
        read_film(film)


def _with_raw(film: Dataset, group: int, element: int, text: bytes) -> Dataset:
    """The film after a trip through a file in which one element holds this text, which pydicom would not write."""
    placeholder = b"7" * (len(text) + len(text) % 2)
    film.add_new((group, element), "DS", placeholder.decode())
    buffer = BytesIO()
    film.save_as(buffer, enforce_file_format=False)
    tag = struct.pack("<HH", group, element) + b"DS" + struct.pack("<H", len(placeholder))
    content = buffer.getvalue().replace(tag + placeholder, tag + text.ljust(len(placeholder)))
    return dcmread(BytesIO(content), force=True)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 4095])
def test_padding_is_black_and_kept_out_of_the_range(photometric: str, padding: int) -> None:
    pixels = np.array([[padding, padding, 1000], [1500, 2000, padding]], np.uint16)
    image = shown(pixels, photometric=photometric, PixelPaddingValue=padding)
    assert (image[pixels == padding] == 0).all()
    film = image[pixels != padding]
    np.testing.assert_allclose(film, [1, 0.5, 0] if photometric == "MONOCHROME1" else [0, 0.5, 1], atol=1e-6)


def test_padding_may_be_a_range_and_negative() -> None:
    pixels = np.array([[-2000, -1990, -1980], [0, 50, 100]], np.int16)
    image = shown(pixels, bits=16, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1985)
    np.testing.assert_allclose(image, np.array([[0, 0, 0], [1980 / 2080, 2030 / 2080, 1]]), atol=1e-6)


def test_a_film_that_is_all_padding_is_constant() -> None:
    with pytest.raises(ConstantImage):
        shown(np.full((4, 4), 7, np.uint16), PixelPaddingValue=7)


def test_signed_values_are_windowed_as_signed() -> None:
    pixels = np.array([[-1000, -500], [0, 1000]], np.int16)
    image = shown(pixels, bits=12, WindowCenter=0, WindowWidth=2001)
    np.testing.assert_allclose(image, [[0.00025, 0.25025], [0.50025, 1]], atol=1e-3)


def test_a_voi_lut_in_packed_bytes_and_one_with_too_many_bits_declared_are_read() -> None:
    entries = [0, 50, 100, 255]
    packed = shown(np.array([[0, 1], [2, 3]], np.uint16), VOILUTSequence=lut(first=0, bits=8, entries=entries,
                                                                            data=bytes(entries)))  # fmt: skip
    np.testing.assert_allclose(packed, np.array(entries).reshape(2, 2) / 255, atol=1e-6)
    twelve_in_sixteen = lut(first=0, bits=16, entries=[0, 1000, 2000, 4095])
    image = shown(np.array([[0, 1], [2, 3]], np.uint16), VOILUTSequence=twelve_in_sixteen)
    np.testing.assert_allclose(image[1, 1], 1)


@pytest.mark.parametrize("broken", [lut(first=0, bits=12, entries=[0, 1], count=500), [Dataset()], []])
def test_a_broken_voi_lut_leaves_the_film_to_its_window(broken: list[Dataset]) -> None:
    image = shown(VOILUTSequence=broken, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_allclose(image, RAMP / 4095, atol=1e-6)


def test_a_broken_modality_lut_is_an_error() -> None:
    with pytest.raises(BadModalityLut):
        shown(ModalityLUTSequence=lut(first=0, bits=12, entries=[0, 1], count=500))
