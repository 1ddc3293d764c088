"""A JPEG 2000 film decoded at half or a quarter of its resolution, and the network input the whole would have given.

What such a film holds is no average but the low band of the 5/3 wavelet (T.800 annex F), taken once or twice: samples
at every second pixel, raised by half a step by the wavelet's roundings. Between them the wavelet itself draws straight
lines, and so does this: each side's weights are those of the whole film, gathered where the samples lie. What that
loses of slow waves is put back.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.imaging.preprocessing import GAP, as_network_input

Numbers = NDArray[np.float64]
Band = tuple[int, NDArray[np.float32]]  # where an output's weights begin, and they

MARGIN = 2.25  # times the network's input that a film's low band must hold on both sides
MOST_HALVINGS = 2
# The low band passes 1 + c / 2 - c^2 / 2 of a wave, c = 1 - cos(w), and straight lines between its samples 1 - c / 2 of
# that: together 1 - 3 c^2 / 4. These weights of a sample and its neighbours, added to it, make 1 + 3 c^2 / 4 of it.
SHARPENING = np.array([3, -12, 18, -12, 3]) / 256
# Grey levels of 255: 57 films with less, decoded at a quarter, moved no probability by more than .0099; of 37 with more
# the first that moved one by more than .01 had .038.
BEND = 0.03
ROW_STEP = 8  # look at every 8th row


def halvings_for(rows: int, columns: int, size: int) -> int:
    """How often a film's resolution may be halved for a network input of this size: 0, 1 or 2."""
    fits = (min(rows, columns) >= 2**halvings * MARGIN * size for halvings in range(1, MOST_HALVINGS + 1))
    return sum(fits)


def network_input(
    low: NDArray[np.unsignedinteger], greys: NDArray[np.float32], shape: tuple[int, int], size: int, *, halvings: int
) -> NDArray[np.float16]:
    """The low band, after 1 or 2 halvings, of a film of `shape` (H, W) -> float16 (size, size), as
    `Preprocessing.image` makes it of the film; greys: float32, the grey of each value."""
    for _ in range(halvings):  # each raised the samples by half a step
        greys = ((greys + np.append(greys[:1], greys[:-1])) / 2).astype(np.float32)
    image: NDArray[np.float32] = np.take(greys, low, mode="clip")
    for length in shape:  # rows first, then what were columns
        image = _weighted(image, _weights(length, size, halvings)).T
    return as_network_input(image)


def is_straight(low: NDArray[np.integer[Any]], greys: NDArray[np.float32]) -> bool:
    """Whether a film's greys may be averaged before its window shows them, as a lower resolution does.

    They may where the window is straight, and not where grain straddles its ends or a curve bends within it. What tells
    is the grey of the middle of two neighbouring samples beside the middle of their greys.
    """
    few = low[::ROW_STEP].astype(np.uint32)
    left, right = few[:, :-1], few[:, 1:]
    middle = np.take(greys, (left + right) // 2, mode="clip") + np.take(greys, (left + right + 1) // 2, mode="clip")
    bend = np.abs(middle - np.take(greys, left, mode="clip") - np.take(greys, right, mode="clip"))
    return bool(255 * bend.mean() / 2 <= BEND)


def _weighted(image: NDArray[np.float32], weights: tuple[Band, ...]) -> NDArray[np.float32]:
    """Weighted sums of rows. Not as one product of matrices: NumPy's would start threads beside the other decoders."""
    return np.stack([np.einsum("i,ij->j", band, image[first : first + len(band)]) for first, band in weights])


@lru_cache(maxsize=16)
def _weights(length: int, size: int, halvings: int) -> tuple[Band, ...]:
    """For each of `size` outputs the low band's samples that it sums, and with which weights."""
    weights = squash_weights(length, size)
    for _ in range(halvings):
        weights = _sharpened(_at_the_samples(weights))
    return tuple(_band(row.astype(np.float32)) for row in weights)


def _band(row: NDArray[np.float32]) -> Band:
    used = np.flatnonzero(row)
    return int(used[0]), row[used[0] : used[-1] + 1]


def squash_weights(length: int, size: int) -> Numbers:
    """`Preprocessing.image` along one side as a matrix, (size, length): whole boxes, then Pillow's triangles. The
    outermost pixels are replaced afterwards."""
    factor = int(length / size / GAP) or 1
    boxes = np.arange(-(-length // factor))
    scale = length / factor / size  # of the triangles, in boxes; at least 1 for what is halved
    centres = (np.arange(size) + 0.5) * scale
    triangles = np.maximum(0, 1 - np.abs(boxes + 0.5 - centres[:, None]) / scale)
    triangles /= triangles.sum(axis=1, keepdims=True)
    pixels = np.minimum(factor, length - boxes * factor)  # the last box may hold fewer
    return np.repeat(triangles / pixels, pixels, axis=1)


def _at_the_samples(whole: Numbers) -> Numbers:
    """Weights of a side's pixels (size, length) gathered at the samples of its low band: (size, ceil(length / 2))."""
    length = whole.shape[1]
    at, pixels = _positions(length), np.arange(length)
    left = np.clip(np.searchsorted(at, pixels, side="right") - 1, 0, len(at) - 2)  # of the samples around a pixel
    share = (pixels - at[left]) / (at[left + 1] - at[left])
    begin = np.searchsorted(left, np.arange(len(at) - 1))
    gathered = np.zeros((len(whole), len(at)))
    gathered[:, :-1] += np.add.reduceat(whole * (1 - share), begin, axis=1)
    gathered[:, 1:] += np.add.reduceat(whole * share, begin, axis=1)
    return gathered


def _sharpened(weights: Numbers) -> Numbers:
    """But for the first two and last two samples, beside which there are too few."""
    edge, sharpened = len(SHARPENING) // 2, weights.copy()
    inner = weights[:, edge:-edge]
    for first, share in enumerate(SHARPENING):
        sharpened[:, first : first + inner.shape[1]] += share * inner
    return sharpened


def _positions(length: int) -> Numbers:
    """Where the low band's samples lie, in pixels: at the even ones, but for the last. It is the low band of a ramp."""
    ramp = np.arange(length, dtype=np.float64)
    even, odd = ramp[::2], ramp[1::2]
    after = np.append(even[1:], even[-1])[: len(odd)]  # mirrored at the end, as the wavelet does
    high = odd - (even[: len(odd)] + after) / 2
    around = np.append(high[:1], high)[: len(even)] + np.append(high, high[-1:])[: len(even)]
    positions: Numbers = even + around / 4
    return positions
