"""Evidence of a network on one film: a heat map per finding, and the activations of every filter, layer by layer.

A heat map shows where the network's evidence lies, not where the disease is. All maps of a film have one scale, that of
the strongest evidence among them; how sure the network is, the probability beside a map says. Whether maps point at
what radiologists outlined is measured per finding (tests/benchmarks/heatmaps.py) and kept with the checkpoint; a
finding whose maps point no better than chance gets none.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from training.checkpoint import Checkpoint, build
from training.grids import MobileNetGrid, MobileNetLungs
from training.imaging.preprocessing import Greys, Preprocessing, as_picture
from training.pointing import findings_without_map

Maps = npt.NDArray[np.float32]

LEAST_CELLS: Final = 20  # a side of the finest grid that a map is made of

# Black over violet and orange to pale yellow, in even steps, as matplotlib's "inferno".
_STOPS: Final = ((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
                 (252, 255, 164))  # fmt: skip
_COLOURS: Final = np.stack(
    [np.interp(np.linspace(0, len(_STOPS) - 1, 256), range(len(_STOPS)), stop) for stop in np.transpose(_STOPS)], axis=1
).astype(np.uint8)  # (256, 3)
_TINY: Final = 1e-12
_STRENGTH: Final = 0.65
"""How much of the colour covers the film where a map is highest."""
_SHEET_PIXELS: Final = 1800
_TILE, _GAP, _HEAD, _COLUMNS = 384, 12, 56, 4  # of the sheet of heat maps, in pixels


class UnknownLayer(ValueError):
    """The network has no convolution block of that name."""


class NoFeatureMaps(ValueError):
    """The network has no convolution whose output is a picture: there is nothing to make a heat map of."""


def heatmaps(network: nn.Module, image: Greys, *, preprocessing: Preprocessing, outputs: Sequence[int]) -> Maps:
    """Maps of the network's `outputs`: float32 (outputs, size, size) in [0, 1], scaled to the maximum among them all.

    `network` is built and gives logits; `image` is the (size, size) input that `preprocessing.image` made. A map
    of zeros means that nothing on the film speaks for that finding. The network is left in eval mode, its parameters
    without gradients. Of a network whose evidence is a sum over places, that evidence; of any other HiResCAM (Draelos
    and Carin 2020) at several depths, merged. Raises NoFeatureMaps.
    """
    if not outputs:
        return np.zeros((0, *image.shape), dtype=np.float32)
    if isinstance(network, MobileNetGrid | MobileNetLungs):
        with _one_thread(), torch.inference_mode():
            places = network.eval().evidence_by_place(_input(network, image, preprocessing))
            return _summed([layer[list(outputs)] for layer in places], image.shape)
    films = _input(network, image, preprocessing).requires_grad_()
    with _one_thread(), torch.enable_grad(), _kept(dict(_blocks(network))) as kept:
        logits = network.eval()(films)
        grids = _grids(kept.values())
        maps = [_evidence(logits[0, output], grids) for output in outputs]
    layers = (torch.cat(layer) for layer in zip(*maps, strict=True))  # of each grid (outputs, h, w)
    return _merged([_resized(layer / layer.max().clamp(min=_TINY), image.shape).clamp(min=0) for layer in layers])


def _grids(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The last output of each size, from the coarsest to the first that has LEAST_CELLS on a side."""
    by_side = {output.shape[-1]: output for output in outputs if output.dim() == 4 and output.shape[-1] > 1}
    if not by_side:
        raise NoFeatureMaps("this network has no convolution whose output is a picture")
    sides = sorted(by_side)
    coarse = [side for side in sides if side < LEAST_CELLS]
    return [by_side[side] for side in sides[: len(coarse) + 1]]


def _evidence(logit: Tensor, grids: Sequence[Tensor]) -> list[Tensor]:
    """Evidence for a logit in each cell of each grid (1, h, w): gradient times activation, over all channels."""
    gradients = torch.autograd.grad(logit, grids, retain_graph=True)
    pairs = zip(grids, gradients, strict=True)
    return [(gradient * grid).sum(dim=1).clamp(min=0).detach() for grid, gradient in pairs]


def _summed(layers: Sequence[Tensor], shape: tuple[int, ...]) -> Maps:
    """Evidence of all depths, (outputs, h, w) each, finest first, where the deepest speaks for the finding as well: the
    geometric mean of the two. What the deepest alone does not see is texture, and points less well."""
    finest = layers[0].shape[1:]
    grown = [_resized(layer, finest) * (layer[0].numel() / layers[0][0].numel()) for layer in layers]  # sums stay
    total, deepest = (
        _smooth(maps, width=3, times=3).clamp(min=0) for maps in (torch.stack(grown).sum(dim=0), grown[-1])
    )
    return _scaled(_resized((total * deepest).sqrt(), shape).clamp(min=0))


