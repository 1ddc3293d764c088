"""DICOM files from outside: read within bounds, or refused with a reason that a person understands.

Files come from strangers. Nothing here believes a length, a size or a promise in a header before it has been checked
against a limit, and whatever is wrong with a file's bytes ends in an `UnusablePixels`. What is wrong with reaching
the file (permission, a share that went away) stays an `OSError`: it may be gone tomorrow.
"""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from training.imaging.pixel_reasons import PixelReason

PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
HEADER_BYTES = (2**17, 2**23)  # what most headers need; the most that one may need
ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # FFFE,E000, little and big endian (PS3.5 7.5)
NO_REGULAR_FILE = "This is no regular file."
MOST_ELEMENTS = 50_000  # of a data set, beside those in its sequences: to step over a million takes a second
MOST_ITEMS = 50_000  # pydicom takes 40 microseconds for each, and 8 MB may hold a million
MOST_WANTED_BYTES = 2**18  # of the elements asked for; pydicom takes 5 microseconds for each value in two bytes
SPECIFIC_CHARACTER_SET, UNDEFINED_LENGTH = 0x00080005, 0xFFFFFFFF
META_TAGS = ("TransferSyntaxUID", "MediaStorageSOPClassUID")  # of the file meta information, what is asked for here

# pydicom has no one error for damaged bytes; this is what its parser and its value converters let through.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class UnusablePixels(ValueError):
    """The film cannot be used; every kind has its reason."""

    # A stable code that SQL groups by. str(error) is a sentence for people, by default the first line of the
    # docstring; neither holds a UID, a name or a path.
    reason: ClassVar[PixelReason]

    def __init__(self, sentence: str = "") -> None:
        super().__init__(sentence or (self.__doc__ or "").partition("\n")[0])


class FileReplaced(UnusablePixels):
    """A link has taken the place of the file, or of a folder above it."""

    reason: ClassVar[PixelReason] = "file_replaced"


class EmptyFile(UnusablePixels):
    """The file has no content."""

    reason: ClassVar[PixelReason] = "empty_file"


class NotDicom(UnusablePixels):
    """The file is not DICOM."""

    reason: ClassVar[PixelReason] = "not_dicom"


class DirectoryFile(UnusablePixels):
    """The file is a DICOMDIR, the table of contents of a medium, and holds no image."""

    reason: ClassVar[PixelReason] = "dicomdir"


class UnreadableDicom(UnusablePixels):
    """The file is damaged: its data elements cannot be read."""

    reason: ClassVar[PixelReason] = "unreadable_dicom"


class Truncated(UnusablePixels):
    """The file ends before its pixels do."""

    reason: ClassVar[PixelReason] = "truncated"


class TooLarge(UnusablePixels):
    """The file or its image is larger than the limits allow."""

    reason: ClassVar[PixelReason] = "too_large"


class NoPixelData(UnusablePixels):
    """The object has no pixel data."""

    reason: ClassVar[PixelReason] = "no_pixel_data"


class MultiFrame(UnusablePixels):
    """The object has more than one frame; a film has one."""

    reason: ClassVar[PixelReason] = "multi_frame"


class BadPixelHeader(UnusablePixels):
    """The header's description of the pixels is missing or contradicts itself."""

    reason: ClassVar[PixelReason] = "bad_pixel_header"


class UnsupportedPixels(UnusablePixels):
    """The pixels are of a kind that no film has: only whole numbers of 8 to 16 bits are read."""

    reason: ClassVar[PixelReason] = "unsupported_pixels"


class UnsupportedTransferSyntax(UnusablePixels):
    """No decoder is known for the transfer syntax."""

    reason: ClassVar[PixelReason] = "unsupported_transfer_syntax"


class Undecodable(UnusablePixels):
    """The compressed pixel data cannot be decoded: it is damaged, or not what the header says it is."""

    reason: ClassVar[PixelReason] = "undecodable"


class BadModalityLut(UnusablePixels):
    """The modality LUT or the rescale slope and intercept make no sense."""

    reason: ClassVar[PixelReason] = "bad_modality_lut"


class ConstantImage(UnusablePixels):
    """All pixels have the same value: the image shows nothing."""

    reason: ClassVar[PixelReason] = "constant_image"


