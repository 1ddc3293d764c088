"""Headers that are legal, or nearly, and cost a parser far more than their bytes: spliced into a good film."""

import struct
from io import BytesIO

from pydicom.dataset import Dataset

from tests.support.dicom_files import save

Tag = tuple[int, int]
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
PIXEL_DATA = (0x7FE0, 0x0010)
VIEW_CODE_SEQUENCE, VIEW_MODIFIER_CODE_SEQUENCE = (0x0054, 0x0220), (0x0054, 0x0222)


def element(tag: Tag, vr: str, value: bytes, *, undefined_length: bool = False) -> bytes:
    """One data element in Explicit VR Little Endian (PS3.5 7.1.2)."""
    if vr in {"SQ", "OB", "OW", "UC", "UN", "UT"}:
        length = 0xFFFFFFFF if undefined_length else len(value)
        return struct.pack("<HH2sHI", *tag, vr.encode(), 0, length) + value
    return struct.pack("<HH2sH", *tag, vr.encode(), len(value)) + value


def item(content: bytes) -> bytes:
    """One item of a sequence (PS3.5 7.5)."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def nested_views(levels: int) -> bytes:
    """A View Code Sequence with modifiers of modifiers, `levels` levels deep."""
    inner = b""
    for _ in range(levels):
        inner = element(VIEW_MODIFIER_CODE_SEQUENCE, "SQ", item(inner))
    return element(VIEW_CODE_SEQUENCE, "SQ", item(inner))


def spliced(film: Dataset, extra: bytes, *, before: Tag = PIXEL_DATA) -> bytes:
    """The film's file with `extra` put before one of its elements."""
    file = BytesIO()
    save(film, file)
    content = file.getvalue()
    place = content.index(struct.pack("<HH", *before), 400)
    return content[:place] + extra + content[place:]
