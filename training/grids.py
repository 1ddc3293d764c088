"""Networks that are read in a grid: MobileNetV2 at four depths, and the same with the lungs read alone as well."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, interpolate, max_pool2d

from training.torchvision_models import models


class GridLayer(nn.Module):
    """The last layer of a network that is read at four depths in a grid of 3 x 3 cells.

    Early blocks see texture, late ones shapes; a cell knows where. What every channel of blocks 6, 10, 13 and 16 of
    MobileNetV2 holds in each cell, standardised, is summed to the evidence for each finding. Evidence grows with every
    input that lies far out, so that an odd film would seem certain: asinh takes the logarithm of what is large.
    """

    READ: Final = {6: 32, 10: 64, 13: 96, 16: 160}  # a block of MobileNetV2's features: its channels
    CELLS: Final = 3

    def __init__(self, *, findings: int) -> None:
        super().__init__()
        values = sum(self.READ.values()) * self.CELLS**2
        self.norm = nn.BatchNorm1d(values, affine=False)
        self.evidence = nn.Linear(values, findings, bias=False)
        nn.init.zeros_(self.evidence.weight)  # 3,168 inputs, drawn at random, would say much at first
        self.classifier = _as_they_are(findings)

    @classmethod
    def inputs(cls, blocks: Iterable[Tensor]) -> Tensor:
        """What the four blocks give (N, C, h, w) -> the means of every cell, (N, 3168)."""
        return torch.cat([adaptive_avg_pool2d(block, cls.CELLS).flatten(1) for block in blocks], dim=1)

    def last_layer(self, inputs: Tensor) -> Tensor:
        """(N, 3168) -> logits (N, findings)."""
        logits: Tensor = self.classifier(self.evidence(self.norm(inputs)).asinh())
        return logits

    def inputs_alike(self) -> Tensor:
        """(3168,): for each input of the evidence how many its block has, times the blocks. A penalty in proportion
        lets the four blocks count alike, though the late ones have more channels."""
        sizes = [channels * self.CELLS**2 for channels in self.READ.values()]
        return torch.tensor([float(size * len(sizes)) for size in sizes for _ in range(size)])

    def train(self, mode: bool = True) -> Self:
        """As any module, but the norm learns its statistics in the first epoch alone: then, and where they come from a
        checkpoint, they stand. A scale that moves under 3,168 inputs is noise."""
        super().train(mode)
        if int(self.norm.num_batches_tracked or 0) > 0:
            self.norm.eval()
        return self

    def set_last_layer(self, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Standardise by mean and variance (3168,), weigh (findings, 3168), and add the bias (findings,)."""
        one = torch.tensor(1)
        self.norm.load_state_dict({"running_mean": mean, "running_var": variance, "num_batches_tracked": one})
        self.evidence.load_state_dict({"weight": weight})
        self.classifier.load_state_dict({"weight": torch.eye(len(bias)), "bias": bias})

    def evidence_in(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """What every place of the four blocks (1, C, h, w) adds to the logits, (findings, h, w) each.

        Exact, not by gradients: a place counts by its share of its cell's mean, less what the films had there on
        average. All places of all blocks sum to the logits less the bias.
        """
        sizes = [channels * self.CELLS**2 for channels in self.READ.values()]
        mean, variance = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        weights = torch.split(self.evidence.weight / (variance + self.norm.eps).sqrt(), sizes, dim=1)
        grid, places = (-1, self.CELLS, self.CELLS), []
        for block, weight, usual in zip(blocks, weights, torch.split(mean, sizes), strict=True):
            each, usual = weight.reshape(len(weight), *grid), usual.reshape(grid)  # (F, C, 3, 3), (C, 3, 3)
            rows, columns = (_shares(side, cells=self.CELLS, like=weight) for side in block.shape[2:])
            there = torch.einsum("fcij,ih,jw,chw->fhw", each, rows, columns, block[0])
            places.append(there - torch.einsum("fcij,cij,ih,jw->fhw", each, usual, rows, columns))
        evidence = torch.stack([layer.sum(dim=(1, 2)) for layer in places]).sum(dim=0)
        kept = torch.where(
            evidence == 0, 1, evidence.asinh() / evidence
        )  # what asinh leaves of each finding's evidence
        return [torch.einsum("gf,f,fhw->ghw", self.classifier.weight, kept, layer) for layer in places]


class MobileNetGrid(GridLayer):
    """MobileNetV2 up to its last block at 1/32 of the size, read in a grid."""

    def __init__(self, *, findings: int) -> None:
        super().__init__(findings=findings)
        self.features = _blocks_to_read()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) -> logits (N, findings)."""
        return self.last_layer(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) -> the inputs of the last layer, (N, 3168)."""
        return self.inputs(_read(self.features, images))

    def evidence_by_place(self, images: Tensor) -> list[Tensor]:
        """(1, 3, size, size) -> what every place of each block that is read adds to the logits, (findings, h, w)."""
        return self.evidence_in(list(_read(self.features, images)))