@dataclass(frozen=True)
class PixelLimits:
    """Limits of a file before it is refused.

    max_bytes: of the file, and of a deflated data set once inflated. max_pixels: rows x columns. max_side: rows or
    columns; the largest detectors have about 5,000 a side.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 64_000_000
    max_side: int = 20_000


DEFAULT_LIMITS = PixelLimits()


def _stored_bits(dataset: Dataset) -> int:
    return _whole(dataset, "BitsStored", default=_whole(dataset, "BitsAllocated"))


@dataclass(frozen=True)
class PixelHeader:
    """The Image Pixel Module (PS3.3 C.7.6.3) of one single-frame image, checked."""

    rows: int
    columns: int
    samples: int  # per pixel: 1, or 3 for colour
    bits_allocated: int  # 8 or 16
    bits_stored: int  # 1 to bits_allocated
    high_bit: int  # of a stored value: the one below bits_stored
    signed: bool
    photometric: str
    transfer_syntax: UID

    @classmethod
    def of(cls, dataset: Dataset, *, limits: PixelLimits) -> Self:
        """The header's description of the pixels. Raises an UnusablePixels if it is absurd, before any decoding."""
        _require_one_frame(dataset)
        header = cls(
            rows=_whole(dataset, "Rows"),
            columns=_whole(dataset, "Columns"),
            samples=_whole(dataset, "SamplesPerPixel", default=1),
            bits_allocated=_whole(dataset, "BitsAllocated"),
            bits_stored=_stored_bits(dataset),
            high_bit=_whole(dataset, "HighBit", default=_stored_bits(dataset) - 1),
            signed=_whole(dataset, "PixelRepresentation", default=0) == 1,
            photometric=str(element_value(dataset, "PhotometricInterpretation") or "").strip().upper(),
            transfer_syntax=_transfer_syntax(dataset),
        )
        header._check(limits)
        return header

    def _check(self, limits: PixelLimits) -> None:
        if min(self.rows, self.columns) < 1:
            raise BadPixelHeader("The header gives the image no rows or no columns.")
        if self.rows * self.columns > limits.max_pixels or max(self.rows, self.columns) > limits.max_side:
            raise TooLarge(f"The image has {self.rows} x {self.columns} pixels, more than the limits allow.")
        if self.bits_allocated not in (8, 16) or self.samples not in (1, 3):
            raise UnsupportedPixels
        if not 1 <= self.bits_stored <= self.bits_allocated:
            raise BadPixelHeader("The header says that more bits are stored than allocated, or none.")
        # PS3.5 8.1.1 allows nothing else; a codestream's samples are where they are, whatever the header says.
        if self.high_bit != self.bits_stored - 1 and not self.transfer_syntax.is_compressed:
            raise BadPixelHeader("High Bit is not one less than Bits Stored, so where the values lie is unknown.")
        if self.photometric not in PHOTOMETRICS[self.samples]:
            raise BadPixelHeader("The photometric interpretation is unknown or does not fit the samples per pixel.")
        if self.photometric == "YBR_FULL_422" and self.columns % 2 and not self.transfer_syntax.is_encapsulated:
            raise BadPixelHeader("YBR_FULL_422 needs an even number of columns.")

    @property
    def native_bytes(self) -> int:
        """The length of the pixel data if it is not compressed, without padding to an even length."""
        length = self.rows * self.columns * self.samples * self.bits_allocated // 8
        return length * 2 // 3 if self.photometric == "YBR_FULL_422" else length


PHOTOMETRICS = {
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
}


def open_dataset(path: Path, *, limits: PixelLimits = DEFAULT_LIMITS) -> Dataset:
    """The whole data set of a DICOM file, whose bytes are read once. Not decoded yet.

    Raises an UnusablePixels (EmptyFile, NotDicom, DirectoryFile, TooLarge, Truncated, UnreadableDicom, FileReplaced),
    or OSError when the file cannot be reached.
    """
    return dataset_in(read_content(path, limits=limits), limits=limits)


def read_content(path: Path, *, limits: PixelLimits = DEFAULT_LIMITS, follow_links: bool = True) -> bytes:
    """The bytes of a file that begins like DICOM. Raises EmptyFile, NotDicom, TooLarge, FileReplaced, or OSError."""
    with open_regular(path, follow_links=follow_links) as file:
        _require_dicom_file(file)
        if os.fstat(file.fileno()).st_size > limits.max_bytes:
            raise TooLarge(f"The file is larger than {limits.max_bytes // 2**20} MB.")
        return file.read(limits.max_bytes + 1)  # it may still be growing


def dataset_in(content: bytes, *, limits: PixelLimits = DEFAULT_LIMITS) -> Dataset:
    """`open_dataset` of a file already in memory: a member of an archive. Raises the same UnusablePixels."""
    _require_dicom(content[:132])
    dataset, reached = _parse(content, max_bytes=limits.max_bytes, stop_at_pixels=False)
    if reached and not any(keyword in dataset for keyword in PIXEL_TAGS.values()):
        raise Truncated  # pydicom drops an element whose end it cannot find
    return dataset


