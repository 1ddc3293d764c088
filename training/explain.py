"""Evidence of a network on one film: Grad-CAM per finding, and the activations of every filter, layer by layer.

A heat map shows where the network's evidence lies, not where the disease is, and it is scaled to its own highest value:
it says nothing of how sure the network is. The probability beside it does.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from training.checkpoint import Checkpoint, build
from training.imaging.preprocessing import Preprocessing

NetworkInput = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]

_HEAT: Final = "inferno"
_COLOURS: Final = np.rint(colormaps[_HEAT](np.arange(256))[:, :3] * 255).astype(np.uint8)  # (256, 3)
_STRENGTH: Final = 0.65
"""How much of the colour covers the film where a map is highest."""
_SHEET_PIXELS: Final = 1800


class UnknownLayer(ValueError):
    """The network has no convolution block of that name."""


class NoFeatureMaps(ValueError):
    """The network has no convolution whose output is a picture: Grad-CAM does not apply to it."""


def heatmaps(network: nn.Module, image: NetworkInput, *, preprocessing: Preprocessing, outputs: Sequence[int]) -> Maps:
    """Grad-CAM of the network's `outputs`: float32 (outputs, size, size) in [0, 1], each scaled to its own maximum.

    `network` is built and gives logits; `image` is the uint8 (size, size) input that `preprocessing.image` made. A map
    of zeros means that nothing on the film speaks for that finding. The network is left in eval mode, its gradients
    cleared. Selvaraju et al., Grad-CAM, ICCV 2017, at the block of the last convolution. Raises NoFeatureMaps.
    """
    _, block = _blocks(network)[-1]
    # The film once per output: one forward and one backward pass explain them all.
    films = _input(network, image, preprocessing).expand(len(outputs), -1, -1, -1)
    with torch.enable_grad(), GradCAM(network, [block]) as cam:
        maps = cam(films, [ClassifierOutputTarget(output) for output in outputs])
    network.zero_grad()
    return np.asarray(maps, dtype=np.float32)


def activations(
    network: nn.Module, image: NetworkInput, *, preprocessing: Preprocessing, layers: Sequence[str] | None = None
) -> Iterator[tuple[str, Maps]]:
    """Name and output, float32 (filters, height, width), of every convolution block, or of `layers`, in their order.

    Raises NoFeatureMaps for a network without any, UnknownLayer for a layer that is none of them.
    """
    blocks = dict(_blocks(network))
    layers = list(blocks) if layers is None else layers
    if unknown := set(layers) - set(blocks):
        raise UnknownLayer(f"no layer {', '.join(sorted(unknown))}; there are {', '.join(blocks)}")
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output.detach())

    hooks = [blocks[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.inference_mode():
            network.eval()(_input(network, image, preprocessing))
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in outputs.items():
        yield name, output[0].float().cpu().numpy()


def overlay(image: NetworkInput, heat: Maps) -> NetworkInput:
    """Heat maps (..., size, size) in [0, 1] over the film (size, size): uint8 (..., size, size, 3).

    Where a map is zero the film shows through whole.
    """
    colour = _COLOURS[np.rint(heat * 255).astype(np.uint8)]
    strength = _STRENGTH * heat[..., None]
    return np.asarray(np.rint(image[..., None] * (1 - strength) + colour * strength), dtype=np.uint8)


def write_pictures(
    checkpoint: Checkpoint, image: NetworkInput, folder: Path, *, layers: Sequence[str] | None = ()
) -> list[Path]:
    """grad_cam.png for one uint8 (size, size) film, and layers/NAME.png for these layers (None: all of them)."""
    network, preprocessing = build(checkpoint), checkpoint.preprocessing
    heats = heatmaps(network, image, preprocessing=preprocessing, outputs=range(len(checkpoint.findings)))
    with torch.inference_mode():
        logits = network(_input(network, image, preprocessing)).numpy()
    probabilities = checkpoint.calibration.probabilities(logits)[0]
    sheet = findings_sheet(image, heats, findings=checkpoint.findings, probabilities=probabilities)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "grad_cam.png"]
    sheet.savefig(written[0], dpi=150)
    for name, maps in activations(network, image, preprocessing=preprocessing, layers=layers):
        (folder / "layers").mkdir(exist_ok=True)
        written.append(folder / "layers" / f"{name}.png")
        filters_sheet(image, maps, title=name).save(written[-1])
    return written


def findings_sheet(
    image: NetworkInput, heats: Maps, *, findings: Sequence[str], probabilities: npt.ArrayLike | None = None
) -> Figure:
    """The film, and beside it the heat map of each finding under its name and probability (N, if known)."""
    percentages = [""] * len(findings) if probabilities is None else [f"  {p:.1%}" for p in np.asarray(probabilities)]
    columns = 4
    rows = math.ceil((len(findings) + 1) / columns)
    figure = Figure(figsize=(3 * columns, 3.25 * rows), layout="constrained")
    names = [
        f"{finding.replace('_', ' ')}{probability}{'' if heat.any() else '  (nothing)'}"
        for finding, probability, heat in zip(findings, percentages, heats, strict=True)
    ]
    panels = [("the film", image), *zip(names, overlay(image, heats), strict=True)]
    axes = figure.subplots(rows, columns).ravel()
    for one in axes:
        one.set_axis_off()
    for one, (title, picture) in zip(axes, panels, strict=False):
        one.imshow(picture, cmap="gray", vmin=0, vmax=255)  # the colour map counts for the bare film alone
        one.set_title(title, fontsize=11)
    figure.suptitle("Grad-CAM: where the evidence for each finding lies, if anywhere")
    scale = figure.colorbar(ScalarMappable(cmap=_HEAT), ax=list(axes), shrink=0.35, aspect=30, pad=0.01)
    scale.set_label("share of the map's own maximum")
    return figure


def filters_sheet(image: NetworkInput, maps: Maps, *, title: str) -> Image.Image:
    """Every filter of one layer, maps (filters, height, width), as a heat map over the film, in a grid with a title."""
    columns = math.ceil(math.sqrt(len(maps)))
    side = max(32, min(240, _SHEET_PIXELS // columns))
    rows, gap, head = math.ceil(len(maps) / columns), 2, 44
    film = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    grown = nn.functional.interpolate(torch.from_numpy(_unit(maps))[:, None], size=(side, side), mode="bilinear")
    tiles = np.full((rows * columns, side + gap, side + gap, 3), 255, dtype=np.uint8)
    tiles[: len(maps), :side, :side] = overlay(film, grown[:, 0].numpy())
    grid = tiles.reshape(rows, columns, side + gap, side + gap, 3).swapaxes(1, 2)
    sheet = Image.new("RGB", (columns * (side + gap), head + rows * (side + gap)), "white")
    sheet.paste(Image.fromarray(grid.reshape(rows * (side + gap), columns * (side + gap), 3)), (0, head))
    shown = f"{title}: {len(maps)} filters of {maps.shape[1]} x {maps.shape[2]}, each scaled to its own range"
    ImageDraw.Draw(sheet).text((8, 10), shown, fill="black", font=ImageFont.load_default(size=20))
    return sheet


def _unit(maps: Maps) -> Maps:
    """Each filter scaled to [0, 1]; one that says the same everywhere is 0."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return np.asarray((maps - low) / np.where(high > low, high - low, 1), dtype=np.float32)


def _blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each convolution with its normalisation and activation: the modules that hold a Conv2d directly, in order.

    The block and not the bare convolution, whose output is neither normalised nor rectified.
    """
    names = dict(network.named_modules())
    parents = [name.rpartition(".")[0] for name, module in names.items() if isinstance(module, nn.Conv2d)]
    blocks = [(name, names[name]) for name in dict.fromkeys(parents) if name]
    if not blocks:
        raise NoFeatureMaps("this network has no convolution blocks")
    return blocks


def _input(network: nn.Module, image: NetworkInput, preprocessing: Preprocessing) -> Tensor:
    return preprocessing.tensor(image[None]).to(next(network.parameters()).device)  # (1, channels, size, size)
