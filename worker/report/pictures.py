"""Films for the morning page: read again, small, as data URIs, with a heat map where one is worth showing."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from db.base import DocumentedError
from db.morning import Film
from training.checkpoint import Checkpoint, build, load_checkpoint, read_header
from training.imaging.preprocessing import Greys, Preprocessing, as_picture
from worker.context import Context
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, NetworkInput

if TYPE_CHECKING:
    from torch import nn

PICTURE_PIXELS = 320  # the longer side of a picture on the page
JPEG_QUALITY = 78
NO_EVIDENCE = "No heat map: none can be made of this network or film."


@dataclass(frozen=True)
class Wanted:
    """A film to show with the heat map of a finding; where that is None, `because` says why."""

    film: Film
    finding: str | None
    because: str | None = None


@dataclass(frozen=True)
class Picture:
    """A film on the page; `heat` is the same film under the heat map of `finding`, or None, and `because` says why.
    Both are data URIs."""

    film: str
    width: int
    height: int
    heat: str | None
    finding: str | None
    because: str | None


def pictures_of(context: Context, wanted: Sequence[Wanted], *, checkpoint: Path | None) -> dict[int, Picture]:
    """Pictures by instance id; a film that is gone or has changed has none.

    A picture is the network's input, as wide and high again as the film was. `checkpoint`: the file of the one that
    scored the films, None for no heat maps. Its network, and torch, are loaded only where a heat map is wanted. Raises
    CheckpointError when that cannot be done.
    """
    preprocessing = Preprocessing() if checkpoint is None else read_header(checkpoint).preprocessing
    inputs = _inputs(context, [each.film for each in wanted], preprocessing)
    there = [each for each in wanted if each.film.instance_id in inputs]
    heats: dict[int, NDArray[np.uint8]] = {}
    if checkpoint is not None and any(each.finding for each in there):
        heats = _heats(load_checkpoint(checkpoint), there, inputs)
    return {
        each.film.instance_id: _picture(each, inputs[each.film.instance_id], heats.get(each.film.instance_id))
        for each in there
    }


def _inputs(context: Context, films: Sequence[Film], preprocessing: Preprocessing) -> dict[int, Greys]:
    """Network inputs by instance id of the films whose pixels are still those that were scored, if they were.

    They are read as the scorer reads them: in child processes, within limits of time and memory.
    """
    decoders = min(context.settings.decoders, max(1, len(films)))
    with DecoderPool(DecodeOptions.of(context, preprocessing), decoders=decoders) as pool:
        found = pool.inputs(films, ahead=2 * decoders)
        return {
            film.instance_id: network_input.image
            for film, network_input in found
            if isinstance(network_input, NetworkInput)
        }


def _heats(
    checkpoint: Checkpoint, wanted: Sequence[Wanted], inputs: Mapping[int, Greys]
) -> dict[int, NDArray[np.uint8]]:
    """The inputs under the heat map of their finding."""
    network, warm = build(checkpoint), {}
    for each in wanted:
        if each.finding is None:
            continue
        try:
            heat = heat_overlay(checkpoint, network, inputs[each.film.instance_id], each.finding)
        except NoHeatMaps:
            return {}
        if heat is not None:
            warm[each.film.instance_id] = heat
    return warm


class NoHeatMaps(DocumentedError, LookupError):
    """No heat map can be drawn: the network has no convolutions."""


def heat_overlay(
    checkpoint: Checkpoint, network: "nn.Module", network_input: Greys, finding: str
) -> NDArray[np.uint8] | None:
    """The network's input (size, size) under the heat map of one finding, uint8 (size, size, 3); None where nothing on
    the film speaks for it. `network` is built of `checkpoint`. Raises NoHeatMaps."""
    from training.explain import NoFeatureMaps, heatmaps, overlay

    outputs = [checkpoint.findings.index(finding)]
    try:
        (heat,) = heatmaps(network, network_input, preprocessing=checkpoint.preprocessing, outputs=outputs)
    except NoFeatureMaps as error:
        raise NoHeatMaps from error
    return overlay(network_input, heat) if heat.any() else None


def _picture(wanted: Wanted, network_input: Greys, heat: NDArray[np.uint8] | None) -> Picture:
    rows, columns = wanted.film.rows or 1, wanted.film.columns or 1
    longer = max(rows, columns)
    size = (max(1, PICTURE_PIXELS * columns // longer), max(1, PICTURE_PIXELS * rows // longer))
    return Picture(
        film=_jpeg(as_picture(network_input), size),
        width=size[0],
        height=size[1],
        heat=None if heat is None else _jpeg(heat, size),
        finding=wanted.finding,
        because=wanted.because if wanted.finding is None or heat is not None else NO_EVIDENCE,
    )


def _jpeg(picture: NDArray[np.uint8], size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
