"""The networks, whole: the paper's AlexNet, its MobileNet, ours, and any of torchvision's or timm's by its name.

Every network takes (N, channels, size, size) as ``Preprocessing.tensor`` makes it and gives logits (N, findings).
Source of the first two: Zhou, "Multi-Label Classification of X-Rays using Convolutional Neural Networks", 2020.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from torch import Tensor, nn

from training.grids import MobileNetGrid, MobileNetLungs, convolution
from training.imaging.preprocessing import Preprocessing
from training.torchvision_models import models

_TORCHVISION = tuple(
    name
    for name in models.list_models(module=models)
    if name not in ("alexnet", "googlenet", "inception_v3")  # ours is the paper's; the others give several outputs
)
_OURS = ("alexnet", "small", "mobilenet", "mobilenet_1000", "mobilenet_grid", "mobilenet_lungs")
NETWORKS: tuple[str, ...] = (*_OURS, *_TORCHVISION)

TIMM: Final = "timm/"  # before the name of one of timm's networks


class UnknownNetwork(ValueError):
    """A name that is neither in the paper nor in torchvision, nor in timm where that is installed."""


class WrongWeights(ValueError):
    """The weights to start from were made for another network."""


def make_network(name: str, *, findings: int = 11, pretrained: Path | bool = False) -> nn.Module:
    """A network that gives logits (N, findings).

    pretrained: a file of torchvision ImageNet weights, or True to let torchvision fetch its own; all layers but the
    last start from them. So with timm's. Raises UnknownNetwork, or WrongWeights when the weights do not fit.
    """
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM), findings=findings, pretrained=pretrained)
    if name not in NETWORKS:
        raise UnknownNetwork(f"no network is called {name!r}; try alexnet, mobilenet, small, torchvision's, timm/NAME")
    if name in ("alexnet", "small"):
        if pretrained:
            raise WrongWeights(f"{name} takes one gray channel; no ImageNet weights exist for it")
        return AlexNet(findings=findings) if name == "alexnet" else Small(findings=findings)
    torchvision_name = "mobilenet_v2" if name in ("mobilenet", "mobilenet_1000") else name
    if name == "mobilenet_1000":  # the paper keeps the 1,000-way ImageNet layer and adds one behind it
        imagenet = models.get_model(torchvision_name, weights=None)
        network: nn.Module = nn.Sequential(imagenet, nn.ReLU(), nn.Linear(1000, findings))
    elif name == "mobilenet_grid":
        imagenet = network = MobileNetGrid(findings=findings)
    elif name == "mobilenet_lungs":
        if pretrained:
            raise WrongWeights(f"{name} starts from a checkpoint of `nightread train lungs`")
        return MobileNetLungs(findings=findings)
    else:
        imagenet = network = models.get_model(torchvision_name, weights=None, num_classes=findings)
    if pretrained:
        start_from(imagenet, imagenet_weights(torchvision_name, pretrained))
    return network


def _of_timm(name: str, *, findings: int, pretrained: Path | bool) -> nn.Module:
    """One of timm's networks; it is built without its weights first, so that a name that is none is told apart."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UnknownNetwork(f"{TIMM}{name} needs timm, which is not installed here: pip install timm") from error
    if not timm.is_model(name):
        raise UnknownNetwork(f"timm {timm.__version__} has no network called {name!r}")
    if pretrained is True:
        try:
            network: nn.Module = timm.create_model(name, pretrained=True, num_classes=findings)
        except (OSError, RuntimeError) as error:  # no network; no weights of that name
            raise WrongWeights(f"no weights for {TIMM}{name} to start from ({error}): give a file of them") from error
        return network
    network = timm.create_model(name, pretrained=False, num_classes=findings)
    if pretrained:
        start_from(network, _weights_in(Path(pretrained)))
    return network


def input_of(name: str, *, size: int | None = None) -> Preprocessing:
    """The network's input, unless size says more: one gray channel of 256 pixels for AlexNet and 128 for the small one,
    else three of 224."""
    if name in ("alexnet", "small"):
        return Preprocessing(size=size or (256 if name == "alexnet" else 128), channels=1, mean=(0.5,), std=(0.25,))
    return Preprocessing(size=size or 224)


class AlexNet(nn.Module):
    """The paper's: five convolutions, each batch-normalised, three of them pooled; dense 4096, 1000, findings."""

    def __init__(self, *, findings: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(1, 96, kernel=11, stride=4, padding=2),  # (N, 1, 256, 256) -> (N, 96, 63, 63)
            nn.MaxPool2d(3, stride=2),  # (N, 96, 31, 31)
            convolution(96, 256, kernel=5, padding=2),
            nn.MaxPool2d(3, stride=2),  # (N, 256, 15, 15)
            convolution(256, 384, kernel=3, padding=1),
            convolution(384, 384, kernel=3, padding=1),
            convolution(384, 256, kernel=3, padding=1),
            nn.MaxPool2d(3, stride=2),  # (N, 256, 7, 7)
            nn.AdaptiveAvgPool2d(7),  # changes nothing at 256 pixels, and lets other sizes through
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (N, 12544)
            nn.Linear(256 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 1000),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(1000, findings),  # (N, findings), logits
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, size, size) -> logits (N, findings)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class Small(nn.Module):
    """Seven convolutions, 290,000 weights: for pictures that are simpler than films. It learns quickly from chance."""

    def __init__(self, *, findings: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(1, 16, kernel=5, stride=2, padding=2),  # (N, 1, 128, 128) -> (N, 16, 64, 64)
            convolution(16, 32, kernel=3, stride=2, padding=1),
            convolution(32, 32, kernel=3, padding=1),
            convolution(32, 64, kernel=3, stride=2, padding=1),
            convolution(64, 64, kernel=3, padding=1),
            convolution(64, 128, kernel=3, stride=2, padding=1),
            convolution(128, 128, kernel=3, padding=1),  # (N, 128, 8, 8)
        )
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, findings))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, size, size) -> logits (N, findings)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def imagenet_weights(torchvision_name: str, pretrained: Path | bool) -> dict[str, Tensor]:
    """Of a file, or fetched by torchvision. Raises WrongWeights."""
    if isinstance(pretrained, Path):
        return _weights_in(pretrained)
    try:
        weights: dict[str, Tensor] = models.get_model_weights(torchvision_name).DEFAULT.get_state_dict(check_hash=True)
    except OSError as error:  # no network
        raise WrongWeights(f"no ImageNet weights to start from ({error}): give a file of them") from error
    return weights


def _weights_in(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, UnpicklingError) as error:  # no such file; a file of something else
        raise WrongWeights(f"no ImageNet weights to start from ({error}): give a file of them") from error
    return weights


def start_from(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy every tensor that fits. Only the last layer, a weight and a bias, may differ; of a grid all that follows its
    feature blocks does. Raises WrongWeights."""
    own = network.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and value.shape == own[key].shape}
    is_read_in_a_grid = isinstance(network, MobileNetGrid | MobileNetLungs)
    of_its_own = sum(not key.startswith("features.") for key in own) if is_read_in_a_grid else 2
    if len(own) - len(fitting) > of_its_own:
        raise WrongWeights(f"{len(own) - len(fitting)} of {len(own)} tensors do not fit this network")
    network.load_state_dict(fitting, strict=False)
