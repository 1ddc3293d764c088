"""JPEG 2000 at half or a quarter of its resolution gives the network input of the whole film, or is not decoded so."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1

from tests.support.dicom_files import make_film, texture
from training.imaging.dicom import UnusablePixels
from training.imaging.pixels import Film, read_film
from training.imaging.preprocessing import Preprocessing
from training.imaging.reduced_resolution import halvings_for, squash_weights

SIZE = 32
REDUCED = [JPEG2000Lossless, HTJ2KLossless]
WINDOW = {"WindowCenter": 2048, "WindowWidth": 3800}


def thorax(rows: int, columns: int) -> NDArray[np.uint16]:
    """A smooth texture with grain on it, and a border that is black and white: the low band overshoots there."""
    small = Image.fromarray(texture(rows // 20, columns // 20).astype(np.float32))
    pixels = np.array(small.resize((columns, rows), Image.Resampling.BICUBIC))
    pixels += np.random.default_rng(0).normal(0, 12, pixels.shape).astype(np.float32)
    pixels[:9], pixels[9:18] = 0, 4095
    return np.clip(np.rint(pixels), 0, 4095).astype(np.uint16)


def film_in(syntax: UID, pixels: NDArray[np.uint16], **attributes: Any) -> Dataset:
    return make_film(pixels=pixels, bits=12, transfer_syntax=syntax, **(WINDOW | attributes))


def reduced(film: Dataset) -> Film:
    return read_film(film, reduced_for=SIZE)


@pytest.mark.parametrize(
    ("shape", "halvings"),
    [((400, 500), 1), ((401, 399), 1), ((777, 402), 1), ((800, 1000), 2), ((803, 797), 2), ((1554, 805), 2)],
)
@pytest.mark.parametrize("syntax", REDUCED, ids=lambda syntax: syntax.keyword)
def test_a_reduced_film_gives_the_network_input_of_the_whole(
    syntax: UID, shape: tuple[int, int], halvings: int
) -> None:
    film, preprocessing = film_in(syntax, thorax(*shape)), Preprocessing(size=SIZE)
    low = read_film(film, reduced_for=SIZE, most_halvings=halvings)
    assert (low.halvings, low.whole) == (halvings, shape)
    assert low.pixels.shape == tuple(-(-side // 2**halvings) for side in shape)
    whole = read_film(film).network_input(preprocessing)
    differences = np.abs(low.network_input(preprocessing).astype(float) - whole)
    assert differences.max() <= 8  # where the window cuts off what overshoots, at the border
    assert differences[3:].max() < 0.5
    assert differences[3:].mean() < 0.05


@pytest.mark.parametrize("length", [64, 400, 401, 2500, 3333])
def test_the_weights_of_a_side_are_what_squash_does_to_it(length: int) -> None:
    side = np.random.default_rng(0).random(length, dtype=np.float32)
    network_input = Preprocessing(size=SIZE).image(np.tile(side, (SIZE, 1)))
    assert np.abs(squash_weights(length, SIZE) @ side * 255 - network_input[0])[1:-1].max() < 0.07


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": None, "WindowWidth": None},  # what a value looks like depends on all the others
        {"PixelPaddingValue": 0},
        {"PixelRepresentation": 1},
    ],
)
def test_a_film_whose_greys_are_not_smooth_is_decoded_whole(attributes: dict[str, object]) -> None:
    assert reduced(film_in(JPEG2000Lossless, thorax(400, 400), **attributes)).halvings == 0


@pytest.mark.parametrize(
    ("attributes", "whole"),
    [
        ({"WindowWidth": 3800}, False),
        ({"WindowWidth": 600}, True),  # its ends lie in the grain
        ({"WindowWidth": 200, "VOILUTFunction": "SIGMOID"}, True),
        ({"WindowWidth": 8000, "VOILUTFunction": "SIGMOID"}, False),
    ],
)
def test_a_film_is_decoded_whole_where_its_window_bends_within_the_grain(
    attributes: dict[str, object], whole: bool
) -> None:
    pixels = thorax(400, 400)
    grain = np.random.default_rng(1).normal(0, 80, pixels.shape)
    pixels[18:] = np.clip(pixels[18:] * 0.8 + 400 + grain[18:], 0, 4095).astype(np.uint16)
    assert (reduced(film_in(JPEG2000Lossless, pixels, **attributes)).halvings == 0) is whole


@pytest.mark.parametrize("size", [32, 160, 224, 256])
def test_more_than_twice_the_network_input_remain(size: int) -> None:
    for halvings in (1, 2):
        least = size * 9 // 4 * 2**halvings
        assert halvings_for(least, 2 * least, size) == halvings_for(5000, least, size) == halvings
        assert halvings_for(least - 1, 5000, size) == halvings_for(5000, least - 1, size) == halvings - 1
    assert halvings_for(60 * size, 60 * size, size) == 2


def test_small_films_other_syntaxes_and_few_bits_are_decoded_whole() -> None:
    assert reduced(film_in(JPEG2000Lossless, thorax(400, 140))).halvings == 0
    assert reduced(film_in(JPEGLosslessSV1, thorax(400, 400))).halvings == 0
    few = (thorax(400, 400) >> 4).astype(np.uint8)
    assert (
        reduced(make_film(pixels=few, transfer_syntax=JPEG2000Lossless, WindowCenter=128, WindowWidth=256)).halvings
        == 0
    )


@pytest.mark.parametrize(
    "options", [{"irreversible": True}, {"tile_size": (256, 256)}, {"num_resolutions": 1}, {"num_resolutions": 2}]
)
def test_other_wavelets_tiles_and_films_without_a_low_band_are_decoded_whole(options: dict[str, object]) -> None:
    film = film_in(JPEG2000Lossless, thorax(400, 400))
    for settings, halvings in (({}, 2), (options, 0)):
        stream = BytesIO()
        Image.fromarray(thorax(400, 400)).save(stream, format="JPEG2000", no_jp2=True, **settings)
        film.PixelData = encapsulate([stream.getvalue()])
        assert reduced(film).halvings == halvings


@pytest.mark.parametrize("syntax", REDUCED, ids=lambda syntax: syntax.keyword)
def test_a_truncated_film_is_refused_at_a_lower_resolution_too(syntax: UID) -> None:
    film = film_in(syntax, thorax(400, 400))
    codestream = get_frame(film.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    for share in np.linspace(0.02, 0.98, 25):
        for end in (b"", b"\xff\xd9"):
            film.PixelData = encapsulate([codestream[: int(share * len(codestream))] + end])
            with pytest.raises(UnusablePixels) as refused:
                reduced(film)
            assert refused.value.reason in ("truncated", "undecodable")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imagecodecs loses OpenJPH's errors
@pytest.mark.parametrize("syntax", REDUCED, ids=lambda syntax: syntax.keyword)
def test_a_damaged_film_ends_in_a_square_or_in_a_reason(syntax: UID) -> None:
    film = film_in(syntax, thorax(400, 400))
    codestream = get_frame(film.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    rng = np.random.default_rng(3)
    for _ in range(40):
        damaged = bytearray(codestream)
        for place in rng.integers(0, len(damaged) // 4, 3):
            damaged[place] ^= int(rng.integers(1, 256))
        film.PixelData = encapsulate([bytes(damaged)])
        try:
            network_input = reduced(film).network_input(Preprocessing(size=SIZE))
        except UnusablePixels:
            continue
        assert network_input.shape == (SIZE, SIZE)