def read_header(
    path: Path,
    *,
    limits: PixelLimits = DEFAULT_LIMITS,
    specific_tags: Sequence[int | str] | None = None,
    follow_links: bool = True,
) -> Dataset:
    """The data set without its pixels, or only `specific_tags` of it (tags or keywords); reads no more than it needs,
    and nothing past HEADER_BYTES.

    Raises an UnusablePixels (EmptyFile, NotDicom, DirectoryFile, TooLarge, UnreadableDicom, FileReplaced), or OSError
    when the file cannot be reached.
    """
    with open_regular(path, follow_links=follow_links) as file:
        _require_dicom_file(file)
        size = min(os.fstat(file.fileno()).st_size, limits.max_bytes)
        for length in sorted({min(size, length) for length in HEADER_BYTES}):
            file.seek(0)
            # From memory: an element that claims 4 GB costs nothing there, and 4 GB when read from a file.
            content = file.read(length)
            try:
                dataset, reached = _parse(content, max_bytes=HEADER_BYTES[-1], specific_tags=specific_tags)
            except UnreadableDicom:
                if length == size:  # else it may be our own cut that hurts
                    raise
                continue
            if reached or length == size:
                return dataset
    raise TooLarge(f"The header does not end within {HEADER_BYTES[-1] // 2**20} MB.")


def open_regular(path: Path, *, follow_links: bool = True) -> BufferedReader:
    """A regular file, open at its start; a pipe that has taken its place is not waited for.

    Without `follow_links` an absolute path is walked step by step, so that a link swapped in between a check of the
    path and its opening leads nowhere. Raises NotDicom for anything but a regular file, and FileReplaced for a link.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags) if follow_links else _open_without_links(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise NotDicom(NO_REGULAR_FILE) from error  # a socket
        if not follow_links and error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.realpath(path) != str(path):
            raise FileReplaced from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotDicom(NO_REGULAR_FILE)
    return os.fdopen(descriptor, "rb")


def _open_without_links(path: Path, flags: int) -> int:
    folder_flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(path.anchor, folder_flags)
    try:
        for name in path.parts[1:-1]:
            above, folder = folder, os.open(name, folder_flags, dir_fd=folder)
            os.close(above)
        return os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def _require_dicom_file(file: BinaryIO) -> None:
    _require_dicom(file.read(132))
    file.seek(0)


def _require_dicom(head: bytes) -> None:
    """A DICM prefix (PS3.10 7.1), or, in files without one, a first element of group 0002 or 0008."""
    if not head:
        raise EmptyFile
    if head[128:132] == b"DICM":
        return
    if len(head) < 8:
        raise NotDicom
    group, element, vr, length = struct.unpack_from("<HH2sH", head)
    little = group in (0x0002, 0x0008) and element <= 0x0018
    big = head[:2] == b"\0\x08" and head[2] == 0
    explicit = vr.isalpha() and vr.isupper()
    if not ((little and (explicit or length == 0)) or (big and explicit)):
        raise NotDicom


def _parse(
    content: bytes, *, max_bytes: int, specific_tags: Sequence[int | str] | None = None, stop_at_pixels: bool = True
) -> tuple[Dataset, bool]:
    """The data set in `content`, and whether its pixel data was reached."""
    if stop_at_pixels:  # what is read whole was registered by its header, and its pixels would all be searched
        _require_few_items(content)
    tags: list[BaseTag | int] | None = [Tag(tag) for tag in specific_tags] if specific_tags else None
    file = BytesIO(content)
    guard = _Guard(file, wanted=tags, stop_at_pixels=stop_at_pixels)
    try:
        read_preamble(file, force=True)
        meta_guard = _Guard(file, wanted=[Tag(tag) for tag in META_TAGS])
        meta = FileMetaDataset(
            read_dataset(file, False, True, stop_when=lambda tag, *rest: meta_guard(tag, *rest) or tag >> 16 != 2)
        )
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            inflated = _inflate(file.read(), max_bytes=max_bytes, whole=not stop_at_pixels)
            if stop_at_pixels:
                _require_few_items(inflated)
            file = BytesIO(inflated)
            guard = _Guard(file, wanted=tags, stop_at_pixels=stop_at_pixels)
            dataset = read_dataset(file, False, True, stop_when=guard, specific_tags=tags)
            dataset.file_meta = meta
        else:
            file.seek(0)
            dataset = read_partial(file, guard, force=True, specific_tags=tags)
    except UnusablePixels:
        raise
    except DAMAGE as error:
        raise UnreadableDicom from error
    if element_value(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise DirectoryFile
    if not dataset and not guard.reached_pixels:
        raise UnreadableDicom
    return dataset, guard.reached_pixels


class _Guard:
    """Stops pydicom at the pixels, or behind them, where junk is no reason to lose them; and where the elements asked
    for are longer than any film's: it makes an object of each value, for which 8 MB of them take 43 s and 761 MB.
    Raises TooLarge."""

    def __init__(self, file: BytesIO, *, wanted: Sequence[int] | None, stop_at_pixels: bool = True) -> None:
        self._file, self._stop_at_pixels = file, stop_at_pixels
        self._wanted = None if wanted is None else {SPECIFIC_CHARACTER_SET, *map(int, wanted)}
        self._wanted_bytes = self._elements = 0
        self._sequence_began: int | None = None  # a wanted one of undefined length, whose end shows where it ended
        self.reached_pixels = False

    def __call__(self, tag: BaseTag, _vr: str | None, length: int) -> bool:
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise TooLarge("It holds more elements than any film does.")
        if self._wanted is not None:
            self._count(int(tag), length)
        if int(tag) not in PIXEL_TAGS:
            return self.reached_pixels
        self.reached_pixels = True
        return self._stop_at_pixels

    def _count(self, tag: int, length: int) -> None:
        if self._sequence_began is not None:
            self._wanted_bytes += self._file.tell() - self._sequence_began
            self._sequence_began = None
        if self._wanted is not None and tag in self._wanted:
            if length == UNDEFINED_LENGTH:
                self._sequence_began = self._file.tell()
            else:
                self._wanted_bytes += length
        if self._wanted_bytes > MOST_WANTED_BYTES:
            raise TooLarge("An element of its header is longer than any film's.")


def _require_few_items(content: bytes) -> None:
    if max(content.count(tag) for tag in ITEM_TAGS) > MOST_ITEMS:
        raise TooLarge("Its sequences hold more items than any film's do.")


def _inflate(deflated: bytes, *, max_bytes: int, whole: bool) -> bytes:
    """A deflated data set (PS3.5 A.5), up to max_bytes: 1 MB of it can hold 1 GB, and pydicom would inflate it all."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(deflated, max_bytes)
    except zlib.error as error:
        raise UnreadableDicom("The file is damaged: its deflated data set cannot be inflated.") from error
    if whole and inflater.unconsumed_tail:
        raise TooLarge(f"The deflated data set inflates to more than {max_bytes // 2**20} MB.")
    if whole and not inflater.eof:
        raise Truncated
    return inflated