class MobileNetLungs(nn.Module):
    """One MobileNetV2 that reads each film twice: whole, and its lungs alone. The log odds of both are added.

    The layer that reads the lungs learns from films of which only the lungs are left, where there are many more of
    those than of whole ones. So that it is shown the same here, a small network finds the lungs, and what the first
    blocks give outside them is replaced by its mean inside them. These blocks see little of a place's surroundings and
    take most of the time, so they are computed once. `training.lungs` makes what finds the lungs, and the layer that
    reads them. Where too little lung is found, the whole film alone speaks: the mean of a few places says anything.
    A training by gradient takes its batch norms' statistics from whole films and lungs together, but for the first
    blocks.
    """

    SHARED: Final = 4  # blocks
    WHOLLY: Final = 0.99  # a place counts as lung where at least this share of it lies within the outline
    LUNGS_WEIGH: Final = 0.6  # beside the whole film: both see much of the same (training-records.md, 16)
    LEAST_LUNG: Final = 0.08  # of the film; 4 of the 1,946 films of record 16 have less

    def __init__(self, *, findings: int) -> None:
        super().__init__()
        self.outline = LungOutline().requires_grad_(False)  # no part of what a training changes
        self.features = _blocks_to_read()
        self.whole = GridLayer(findings=findings)
        self.lungs = GridLayer(findings=findings)
        self.classifier = _as_they_are(findings)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) -> logits (N, findings)."""
        inside = self._inside(images)
        inputs = GridLayer.inputs(self._both(images, inside)).chunk(2)
        lungs = self._weight(inside) * self.lungs.last_layer(inputs[1])
        logits: Tensor = self.classifier(self.whole.last_layer(inputs[0]) + lungs)
        return logits

    def pooled(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) -> the inputs of the layer that reads the whole film, (N, 3168)."""
        return GridLayer.inputs(_read(self.features, images))

    def pooled_of_lungs(self, images: Tensor, inside: Tensor) -> Tensor:
        """(N, 3, size, size), and where on them the lungs are (N, 1, h, w; 0 or 1) -> the inputs of the layer that
        reads the lungs, (N, 3168)."""
        alone = self._lungs_alone(self._shared(images), inside)
        return GridLayer.inputs(_read(self.features, alone, first=self.SHARED))

    def evidence_by_place(self, images: Tensor) -> list[Tensor]:
        """As of a grid: what both layers see at each place of each block."""
        inside = self._inside(images)
        blocks, weight = list(self._both(images, inside)), self._weight(inside)[0, 0]
        both = (
            layer.evidence_in([block[[rank]] for block in blocks])
            for rank, layer in enumerate((self.whole, self.lungs))
        )
        layers = (of_whole + weight * of_lungs for of_whole, of_lungs in zip(*both, strict=True))
        return [torch.einsum("gf,fhw->ghw", self.classifier.weight, layer) for layer in layers]

    def _inside(self, images: Tensor) -> Tensor:
        """Where the lungs are found, (N, 1, 56, 56), 0 or 1."""
        outline: Tensor = self.outline(images[:, :1])
        return (outline > 0).to(images.dtype)

    def _weight(self, inside: Tensor) -> Tensor:
        """Of the lungs' log odds, (N, 1)."""
        found = inside.mean(dim=(1, 2, 3))[:, None]
        weight: Tensor = self.LUNGS_WEIGH * (found >= self.LEAST_LUNG).to(inside.dtype)
        return weight

    def _both(self, images: Tensor, inside: Tensor) -> Iterator[Tensor]:
        """What the blocks give that are read, of N whole films and then of their lungs, in one pass."""
        shared = self._shared(images)
        both = torch.cat([shared, self._lungs_alone(shared, inside)])
        return _read(self.features, both, first=self.SHARED)

    def _shared(self, images: Tensor) -> Tensor:
        for block in islice(self.features, self.SHARED):
            images = block(images)
        return images

    def _lungs_alone(self, shared: Tensor, inside: Tensor) -> Tensor:
        share = adaptive_avg_pool2d(inside, (shared.shape[2], shared.shape[3]))  # of an outline at 224 pixels: as it is
        return level_outside(shared, (share >= self.WHOLLY).to(shared.dtype))


