"""Whether a JPEG Lossless codestream was used up to its last bit, which no library tells.

A flipped bit makes a Huffman decoder lose its step: it soon finds it again, but has then read some samples too many or
too few, and the rest of the film stands shifted and in other greys. What gives it away is the end. Each sample's code
follows from its value and its neighbours (T.81 H.1.2), so the decoded film says how many bits it was coded in, and the
codestream has that many, filled up to a whole byte, or it is damaged.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.imaging.dicom import Truncated, Undecodable

END_MARKER = b"\xff\xd9"
SOF3, DHT, SOS, DRI = 0xC3, 0xC4, 0xDA, 0xDD
BLOCK_ROWS = 16  # what stays in the processor's cache


def require_used_up(codestream: bytes, pixels: NDArray[np.integer[Any]], *, ff: NDArray[np.intp]) -> bool:
    """Compare the bits that a one-component film was coded in with those that there are.

    ff: where 0xFF stands, but for the last byte. False where that cannot be told: restart markers, several scans.
    Raises Truncated or Undecodable.
    """
    precision, codes, at = 0, b"", 2
    tables: dict[int, NDArray[np.uint8]] = {}
    for marker, start, end in _segments(codestream):
        content, at = codestream[start:end], end
        if marker == SOF3:
            precision = content[0]
        elif marker == DHT:
            tables |= _code_lengths(content)
        elif marker == DRI and content != b"\0\0":
            return False
        elif marker == SOS:
            codes = content
    if len(codes) != 6 or not precision:
        return False
    _, _, table, predictor, _, transform = codes
    lengths = tables.get(table >> 4)
    behind_ff = np.frombuffer(codestream, dtype=np.uint8)[ff[np.searchsorted(ff, at) :] + 1]
    stuffed = int(np.count_nonzero(behind_ff == 0))
    if lengths is None or not 1 <= predictor <= 7 or len(behind_ff) != stuffed + 1:
        return False
    needed = _bits(pixels, lengths, predictor=predictor, transform=transform & 15, precision=precision)
    unused = 8 * (len(codestream) - at - len(END_MARKER) - stuffed) - needed
    if unused < 0:
        raise Truncated
    last = codestream[-3] if codestream[-4:-2] != b"\xff\0" else 0xFF
    if unused >= 8 or (last + 1) % 2**unused:  # the last byte is filled up with ones (T.81 F.1.2.3)
        raise Undecodable("The compressed image holds more data than its pixels need: it is damaged.")
    return True


def _segments(codestream: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the content of each segment up to the first scan's header."""
    at, marker = 2, 0
    while marker != SOS:
        while codestream[at + 1] == 0xFF:
            at += 1
        marker = codestream[at + 1]
        (length,) = struct.unpack_from(">H", codestream, at + 2)
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def _code_lengths(content: bytes) -> dict[int, NDArray[np.uint8]]:
    """Of each Huffman table (T.81 B.2.4.2): bits of every difference's code and of what follows it, by the difference
    modulo 2**16."""
    tables, at = {}, 0
    while at < len(content):
        counts, symbols = content[at + 1 : at + 17], at + 17
        bits = np.full(17, 255, dtype=np.uint8)  # a difference without a code cannot have been decoded
        for length, count in enumerate(counts, start=1):
            for category in content[symbols : symbols + count]:
                bits[min(category, 16)] = length + category % 16
            symbols += count
        tables[content[at]] = bits[_CATEGORIES]
        at = symbols
    return tables


def _categories() -> NDArray[np.uint8]:
    """The category SSSS of every difference modulo 2**16 (T.81 table H.2)."""
    size = np.abs(np.arange(2**16, dtype=np.uint16).view(np.int16).astype(np.int32))
    return np.frexp(size)[1].astype(np.uint8)  # 0 -> 0, 1 -> 1, 2..3 -> 2, 2**15 -> 16


_CATEGORIES = _categories()


def _bits(
    pixels: NDArray[np.integer[Any]],
    lengths: NDArray[np.uint8],
    *,
    predictor: int,
    transform: int,
    precision: int,
) -> int:
    samples: NDArray[np.uint16] = pixels.astype(np.uint16, copy=False)
    if transform:
        samples = np.right_shift(samples, transform, dtype=np.uint16)
    first = np.uint16(2 ** (precision - transform - 1))
    left = np.diff(samples[0], prepend=first)  # modulo 2**16, as all differences are
    total = int(lengths[left].sum(dtype=np.int64)) + int(lengths[np.diff(samples[:, 0])].sum(dtype=np.int64))
    for top in range(0, len(samples) - 1, BLOCK_ROWS):
        block = samples[top : top + BLOCK_ROWS + 1]
        differences = block[1:, 1:] - _predicted(block, predictor)
        bits = np.take(lengths, differences, mode="clip")  # NumPy then skips its check of bounds, in which all are
        total += int(np.add.reduce(bits, axis=0, dtype=np.uint16).sum(dtype=np.int64))
    return total


def _predicted(block: NDArray[np.uint16], predictor: int) -> NDArray[np.uint16]:
    """Predictions by T.81 table H.1 for all but the first row and column."""
    a, b, c = block[1:, :-1], block[:-1, 1:], block[:-1, :-1]
    match predictor:
        case 1:
            return a
        case 2:
            return b
        case 3:
            return c
        case 4:
            return a + b - c
    wide_a, wide_b, wide_c = (each.astype(np.int32) for each in (a, b, c))
    match predictor:
        case 5:
            predicted = wide_a + ((wide_b - wide_c) >> 1)
        case 6:
            predicted = wide_b + ((wide_a - wide_c) >> 1)
        case _:
            predicted = (wide_a + wide_b) >> 1
    return predicted.astype(np.uint16)