def _require_one_frame(dataset: Dataset) -> None:
    present = [keyword for keyword in PIXEL_TAGS.values() if keyword in dataset]
    if not present:
        raise NoPixelData
    if present != ["PixelData"]:
        raise UnsupportedPixels
    pixel_data = element_value(dataset, "PixelData")
    if not pixel_data:
        raise NoPixelData("The object's pixel data is empty.")
    if not isinstance(pixel_data, bytes):
        raise BadPixelHeader("The header says that the pixel data is something else than bytes.")
    if _whole(dataset, "NumberOfFrames", default=1) > 1:
        raise MultiFrame


def _transfer_syntax(dataset: Dataset) -> UID:
    """As the file says; where it says nothing (no file meta), as the data set was in fact encoded."""
    meta = getattr(dataset, "file_meta", Dataset())
    if stated := element_value(meta, "TransferSyntaxUID"):
        syntax = UID(str(stated))
        if not syntax.is_transfer_syntax:
            raise UnsupportedTransferSyntax
        return syntax
    if dataset["PixelData"].is_undefined_length:
        raise UnsupportedTransferSyntax("The pixel data is compressed, and the file does not say how.")
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _whole(dataset: Dataset, keyword: str, *, default: int | None = None) -> int:
    """One whole number from the header. Raises BadPixelHeader where there is none, or several."""
    value = element_value(dataset, keyword)
    if value is None and default is not None:
        return default
    try:
        return int(str(value))
    except ValueError:
        raise BadPixelHeader(f"The header has no usable value for {keyword}.") from None


def element_value(dataset: Dataset, keyword: str) -> Any:
    """The value of an element, or None if it is absent, empty, or not what its VR allows."""
    try:
        value = dataset.get(keyword)
    except DAMAGE:
        return None
    return None if value is None or value == "" else value
