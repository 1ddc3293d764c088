"""Heat maps lie over what the network looked at, and every filter of every layer can be seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tests.benchmarks.heatmaps import likeness, middle_of, read_boxes, share_within
from tests.support.values import present
from training import explain
from training.checkpoint import SHIPPED, Checkpoint, build, load_checkpoint, read_header
from training.grids import MobileNetLungs
from training.imaging.preprocessing import Preprocessing
from training.networks import input_of, make_network
from training.pointing import Pointing, no_map_because, pointing_of, wilson

SIZE = 64
PREPROCESSING = Preprocessing(size=SIZE, channels=1, mean=(0.0,), std=(1.0,))


class BrightSpots(nn.Module):
    """Two outputs: one rises with bright pixels, one falls."""

    def __init__(self) -> None:
        super().__init__()
        spots = nn.Conv2d(1, 2, 1)
        self.block = nn.Sequential(spots, nn.ReLU())
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            spots.weight.copy_(torch.tensor([1.0, 0.5]).view(2, 1, 1, 1))
            present(spots.bias).zero_()
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


class TwoDepths(nn.Module):
    """Fine cells see bright pixels, coarse cells see bright quarters; the first output weighs both, the second half."""

    def __init__(self) -> None:
        super().__init__()
        fine, coarse = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 32, stride=32, bias=False)
        self.fine, self.coarse = nn.Sequential(fine, nn.ReLU()), nn.Sequential(coarse, nn.ReLU())
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            fine.weight.fill_(1.0)
            coarse.weight.fill_(1.0)
            self.head.weight.copy_(torch.tensor([[1.0], [0.5]]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.coarse(self.fine(images)).mean((2, 3)))
        return logits


def test_a_map_has_the_finest_grid_and_keeps_to_what_the_coarsest_says(network_input: NDArray[np.uint8]) -> None:
    (heat,) = explain.heatmaps(TwoDepths(), network_input, preprocessing=PREPROCESSING, outputs=[0])
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (10 <= row < 20, 40 <= column < 50) == (True, True)
    assert heat[25:, :35].max() == 0
    edge = heat[15, 36:44]  # one cell of the coarse grid is 32 pixels wide; this edge is not
    assert edge.min() == 0
    assert edge.max() > 0.8


def test_the_maps_of_a_film_share_one_scale(network_input: NDArray[np.uint8]) -> None:
    strong, weak = explain.heatmaps(TwoDepths(), network_input, preprocessing=PREPROCESSING, outputs=[0, 1])
    assert strong.max() == pytest.approx(1)
    assert weak.max() == pytest.approx(0.5)


def test_a_map_is_made_of_at_least_twenty_cells_on_a_side() -> None:
    network, preprocessing = make_network("mobilenet").eval(), Preprocessing(size=160)
    outputs: list[Tensor] = []
    for _, block in explain._blocks(network):
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.inference_mode():
        network(preprocessing.tensor(np.zeros((1, 160, 160), dtype=np.uint8)))
    assert [grid.shape[-1] for grid in explain._grids(outputs)] == [5, 10, 20]


def drawn_chest() -> NDArray[np.uint8]:
    """Two dark lungs with grain, and a bright spot in one."""
    film = np.random.default_rng(1).integers(140, 200, (160, 160), dtype=np.uint8)
    film[20:120, 20:65] //= 3
    film[20:120, 95:140] //= 3
    film[60:80, 30:50] = 220
    return film


@torch.inference_mode()
def test_the_places_of_both_layers_sum_to_the_logits_less_the_biases() -> None:
    checkpoint = load_checkpoint(SHIPPED)
    network = build(checkpoint)
    assert isinstance(network, MobileNetLungs)
    images = checkpoint.preprocessing.tensor(drawn_chest()[None])
    assert (network.outline(images[:, :1]) > 0).float().mean() > network.LEAST_LUNG, "both layers speak"
    network.classifier.weight[0, 1] = 0.5  # as after a fine-tune: outputs that share evidence
    places = network.evidence_by_place(images)
    assert [tuple(layer.shape) for layer in places] == [(11, side, side) for side in (20, 10, 10, 5)]
    summed = torch.stack([layer.sum((1, 2)) for layer in places]).sum(0)
    biases = network.classifier(network.whole.classifier.bias + network.LUNGS_WEIGH * network.lungs.classifier.bias)
    torch.testing.assert_close(summed, network(images)[0] - biases, atol=1e-3, rtol=1e-3)


def test_summed_evidence_is_warm_only_where_the_deepest_block_speaks_for_the_finding_too() -> None:
    fine, deep = torch.zeros(2, 20, 20), torch.full((2, 5, 5), -1.0)
    fine[0, 5, 14] = fine[0, 15, 4] = 10  # two spots of the first finding; half of one of the second
    fine[1, 5, 14] = 5
    deep[:, 1, 3] = 1  # the deepest sees the upper right one alone
    first, second = explain._summed([fine, deep], (160, 160))
    row, column = np.unravel_index(first.argmax(), first.shape)
    assert (32 <= row < 64, 96 <= column < 128) == (True, True)
    assert first[90:, :70].max() == pytest.approx(0, abs=0.01)
    assert (first.max(), second.max() < 0.95) == (1, True)


def test_a_network_that_forgot_its_weights_draws_another_map() -> None:
    checkpoint = load_checkpoint(SHIPPED)
    film = drawn_chest()
    torch.manual_seed(0)
    assert likeness(checkpoint, [film], depth=0.0) == pytest.approx(1)
    assert max(likeness(checkpoint, [film], depth=depth) for depth in (0.02, 1.0)) < 0.7


@pytest.mark.parametrize(
    ("probability", "pointing", "words"),
    [
        (0.4, {}, "does not reach its threshold"),
        (0.6, {}, None),  # maps of this checkpoint were never tested
        (0.6, {"Mass": Pointing(40, 30, 0.1)}, None),
        (0.6, {"Mass": Pointing(40, 5, 0.1)}, "no better than chance for this finding (5 of 40 outlines hit)"),
        (0.6, {"Edema": Pointing(40, 30, 0.1)}, "never compared with a radiologist's outline"),
    ],
)
def test_a_heat_map_is_shown_only_where_it_points_better_than_chance(
    probability: float, pointing: dict[str, Pointing], words: str | None
) -> None:
    because = no_map_because("Mass", probability=probability, threshold=0.5, pointing=pointing)
    assert because is None if words is None else words in (because or "")


def test_wilsons_interval_is_the_published_one() -> None:
    assert wilson(10, 39) == pytest.approx((0.146, 0.411), abs=0.001)
    assert wilson(0, 0) == (0, 1)


def test_the_boxes_list_is_read_as_findings_and_points_are_judged_by_it(tmp_path: Path) -> None:
    listed = tmp_path / "boxes.csv"
    listed.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Infiltrate,0,512,256,512\n", encoding="utf-8")
    (box,) = read_boxes(listed)["a.png"]
    assert box.finding == "Consolidation"
    assert [box.holds(x, y) for x, y in ((0.1, 0.6), (0.3, 0.6), (0.1, 0.4))] == [True, False, False]
    lit = np.zeros((64, 64), dtype=bool)
    lit[32:, :32] = True
    assert share_within(lit, box) == pytest.approx(0.5)
    assert middle_of(lit) == (0.25, 0.75)


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
    written = explain.write_pictures(checkpoint, image, tmp_path / "out", thresholds={}, layers=["features.0"])
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [
        "heatmaps.png",
        "layers/features.0.png",
    ]
    assert all(Image.open(path).width > 500 for path in written)


def test_the_shipped_checkpoint_says_where_its_maps_point() -> None:
    command = "python -m tests.benchmarks.heatmaps --films NIH_FILMS --boxes BBox_List_2017.csv --write"
    pointing = pointing_of(read_header(SHIPPED).training)
    assert pointing, f"a new checkpoint needs its own record: {command}"
    assert all(0 <= each.hits <= each.boxes and 0 <= each.chance <= 1 for each in pointing.values())
