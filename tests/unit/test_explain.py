"""Heat maps lie over what the network looked at, and every filter of every layer can be seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from training import explain
from training.checkpoint import Checkpoint
from training.imaging.preprocessing import Preprocessing
from training.networks import input_of, make_network

SIZE = 64
PREPROCESSING = Preprocessing(size=SIZE, channels=1, mean=(0.0,), std=(1.0,))


class BrightSpots(nn.Module):
    """Two outputs: one rises with bright pixels, one falls."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.block[0].weight.copy_(torch.tensor([1.0, 0.5]).view(2, 1, 1, 1))  # type: ignore[operator]
            self.block[0].bias.zero_()  # type: ignore[operator]
            self.head.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(images).mean((2, 3)))
        return logits


@pytest.fixture
def network_input() -> NDArray[np.uint8]:
    image = np.zeros((SIZE, SIZE), dtype=np.uint8)
    image[10:20, 40:50] = 255
    return image


def test_the_map_lies_over_what_speaks_for_the_finding_and_nothing_speaks_for_its_opposite(
    network_input: NDArray[np.uint8],
) -> None:
    heats = explain.heatmaps(BrightSpots(), network_input, preprocessing=PREPROCESSING, outputs=[0, 1])
    assert heats.shape == (2, SIZE, SIZE)
    assert heats.dtype == np.float32
    assert heats[0][12:18, 42:48].min() > 0.9
    assert heats[0][30:, :30].max() == 0
    assert heats[1].max() == 0


def test_only_the_asked_outputs_are_explained(network_input: NDArray[np.uint8]) -> None:
    network = BrightSpots()
    one = explain.heatmaps(network, network_input, preprocessing=PREPROCESSING, outputs=[1])
    assert one.shape == (1, SIZE, SIZE)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_without_convolution_blocks_is_refused(network_input: NDArray[np.uint8]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2))
    with pytest.raises(explain.NoFeatureMaps):
        explain.heatmaps(network, network_input, preprocessing=PREPROCESSING, outputs=[0])


def test_the_papers_network_shows_its_five_convolutions_in_order() -> None:
    preprocessing = input_of("alexnet", size=128)
    image = np.random.default_rng(0).integers(0, 255, (128, 128), dtype=np.uint8)
    shown = list(explain.activations(make_network("alexnet"), image, preprocessing=preprocessing))
    assert [maps.shape[0] for _, maps in shown] == [96, 256, 384, 384, 256]
    assert all(maps.min() >= 0 for _, maps in shown)  # after the rectifier


def test_one_layer_can_be_asked_for_and_an_unknown_one_is_refused(network_input: NDArray[np.uint8]) -> None:
    one = dict(explain.activations(BrightSpots(), network_input, preprocessing=PREPROCESSING, layers=["block"]))
    np.testing.assert_allclose(one["block"][0], network_input / 255)
    with pytest.raises(explain.UnknownLayer, match="there are block"):
        list(explain.activations(BrightSpots(), network_input, preprocessing=PREPROCESSING, layers=["head"]))


def test_where_a_map_is_zero_the_film_shows_through_whole(network_input: NDArray[np.uint8]) -> None:
    heat = np.zeros((SIZE, SIZE), dtype=np.float32)
    heat[:, 32:] = 1
    shown = explain.overlay(network_input, heat)
    assert (shown[:, :32] == network_input[:, :32, None]).all()
    assert (shown[40:, 40:] == shown[40, 40]).all()
    assert shown[40, 40].max() > 100


def test_a_sheet_holds_every_filter() -> None:
    film = np.full((SIZE, SIZE), 100, dtype=np.uint8)
    maps = np.zeros((5, 4, 4), dtype=np.float32)
    maps[4] = np.arange(16).reshape(4, 4)
    sheet = np.asarray(explain.filters_sheet(film, maps, title="a layer"))
    tile = sheet[44 + 242 : 44 + 482, 242:482]  # the fifth, in a grid of three columns
    assert np.ptp(tile) > 50
    assert (sheet[44 : 44 + 240, :240] == 100).all()  # the first says nothing


@pytest.mark.slow
def test_pictures_of_a_checkpoint_are_written(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=64)
    network = make_network("mobilenet")
    checkpoint = Checkpoint(network="mobilenet", preprocessing=preprocessing, state=network.state_dict())
    image = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    written = explain.write_pictures(checkpoint, image, tmp_path / "out", layers=["features.0"])
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [
        "grad_cam.png",
        "layers/features.0.png",
    ]
    assert all(Image.open(path).width > 500 for path in written)
