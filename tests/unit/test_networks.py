from pathlib import Path
from typing import TypeVar
from urllib.error import URLError

import pytest
import torch

from training.grids import GridLayer, MobileNetGrid, MobileNetLungs, level_outside
from training.networks import NETWORKS, AlexNet, UnknownNetwork, WrongWeights, input_of, make_network


def test_alexnet_has_the_papers_layers() -> None:
    network = AlexNet(findings=11)
    kinds = [type(layer).__name__ for layer in network.modules()]
    assert kinds.count("Conv2d") == kinds.count("BatchNorm2d") == 5
    assert kinds.count("MaxPool2d") == 3
    assert [layer.out_features for layer in network.modules() if isinstance(layer, torch.nn.Linear)] == [4096, 1000, 11]
    assert [layer.p for layer in network.modules() if isinstance(layer, torch.nn.Dropout)] == [0.5, 0.5]
    assert network.features[:-1](torch.zeros(1, 1, 256, 256)).shape == (1, 256, 7, 7)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 256),
        ("alexnet", 128),
        ("small", 64),
        ("mobilenet", 96),
        ("mobilenet_grid", 64),
        ("mobilenet_lungs", 64),
        ("resnet18", 64),
    ],
)
@torch.inference_mode()
def test_every_network_gives_one_logit_per_finding(name: str, size: int) -> None:
    network = make_network(name, findings=3).eval()
    images = torch.zeros(2, size, size, dtype=torch.uint8)
    assert network(input_of(name, size=size).tensor(images)).shape == (2, 3)


def test_alexnet_sees_256_gray_pixels_and_mobilenet_224_in_three_channels() -> None:
    assert (input_of("alexnet").size, input_of("alexnet").channels) == (256, 1)
    assert (input_of("mobilenet").size, input_of("mobilenet").channels) == (224, 3)


def test_the_small_network_sees_128_gray_pixels_and_starts_from_chance_alone(tmp_path: Path) -> None:
    assert (input_of("small").size, input_of("small").channels) == (128, 1)
    assert sum(weight.numel() for weight in make_network("small").parameters()) < 3e5
    with pytest.raises(WrongWeights, match="small takes one gray channel"):
        make_network("small", pretrained=tmp_path / "weights.pth")


def test_the_papers_thousand_way_layer_is_a_variant() -> None:
    network = make_network("mobilenet_1000")
    assert [layer.out_features for layer in network.modules() if isinstance(layer, torch.nn.Linear)] == [1000, 11]


def test_the_grid_reads_four_depths_in_nine_cells_and_says_nothing_yet() -> None:
    network = MobileNetGrid(findings=3).eval()
    images = torch.randn(2, 3, 96, 96)
    assert network.pooled(images).shape == (2, 9 * (32 + 64 + 96 + 160))
    assert torch.equal(network(images), torch.zeros(2, 3))


@torch.inference_mode()
def test_a_cell_of_the_grid_tells_where_on_the_film_it_looks() -> None:
    """A change in the film's upper left corner moves the first cell of the earliest block most."""
    network = MobileNetGrid(findings=11).eval()
    film = torch.zeros(1, 3, 192, 192)
    changed = film.clone()
    changed[..., :32, :32] = 3
    moved = (network.pooled(changed) - network.pooled(film))[0, : 32 * 9].view(32, 9).abs().sum(dim=0)
    assert moved.argmax() == 0
    assert moved[8] < moved[0] / 10


Network = TypeVar("Network", bound=torch.nn.Module)


def as_trained(network: Network) -> Network:
    """With batch norms and weights as a training leaves them: a fresh batch norm changes nothing, and what fresh
    weights give is nearly 0 after ten blocks."""
    drawn = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight, generator=drawn)
        elif isinstance(part, torch.nn.BatchNorm2d):
            part.get_buffer("running_mean").normal_(std=0.1, generator=drawn)
            part.get_buffer("running_var").uniform_(0.8, 1.2, generator=drawn)
        elif isinstance(part, GridLayer):
            torch.nn.init.normal_(part.evidence.weight, std=0.1, generator=drawn)
    network.eval()
    torch.manual_seed(1)  # of the images that follow
    return network


