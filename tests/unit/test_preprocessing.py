import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from training.imaging.preprocessing import Preprocessing, as_picture, fewer_rows, ramp_of


def test_a_wide_film_is_squashed_to_a_square_without_keeping_its_aspect() -> None:
    film = np.zeros((100, 300), dtype=np.float32)
    film[:, 150:] = 1.0
    network_input = Preprocessing(size=64).image(film)
    assert network_input.shape == (64, 64)
    assert network_input.dtype == np.float16
    assert (network_input[:, :30] == 0).all()
    assert (network_input[:, 34:] == 255).all()


def test_a_big_film_keeps_its_grey_values() -> None:
    y, x = np.mgrid[0:2500, 0:2048].astype(np.float32)
    film = 0.5 + 0.5 * np.sin(x / 300) * np.cos(y / 400)
    network_input = Preprocessing().image(film)
    rows, columns = ((np.arange(224) + 0.5) * side / 224 - 0.5 for side in film.shape)
    exact = 0.5 + 0.5 * np.sin(columns[None] / 300) * np.cos(rows[:, None] / 400)
    assert np.abs(network_input - 255 * exact)[1:-1, 1:-1].max() < 1.5


@pytest.mark.parametrize("shape", [(2500, 2048), (2501, 2047), (1024, 1024), (300, 4000), (700, 90), (64, 64)])
def test_a_film_and_a_table_of_its_greys_give_the_inside_of_pillows_own_boxes(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    film = rng.integers(0, 4096, shape).astype(np.uint16)
    greys = rng.random(2**16, dtype=np.float32)
    network_input = Preprocessing(size=64).image(film, greys)
    assert (network_input == Preprocessing(size=64).image(greys[film])).all()
    pillow = Image.fromarray(greys[film]).resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=2.0)
    assert np.abs(network_input - 255 * np.asarray(pillow))[1:-1, 1:-1].max() < 0.07


BITS_12 = np.arange(2**16)
RAMPS = {  # table -> whether pixels may be added before they are looked up
    "window": (np.clip((BITS_12 - 148) / 3799, 0, 1), True),
    "narrow window": (np.clip((BITS_12 - 1900) / 299, 0, 1), True),
    "from white to black": (1 - np.clip((BITS_12 - 148) / 3799, 0, 1), True),
    "black or white": ((BITS_12 > 2000).astype(float), True),
    "all sixteen bits": (BITS_12 / 65535, True),
    "between two values": (np.clip((BITS_12 - 148.5) / 3799, 0, 1), False),
    "sigmoid": (1 / (1 + np.exp(-(BITS_12 - 2048) / 500)), False),
    "signed": (np.clip((BITS_12.astype(np.uint16).view(np.int16) + 1000) / 3000, 0, 1), False),
    "padding is black": (np.where(BITS_12 == 3000, 0, np.clip((BITS_12 - 148) / 3799, 0, 1)), False),
    "never black": (0.1 + 0.9 * np.clip((BITS_12 - 148) / 3799, 0, 1), False),
}


@pytest.mark.parametrize("name", RAMPS)
def test_a_film_whose_table_is_a_ramp_averages_to_what_its_greys_do(name: str) -> None:
    table, is_ramp = RAMPS[name]
    greys = table.astype(np.float32)
    assert (ramp_of(greys) is not None) is is_ramp
    film = np.random.default_rng(0).integers(0, 4096, (2501, 90)).astype(np.uint16)
    for factor in (1, 8, 16, 17):  # 2501 rows are no multiple of the last three; 17 x 4095 needs more than 16 bits
        assert np.abs(fewer_rows(film, greys, factor) - fewer_rows(greys[film], None, factor)).max() < 1e-6


def test_eight_bits_and_sixteen_are_added_without_wrapping_around() -> None:
    for dtype, most in ((np.uint8, 255), (np.uint16, 65535)):
        film = np.full((2560, 64), most, dtype=dtype)
        assert (Preprocessing(size=64).image(film, np.linspace(0, 1, most + 1, dtype=np.float32)) == 255).all()


def test_values_outside_the_unit_range_are_clipped() -> None:
    film = np.full((64, 64), 1.5, dtype=np.float32)
    film[:32] = -0.5
    network_input = Preprocessing(size=32).image(film)
    assert network_input.min() == 0
    assert network_input.max() == 255


def test_of_a_square_of_the_right_size_the_inside_passes_unchanged_and_the_edge_is_what_lies_beside_it() -> None:
    stored = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    network_input = Preprocessing(size=64).image(stored.astype(np.float32) / 255)
    assert (as_picture(network_input)[1:-1, 1:-1] == stored[1:-1, 1:-1]).all()
    assert (network_input[0] == network_input[1]).all()
    assert (network_input[-1] == network_input[-2]).all()
    assert (network_input[:, 0] == network_input[:, 1]).all()
    assert (network_input[:, -1] == network_input[:, -2]).all()


@pytest.mark.parametrize(("side", "line"), [(1024, 2), (2500, 5)])
def test_a_line_at_a_films_edge_is_not_shown(side: int, line: int) -> None:
    film = np.full((side, side), 0.6, dtype=np.float32)
    film[:, -line:] = film[:line] = 0
    assert (Preprocessing(size=224).image(film) == 153).all()


def test_the_tensor_is_normalised_per_channel() -> None:
    images = np.full((2, 32, 32), 255, dtype=np.uint8)
    tensor = Preprocessing(size=32, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)).tensor(images)
    assert tensor.shape == (2, 3, 32, 32)
    assert tensor.dtype == torch.float32
    assert tensor[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]


def test_arrays_and_tensors_give_the_same_input() -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    preprocessing = Preprocessing(size=32)
    assert torch.equal(preprocessing.tensor(images), preprocessing.tensor(torch.from_numpy(images)))


def test_the_header_survives_json() -> None:
    preprocessing = Preprocessing(size=256, channels=1, mean=(0.5,), std=(0.25,))
    assert Preprocessing.from_header(json.loads(json.dumps(asdict(preprocessing)))) == preprocessing


@pytest.mark.parametrize(
    "change",
    [
        {"name": "crop"},
        {"name": "squash"},
        {"size": 8},
        {"size": 4096},
        {"channels": 2},
        {"mean": [0.5]},
        {"std": [0, 1, 1]},
        {"gamma": 2},
    ],
)
def test_a_header_that_this_version_cannot_follow_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the sentence differs by field
        Preprocessing.from_header(asdict(Preprocessing()) | change)


def test_a_decoding_process_never_imports_torch() -> None:
    code = "import sys, training.imaging.preprocessing, training.findings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
