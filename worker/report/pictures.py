"""Films for the morning page: read again, small, as data URIs, with a heat map where the `train` extra can make one."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from db.base import DocumentedError
from db.morning import Film
from training.checkpoint import Checkpoint, build
from training.imaging.preprocessing import Preprocessing
from worker.context import Context
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, NetworkInput

PICTURE_PIXELS = 320  # the longer side of a picture on the page
JPEG_QUALITY = 78


@dataclass(frozen=True)
class Picture:
    """A film on the page; `heat` is the same film under the heat map of one finding, or None. Both are data URIs."""

    film: str
    heat: str | None
    width: int
    height: int


def pictures_of(
    context: Context, findings: Mapping[Film, str | None], *, checkpoint: Checkpoint | None
) -> dict[int, Picture]:
    """Films, each with the finding to explain (None: it was not scored) -> pictures by instance id; a film that is gone
    or has changed has none.

    A picture is the network's input, as wide and high again as the film was. `checkpoint` None: no heat
    maps. Raises CheckpointError when its network cannot be built.
    """
    preprocessing = Preprocessing() if checkpoint is None else checkpoint.preprocessing
    inputs = _inputs(context, list(findings), preprocessing)
    there = [film for film in findings if film.instance_id in inputs]
    explained = {film: finding for film in there if (finding := findings[film]) is not None}
    heat = {} if checkpoint is None else _heats(checkpoint, explained, inputs)
    return {film.instance_id: _picture(film, inputs[film.instance_id], heat.get(film.instance_id)) for film in there}


def _inputs(context: Context, films: Sequence[Film], preprocessing: Preprocessing) -> dict[int, NDArray[np.uint8]]:
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
    checkpoint: Checkpoint, findings: Mapping[Film, str], inputs: Mapping[int, NDArray[np.uint8]]
) -> dict[int, NDArray[np.uint8]]:
    """The inputs under the heat map of their film's finding; none without the `train` extra."""
    network, warm = build(checkpoint), {}
    for film, finding in findings.items():
        try:
            heat = heat_overlay(checkpoint, network, inputs[film.instance_id], finding)
        except NoHeatMaps:
            return {}
        if heat is not None:
            warm[film.instance_id] = heat
    return warm


class NoHeatMaps(DocumentedError, LookupError):
    """No heat map can be drawn: they need the `train` extra and a network with convolutions."""


def heat_overlay(
    checkpoint: Checkpoint, network: nn.Module, network_input: NDArray[np.uint8], finding: str
) -> NDArray[np.uint8] | None:
    """The network's input (size, size) under the heat map of one finding, uint8 (size, size, 3); None where nothing on
    the film speaks for it. `network` is built of `checkpoint`. Raises NoHeatMaps."""
    try:
        from training.explain import NoFeatureMaps, heatmaps, overlay
    except ImportError as error:
        raise NoHeatMaps from error
    outputs = [checkpoint.findings.index(finding)]
    try:
        (heat,) = heatmaps(network, network_input, preprocessing=checkpoint.preprocessing, outputs=outputs)
    except NoFeatureMaps as error:
        raise NoHeatMaps from error
    return overlay(network_input, heat) if heat.any() else None


def _picture(film: Film, network_input: NDArray[np.uint8], heat: NDArray[np.uint8] | None) -> Picture:
    rows, columns = film.rows or 1, film.columns or 1
    longer = max(rows, columns)
    size = (max(1, PICTURE_PIXELS * columns // longer), max(1, PICTURE_PIXELS * rows // longer))
    return Picture(_jpeg(network_input, size), None if heat is None else _jpeg(heat, size), *size)


def _jpeg(network_input: NDArray[np.uint8], size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(network_input).resize(size, Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