def _merged(layers: Sequence[Tensor]) -> Maps:
    """The geometric mean of maps (outputs, h, w) of several depths: what is warm at every depth stays warm."""
    mean = torch.stack(list(layers)).prod(dim=0) ** (1 / len(layers))
    # Two means over a cell, so that an empty cell cuts no edge into its neighbours; odd, so that nothing shifts.
    return _scaled(_smooth(mean, width=mean.shape[-1] // LEAST_CELLS | 1, times=2))


def _scaled(maps: Tensor) -> Maps:
    return np.asarray((maps / maps.max().clamp(min=_TINY)).numpy(), dtype=np.float32)


def _smooth(maps: Tensor, *, width: int, times: int) -> Tensor:
    """Maps (outputs, h, w), each place the mean of those around it, a few times over."""
    for _ in range(times):
        maps = nn.functional.avg_pool2d(maps, width, stride=1, padding=width // 2, count_include_pad=False)
    return maps


def _resized(layer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cells (outputs, h, w) as a smooth picture of this shape."""
    return nn.functional.interpolate(layer[:, None], size=shape, mode="bicubic")[:, 0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """One film is too little work for several threads: on a busy machine they wait for each other, 20 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _kept(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Outputs of these modules while the context lasts, by their names, in the order in which they ran."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def activations(
    network: nn.Module, image: Greys, *, preprocessing: Preprocessing, layers: Sequence[str] | None = None
) -> Iterator[tuple[str, Maps]]:
    """Name and output, float32 (filters, height, width), of every convolution block, or of `layers`, in their order.

    Raises NoFeatureMaps for a network without any, UnknownLayer for a layer that is none of them.
    """
    blocks = dict(_blocks(network))
    layers = list(blocks) if layers is None else layers
    if unknown := set(layers) - set(blocks):
        raise UnknownLayer(f"no layer {', '.join(sorted(unknown))}; there are {', '.join(blocks)}")
    with torch.inference_mode(), _kept({name: blocks[name] for name in layers}) as outputs:
        network.eval()(_input(network, image, preprocessing))
    for name, output in outputs.items():
        yield name, output[0].float().cpu().numpy()


def overlay(image: Greys, heat: Maps) -> npt.NDArray[np.uint8]:
    """Heat maps (..., size, size) in [0, 1] over the film (size, size): uint8 (..., size, size, 3).

    Where a map is zero the film shows through whole.
    """
    colour = _COLOURS[np.rint(heat * 255).astype(np.uint8)]
    strength = _STRENGTH * heat[..., None]
    return np.asarray(np.rint(image[..., None] * (1 - strength) + colour * strength), dtype=np.uint8)


def write_pictures(
    checkpoint: Checkpoint,
    image: Greys,
    folder: Path,
    *,
    thresholds: Mapping[str, float],
    layers: Sequence[str] | None = (),
) -> list[Path]:
    """heatmaps.png for one network input (size, size), and layers/NAME.png for these layers (None: all of them).

    Only findings that reach their threshold have a map, and only where maps of them point better than chance.
    """
    network, preprocessing = build(checkpoint), checkpoint.preprocessing
    with _one_thread(), torch.inference_mode():
        logits = network(_input(network, image, preprocessing)).numpy()
    probabilities = dict(
        zip(checkpoint.findings, checkpoint.calibration.probabilities(logits)[0].tolist(), strict=True)
    )
    scores = [(finding, probability, thresholds.get(finding)) for finding, probability in probabilities.items()]
    without = findings_without_map(scores, training=checkpoint.training)
    shown = [finding for finding in checkpoint.findings if finding not in without]
    outputs = [checkpoint.findings.index(finding) for finding in shown]
    heats = heatmaps(network, image, preprocessing=preprocessing, outputs=outputs)
    sheet = findings_sheet(image, dict(zip(shown, heats, strict=True)), without=without, probabilities=probabilities)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "heatmaps.png"]
    sheet.save(written[0], compress_level=1)
    for name, maps in activations(network, image, preprocessing=preprocessing, layers=layers):
        (folder / "layers").mkdir(exist_ok=True)
        written.append(folder / "layers" / f"{name}.png")
        filters_sheet(image, maps, title=name).save(written[-1])
    return written


def findings_sheet(
    image: Greys,
    heats: Mapping[str, Maps],
    *,
    without: Mapping[str, str],
    probabilities: Mapping[str, float],
) -> Image.Image:
    """The film, beside it the map of each finding that has one, and below in words why the others have none."""
    panels = [("The film", as_picture(image))]
    panels += [(_title(finding, probabilities[finding]), overlay(image, heat)) for finding, heat in heats.items()]
    lines = [f"{_title(finding, probabilities[finding])}   {why}" for finding, why in without.items()]
    columns, rows = min(_COLUMNS, max(2, len(panels))), math.ceil(len(panels) / _COLUMNS)
    step = _TILE + _GAP
    sheet = Image.new(
        "RGB", (max(columns * step + _GAP, 840), rows * (step + _HEAD) + 30 * len(lines) + 4 * _GAP), "white"
    )
    draw, small, large = ImageDraw.Draw(sheet), ImageFont.load_default(size=17), ImageFont.load_default(size=20)
    for number, (title, picture) in enumerate(panels):
        x, y = _GAP + number % _COLUMNS * step, number // _COLUMNS * (step + _HEAD)
        draw.text((x, y + 20), title, fill="black", font=large)
        sheet.paste(Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.BICUBIC), (x, y + _HEAD))
    for number, line in enumerate(lines):
        draw.text((_GAP, rows * (step + _HEAD) + _GAP + 30 * number), line, fill="black", font=small)
    return sheet


def _title(finding: str, probability: float) -> str:
    return f"{finding.replace('_', ' ')}  {probability:.1%}"


def filters_sheet(image: Greys, maps: Maps, *, title: str) -> Image.Image:
    """Every filter of one layer, maps (filters, height, width), as a heat map over the film, in a grid with a title."""
    columns = math.ceil(math.sqrt(len(maps)))
    side = max(32, min(240, _SHEET_PIXELS // columns))
    rows, gap, head = math.ceil(len(maps) / columns), 2, 44
    film = np.asarray(Image.fromarray(as_picture(image)).resize((side, side), Image.Resampling.BILINEAR))
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


def _input(network: nn.Module, image: Greys, preprocessing: Preprocessing) -> Tensor:
    return preprocessing.tensor(image[None]).to(next(network.parameters()).device)  # (1, channels, size, size)
