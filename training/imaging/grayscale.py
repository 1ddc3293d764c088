"""The grey of every value that a film's pixels can hold: modality LUT -> VOI LUT or window -> inversion (PS3.3 C.11).

All these steps map one stored value to one grey, so they are done once per value, at most 65,536 times, and the film
is looked up in the table afterwards.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from training.imaging.decoders import Pixels
from training.imaging.dicom import DAMAGE, BadModalityLut, ConstantImage, PixelHeader, element_value

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]


def grey_table(dataset: Dataset, header: PixelHeader, stored: Pixels, *, windowed: bool = True) -> NDArray[np.float32]:
    """One grey in [0, 1], 1 = white, for each bit pattern of the stored type: float32 (2**bits allocated,).

    stored: the film's values, looked at only where its header has no usable window. windowed=False ignores the VOI
    LUT and the window. Raises BadModalityLut, or ConstantImage when all pixels are padding.
    """
    patterns = np.arange(2**header.bits_allocated, dtype=f"u{stored.dtype.itemsize}")
    values = patterns.view(stored.dtype)
    padding = _padding(dataset, values)
    levels = _modality_lut(dataset, values.astype(np.float64))
    greys = _voi(dataset, levels) if windowed else None
    if greys is None:
        greys = _stretched(levels, _range(header, values, stored, padding))
    # MONOCHROME1 shows low values white (C.7.6.3.1.2). A Presentation LUT Shape INVERSE says the same a second time,
    # so it is never asked: it is optional, and beside MONOCHROME2 the Standard allows only IDENTITY (C.8.11.3.1.2);
    # an INVERSE there was left behind by software that inverted the pixels and renamed them.
    if header.photometric == "MONOCHROME1":
        greys = 1 - greys
    greys[padding] = 0
    return greys.astype(np.float32)


def is_smooth(dataset: Dataset) -> bool:
    """Whether a value's grey depends on the header alone, and like values look alike: a window, and no padding."""
    return _voi(dataset, np.zeros(1)) is not None and element_value(dataset, "PixelPaddingValue") is None


def _padding(dataset: Dataset, values: Pixels) -> Mask:
    """Which values stand for no image: Pixel Padding Value, to its Range Limit if there is one (C.7.5.1.1.2)."""
    first = _number(element_value(dataset, "PixelPaddingValue"))
    if first is None:
        return np.zeros(values.shape, dtype=bool)
    last = _number(element_value(dataset, "PixelPaddingRangeLimit"))
    last = first if last is None else last
    return (values >= min(first, last)) & (values <= max(first, last))


def _modality_lut(dataset: Dataset, values: Numbers) -> Numbers:
    """Stored values -> the modality's own scale: Modality LUT Sequence, else rescale (C.11.1)."""
    if item := _first_item(dataset, "ModalityLUTSequence"):
        lut = _lut(item, dataset)
        if lut is None:
            raise BadModalityLut
        first, entries, _bits = lut
        return _looked_up(values, first, entries)
    slope = _number(element_value(dataset, "RescaleSlope"), default=1.0)
    intercept = _number(element_value(dataset, "RescaleIntercept"), default=0.0)
    if not slope or intercept is None:
        raise BadModalityLut
    with np.errstate(over="ignore", invalid="ignore"):
        levels = values * slope + intercept
    if not np.isfinite(levels).all():
        raise BadModalityLut
    return levels


def _voi(dataset: Dataset, levels: Numbers) -> Numbers | None:
    """Greys by the first VOI LUT, else by the first window; None where neither can be used (C.11.2)."""
    if (item := _first_item(dataset, "VOILUTSequence")) and (lut := _lut(item, dataset)):
        first, entries, bits = lut
        # Some writers declare 16 bits and fill 12. An honest LUT uses its highest bit; else its highest entry is white.
        highest = int(entries.max())
        greys: Numbers = _looked_up(levels, first, entries) / (2**bits - 1 if highest.bit_length() == bits else highest)
        return greys
    center = _number(element_value(dataset, "WindowCenter"))
    width = _number(element_value(dataset, "WindowWidth"))
    if center is None or width is None or width <= 0:
        return None
    return _window(levels, center, width, function=str(element_value(dataset, "VOILUTFunction") or "LINEAR"))


def _window(levels: Numbers, center: float, width: float, *, function: str) -> Numbers:
    """The VOI functions of C.11.2.1.2 and C.11.2.1.3, with an output range of [0, 1]."""
    greys: Numbers
    if function == "SIGMOID":
        greys = 1 / (1 + np.exp(np.clip(-4 * (levels - center) / width, -700, 700)))  # exp(710) overflows
        return greys
    if function != "LINEAR_EXACT" and width > 1:  # LINEAR: its width counts values, and both ends belong to it
        center, width = center - 0.5, width - 1
    greys = np.clip((levels - center) / width + 0.5, 0, 1)
    return greys


def _range(header: PixelHeader, values: Pixels, stored: Pixels, padding: Mask) -> Mask:
    """Which values span black to white where the header has no window.

    Up to 8 bits all that the bits allow: such pixels were windowed before they were saved, as NIH's were. Of more
    bits a film uses a part that differs from maker to maker, so there it is the values that occur.
    """
    if header.bits_stored <= 8:
        low = -(2 ** (header.bits_stored - 1)) if header.signed else 0
        allowed: Mask = (values >= low) & (values < low + 2**header.bits_stored)
        return allowed
    if not padding.any():
        between: Mask = (values >= stored.min()) & (values <= stored.max())
        return between
    occurring: Mask = np.zeros(values.shape, dtype=bool)
    occurring[stored.view(f"u{stored.dtype.itemsize}")] = True
    occurring[padding] = False
    return occurring


def _stretched(levels: Numbers, spanning: Mask) -> Numbers:
    if not spanning.any():
        raise ConstantImage
    low, high = levels[spanning].min(), levels[spanning].max()
    greys: Numbers = np.clip((levels - low) / ((high - low) or 1), 0, 1)
    return greys


def _looked_up(levels: Numbers, first: int, entries: Numbers) -> Numbers:
    """Values before the LUT's first are given its first entry, values past its end its last (C.11.1.1)."""
    return np.take(entries, np.rint(levels - first).astype(np.int64), mode="clip")


def _lut(item: Dataset, dataset: Dataset) -> tuple[int, Numbers, int] | None:
    """The first value that a LUT maps, its entries and the bits that it declares; None where it cannot be used
    (C.11.1.1.1, C.11.2.1.1)."""
    try:
        count, first, bits = (int(number) for number in item.LUTDescriptor)
        data = item.LUTData
    except DAMAGE:
        return None
    if not isinstance(data, bytes):  # US: pydicom made numbers of it
        data = np.atleast_1d(np.asarray(data, dtype="<u2")).tobytes()
        order = "<"
    else:
        order = ">" if dataset.file_meta.get("TransferSyntaxUID") == ExplicitVRBigEndian else "<"
    count = count or 2**16  # 65,536 does not fit into the descriptor
    # 8-bit entries may be packed two to a word.
    entries = np.frombuffer(data, dtype=f"{order}u2" if bits > 8 or len(data) >= 2 * count else "u1")[:count]
    if len(entries) < count or not entries.any():
        return None
    return first, entries.astype(np.float64), bits


def _first_item(dataset: Dataset, keyword: str) -> Dataset | None:
    items = element_value(dataset, keyword)
    return items[0] if isinstance(items, Sequence) and items else None


def _number(value: Any, *, default: float | None = None) -> float | None:
    """The first of one or several numbers; `default` if there is none, None if it is not a finite number."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