class LungOutline(nn.Module):
    """A small U-Net (Ronneberger et al. 2015): where on a film the lungs are, as logits of 56 x 56 places."""

    SIDE: Final = 56
    CHANNELS: Final = (8, 16, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        down, up = pairwise((1, *self.CHANNELS)), pairwise(self.CHANNELS)
        self.down = nn.ModuleList(_two_convolutions(before, after) for before, after in down)
        self.up = nn.ModuleList(_two_convolutions(here + below, here) for here, below in up)
        self.last = nn.Conv2d(self.CHANNELS[0], 1, 1)

    def forward(self, films: Tensor) -> Tensor:
        """(N, 1, size, size), of any brightness and contrast -> logits (N, 1, 56, 56)."""
        films = adaptive_avg_pool2d(films, self.SIDE)
        spread, mean = torch.std_mean(films, dim=(2, 3), keepdim=True)
        read = [self.down[0]((films - mean) / (spread + 1e-3))]
        for block in self.down[1:]:
            read.append(block(max_pool2d(read[-1], 2)))
        below = read.pop()
        for block in reversed(self.up):
            here = read.pop()
            below = interpolate(below, here.shape[2:], mode="bilinear", align_corners=False)
            below = block(torch.cat([here, below], dim=1))
        logits: Tensor = self.last(below)
        return logits


def level_outside(images: Tensor, inside: Tensor) -> Tensor:
    """(N, C, h, w), inside (N, 1, h, w; 1) as they were, and outside (0) replaced by the mean of the inside, or by 0
    where there is none.

    Beside black the outline would be the strongest edge of the film, though it is found and not seen.
    """
    places = inside.sum(dim=(2, 3), keepdim=True, dtype=torch.float32)  # more than half precision can count
    mean = (images * inside).sum(dim=(2, 3), keepdim=True, dtype=torch.float32) / places.clamp(min=1)
    return torch.where(inside > 0, images, mean.to(images.dtype))


def _blocks_to_read() -> nn.Sequential:
    blocks: nn.Sequential = models.mobilenet_v2(weights=None).features[: max(GridLayer.READ) + 1]
    return blocks


def _read(features: nn.Sequential, images: Tensor, *, first: int = 0) -> Iterator[Tensor]:
    """What the blocks give that a grid reads; images: what comes before the block `first`."""
    for number, block in islice(enumerate(features), first, None):
        images = block(images)
        if number in GridLayer.READ:
            yield images


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    first, second = (convolution(channels, outputs, kernel=3, padding=1) for channels in (inputs, outputs))
    return nn.Sequential(*first, *second)


def _as_they_are(findings: int) -> nn.Linear:
    """A last layer that changes no logit yet."""
    layer = nn.Linear(findings, findings)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _shares(side: int, *, cells: int, like: Tensor) -> Tensor:
    """The share that each of `side` places has in each cell's mean, (cells, side)."""
    return adaptive_avg_pool1d(torch.eye(side).to(like), cells).T


def convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False),  # the norm brings the bias
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