@torch.inference_mode()
def test_what_lies_outside_the_lungs_reaches_the_layer_behind_the_whole_film_alone() -> None:
    network = as_trained(MobileNetLungs(findings=3))
    film, inside = torch.randn(1, 3, 224, 224), torch.zeros(1, 1, 56, 56)
    inside[..., :24] = 1
    other, changed = film.clone(), film.clone()
    other[..., 140:], changed[..., :60] = 2, 2  # 44 pixels right of the lungs, and within them
    alone = network.pooled_of_lungs(film, inside)
    assert torch.equal(network.pooled_of_lungs(other, inside), alone)
    for moved in (network.pooled_of_lungs(changed, inside) - alone, network.pooled(other) - network.pooled(film)):
        blocks = torch.split(moved[0].abs(), [channels * 9 for channels in GridLayer.READ.values()])
        assert all(block.max() > 1e-3 for block in blocks)


@torch.inference_mode()
def test_a_film_is_scored_by_both_layers_and_by_one_where_too_little_lung_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, images = as_trained(MobileNetLungs(findings=3)), torch.randn(2, 3, 64, 64)
    found = torch.full((2, 1, 56, 56), -9.0)
    found[0, ..., :28], found[1, ..., :4] = 9, 9  # half of the first film, a fourteenth of the second
    monkeypatch.setattr(network.outline, "forward", lambda _films: found)
    whole = network.whole.last_layer(network.pooled(images))
    lungs = network.lungs.last_layer(network.pooled_of_lungs(images, (found > 0).float()))
    assert lungs.abs().amax(dim=1).min() > 0.1
    weights = torch.tensor([[network.LUNGS_WEIGH], [0]])
    torch.testing.assert_close(network(images), whole + weights * lungs)


@torch.inference_mode()
def test_a_film_without_lungs_is_level_to_the_layer_behind_them_also_in_half_precision() -> None:
    images = torch.full((1, 3, 320, 320), 2.0, dtype=torch.float16)
    everywhere = torch.ones(1, 1, 320, 320, dtype=torch.float16)
    assert torch.equal(level_outside(images, everywhere), images)
    assert torch.equal(level_outside(images, torch.zeros_like(everywhere)), torch.zeros_like(images))


def test_outside_the_lungs_every_channel_is_as_inside_on_average() -> None:
    images, inside = torch.randn(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    inside[:, :, 2:12, 3:13] = 1
    level, kept = level_outside(images, inside), images[:, :, 2:12, 3:13]
    torch.testing.assert_close(level[:, :, 2:12, 3:13], kept)
    mean = kept.mean(dim=(2, 3))
    torch.testing.assert_close(level[:, :, 0, 0], mean)
    torch.testing.assert_close(level[:, :, 12, 8], mean)


def test_a_grid_starts_from_a_whole_mobilenets_blocks(tmp_path: Path) -> None:
    imagenet = make_network("mobilenet_v2", findings=1000)
    torch.save(imagenet.state_dict(), tmp_path / "weights.pth")
    network = make_network("mobilenet_grid", pretrained=tmp_path / "weights.pth")
    assert isinstance(network, MobileNetGrid)
    blocks, whole = network.features.state_dict(), imagenet.state_dict()
    assert len(network.features) == 17
    assert all(torch.equal(blocks[name], whole[f"features.{name}"]) for name in blocks)
    del (weights := imagenet.state_dict())["features.9.conv.0.0.weight"]
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(WrongWeights, match="do not fit"):
        make_network("mobilenet_grid", pretrained=tmp_path / "weights.pth")


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UnknownNetwork, match="alexnot"):
        make_network("alexnot")
    assert "googlenet" not in NETWORKS


def test_imagenet_weights_start_every_layer_but_the_last(tmp_path: Path) -> None:
    imagenet = make_network("mobilenet_v2", findings=1000)
    torch.save(imagenet.state_dict(), tmp_path / "weights.pth")
    network = make_network("mobilenet", pretrained=tmp_path / "weights.pth")
    first = "features.0.0.weight"
    assert torch.equal(network.get_parameter(first), imagenet.get_parameter(first))
    assert network.get_parameter("classifier.1.weight").shape == (11, 1280)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(make_network("resnet18").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WrongWeights):
        make_network("mobilenet", pretrained=tmp_path / "weights.pth")
    with pytest.raises(WrongWeights):
        make_network("alexnet", pretrained=tmp_path / "weights.pth")


def test_the_published_imagenet_weights_fit(shared: Path) -> None:
    network = make_network("mobilenet", pretrained=shared / "data/weights/mobilenet_v2-b0353104.pth")
    assert network.get_buffer("features.1.conv.0.1.running_var").std() > 0


def test_weights_that_cannot_be_had_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("not weights")
    for path in (tmp_path / "none.pth", tmp_path / "notes.txt"):
        with pytest.raises(WrongWeights, match="give a file"):
            make_network("mobilenet", pretrained=path)

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(WrongWeights, match="no route to host"):
        make_network("mobilenet", pretrained=True)
