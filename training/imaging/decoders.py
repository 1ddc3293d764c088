"""Compressed and native pixel data -> stored values. Fast where it may be, but never half an image.

pydicom tries its plugins in turn and takes the first that does not raise, and most JPEG decoders do not: libjpeg,
libjpeg-turbo and OpenJPH fill what a cut-off stream lacks, and CharLS can hang on one. So every codestream is first
shown to be complete and of the promised size before the fastest library decodes it. pydicom's plugins decode colour,
which films do not have, and native pixel data.
"""

import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from training.imaging import jpeg_lossless
from training.imaging.dicom import (
    DAMAGE,
    BadPixelHeader,
    PixelHeader,
    Truncated,
    Undecodable,
    UnsupportedTransferSyntax,
    UnusablePixels,
)

Pixels = NDArray[np.integer[Any]]
# Where pydicom would else turn to a plugin that crashes on damage (see _run_length) or paints over it.
SAFE_PLUGINS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEGLSNearLossless: "pyjpegls"}

END_MARKER = jpeg_lossless.END_MARKER  # EOI of JPEG (T.81 B.1.1.3) and JPEG-LS, EOC of JPEG 2000 (T.800 A.4.4)
OVERSHOOT = {1: 1 / 7, 2: 1 / 3}  # of the range, by halvings: .13 and .28 were the most at real films' letters
RINGING = 1 / 4  # of the range: of the 9/7 wavelet at sharp edges, coarsely quantised; .23 was the most in text
MARKER_IN_DATA = "The compressed data holds a marker where none can be: it is damaged."
OUT_OF_RANGE = "The compressed image decodes to values that it cannot hold: it is damaged."
START_OF_SCAN = b"\xff\xda"
LEAST_MARKER_IN_PACKETS = 0x90  # what packets never hold behind 0xFF (T.800 B.10.1 and C.2, T.814 7.1)
SEGMENTS = {*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}  # markers with a length (T.81 table B.1)
START_OF_PACKET, END_OF_PACKET_HEADER = 0x91, 0x92  # the two markers that packets may hold (T.800 A.8)
MOST_SCANS = 40  # encoders make ten of a progressive film; of a thousand each goes over the whole of it
PROBE = b"\x00" + b"\x55" * 64  # entropy-coded bytes that mean something, and no marker whatever stands before them


@dataclass(frozen=True)
class Stream:
    """Size and sample format that a JPEG, JPEG-LS or JPEG 2000 codestream states."""

    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool = False
    start: int = 0  # of a JPEG 2000 codestream in its container
    reversible: bool = False  # coded by the 5/3 wavelet, which loses nothing
    halvings: int = 0  # how often its resolution can be halved: see training/imaging/reduced_resolution.py


Decode = Callable[[bytes, Stream], Pixels]
DecodeReduced = Callable[[bytes, Stream, int], Pixels]


def decode(dataset: Dataset, header: PixelHeader) -> tuple[Pixels, str]:
    """The stored values and their photometric interpretation.

    One sample per pixel: (rows, columns) uint8, int8, uint16 or int16 as Bits Allocated and Pixel Representation say,
    unused high bits removed (PS3.5 8.1.1). Three: (rows, columns, 3), YBR turned to RGB.
    Raises Truncated, Undecodable, UnsupportedTransferSyntax or BadPixelHeader.
    """
    syntax = header.transfer_syntax
    if syntax in DECODERS:
        codestream = _codestream(dataset)
        stream = _described(codestream, syntax)
        if (stream.rows, stream.columns, stream.samples) != (header.rows, header.columns, header.samples):
            raise Undecodable("The compressed image is not of the size that the header says.")
        if not 1 <= stream.bits <= header.bits_allocated:
            raise BadPixelHeader("The compressed samples have more bits than the header allocates.")
        if header.samples == 1:
            pixels = _monochrome(codestream, stream, syntax)
            _require_range(pixels, stream, header)
            return _stored(pixels, stream, header), header.photometric
    elif syntax == RLELossless and header.samples == 1:
        return _stored(_run_length(_frame(dataset), header), None, header), header.photometric
    elif not syntax.is_encapsulated:
        _require_native(dataset, header)
    stored, photometric = _by_pydicom(dataset, syntax)
    return (_stored(stored, None, header) if header.samples == 1 else stored), photometric


def _require_range(pixels: Pixels, stream: Stream, header: PixelHeader) -> None:
    """Raises Undecodable where a codec that does not clip gives back values that cannot have gone in."""
    if stream.signed or header.signed:
        return
    if stream.reversible:
        most = 2**header.bits_stored
    elif header.transfer_syntax in (JPEGLossless, JPEGLosslessSV1):
        most = 2**stream.bits
    elif header.transfer_syntax == HTJ2K:
        most = (1 + RINGING) * 2 ** min(stream.bits, header.bits_stored)
    else:
        return
    if pixels.max() >= most:
        raise Undecodable(OUT_OF_RANGE)


def decode_reduced(dataset: Dataset, header: PixelHeader, halvings: int) -> Pixels | None:
    """The low band of a lossless JPEG 2000 or HTJ2K film: uint16, each side halved so often, rounded up.

    None where the codestream does not give it, or it would not do for the whole film: of fewer than 10 bits the
    wavelet's rounding, half a step, shows; of more than 14, or signed, what overshoots cannot be told from what wrapped
    around. Raises Truncated or Undecodable.
    """
    syntax = header.transfer_syntax
    if syntax not in REDUCING_DECODERS or header.samples != 1 or header.signed:
        return None
    codestream = _codestream(dataset)
    stream = _described(codestream, syntax)
    agreed = (stream.rows, stream.columns, stream.samples) == (header.rows, header.columns, 1)
    if stream.halvings < halvings or not agreed or stream.signed:
        return None
    if not 10 <= min(stream.bits, header.bits_stored) <= 14:
        return None
    try:
        low = REDUCING_DECODERS[syntax](codestream, stream, halvings)
    except (RuntimeError, ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return None  # the whole of it says what is wrong
    samples = (low.view(np.uint16) + np.uint16(2 ** (stream.bits - 1))).view(np.int16)
    values = 2 ** min(stream.bits, header.bits_stored)
    if samples.min() < -OVERSHOOT[halvings] * values or samples.max() > (1 + OVERSHOOT[halvings]) * values:
        return None  # damage, or a header that is wrong
    fits = samples.shape == _reduced(stream, halvings)
    return np.maximum(samples, 0).view(np.uint16) if fits else None


def _require_native(dataset: Dataset, header: PixelHeader) -> None:
    if dataset["PixelData"].is_undefined_length:
        raise BadPixelHeader("The pixel data is compressed, but the transfer syntax says that it is not.")
    if len(dataset.PixelData) < header.native_bytes:
        raise Truncated(f"The pixel data has {len(dataset.PixelData)} bytes of the {header.native_bytes} it needs.")


def _monochrome(codestream: bytes, stream: Stream, syntax: UID) -> Pixels:
    try:
        return DECODERS[syntax](codestream, stream)
    except UnusablePixels:
        raise
    except (RuntimeError, ValueError, IndexError, struct.error) as error:  # imagecodecs' own errors are RuntimeErrors
        raise Undecodable from error


def _jpeg_dct(codestream: bytes, _stream: Stream) -> Pixels:
    """Raises Undecodable where the end of the only scan means nothing: a decoder that lost its step was done early."""
    if codestream.count(START_OF_SCAN) > MOST_SCANS:
        raise Undecodable("The compressed image has more scans than any film's.")
    _require_scans(codestream, _places_of_ff(codestream))
    pixels = _jpeg_turbo(codestream, columns=8)  # what libjpeg-turbo makes up comes in blocks
    if codestream.count(START_OF_SCAN) == 1:
        other_end = codestream[:-4].removesuffix(b"\xff") + PROBE + END_MARKER
        if np.array_equal(imagecodecs.jpeg8_decode(other_end), pixels):
            raise Undecodable("The compressed image holds more data than its pixels need: it is damaged.")
    return pixels


def _jpeg_lossless(codestream: bytes, stream: Stream) -> Pixels:
    ff = _places_of_ff(codestream)
    _require_scans(codestream, ff)
    pixels: Pixels = imagecodecs.jpeg8_decode(codestream)
    if jpeg_lossless.require_used_up(codestream, pixels, ff=ff):
        return pixels
    return _jpeg_turbo(codestream, columns=stream.columns)  # here in rows


def _jpeg_turbo(codestream: bytes, *, columns: int) -> Pixels:
    """libjpeg-turbo, which makes up what a stream that ends too early lacks. Raises Truncated if it did.

    It fills in zero differences, so that the last `columns` of the last rows repeat. So do those of a black border;
    what tells them apart is that further data would change the former.
    """
    pixels: Pixels = imagecodecs.jpeg8_decode(codestream)
    if np.array_equal(pixels[-1, -columns:], pixels[-2:, -columns:][0]):
        longer = codestream.removesuffix(END_MARKER) + PROBE + END_MARKER
        if not np.array_equal(imagecodecs.jpeg8_decode(longer), pixels):
            raise Truncated
    return pixels


def _charls(codestream: bytes, _stream: Stream) -> Pixels:
    pixels: Pixels = imagecodecs.jpegls_decode(codestream)
    return pixels


def _openjpeg(codestream: bytes, stream: Stream) -> Pixels:
    return _within_range(imagecodecs.jpeg2k_decode(_unclipped(codestream, stream)), stream)


def _openjph(codestream: bytes, stream: Stream) -> Pixels:
    itemsize = 2 if stream.reversible or stream.bits > 8 else 1
    pixels = np.empty(
        (stream.rows, stream.columns), dtype=f"{'i' if stream.reversible or stream.signed else 'u'}{itemsize}"
    )
    with _nothing_unraised():
        imagecodecs.htj2k_decode(_unclipped(codestream, stream), out=pixels)
    return _within_range(pixels, stream)


def _unclipped(codestream: bytes, stream: Stream) -> bytes:
    """The same codestream, bare, said to code signed samples of 16 bits (T.800 A.5.1).

    Of a reversible wavelet's coefficients nothing depends on that, but the decoder no longer moves the samples up by
    half their range nor clips them, so that what damage made of them shows.
    """
    if not stream.reversible:
        return codestream
    return codestream[stream.start : stream.start + 42] + b"\x8f" + codestream[stream.start + 43 :]


def _within_range(pixels: Pixels, stream: Stream) -> Pixels:
    """Samples of an `_unclipped` codestream as it meant them. Raises Undecodable where they leave their range: the
    reversible wavelet gives back what went in, which lay within."""
    if not stream.reversible:
        return pixels
    half = 2 ** (stream.bits - 1)
    if pixels.min() < -half or pixels.max() >= half:
        raise Undecodable(OUT_OF_RANGE)
    return pixels if stream.signed else pixels.view(np.uint16) + np.uint16(half)


@contextmanager
def _nothing_unraised() -> Iterator[None]:
    """Raise what imagecodecs cannot: OpenJPH's error in mid-image reaches Python as one that is "ignored"."""
    errors: list[sys.UnraisableHookArgs] = []
    hook, sys.unraisablehook = sys.unraisablehook, errors.append
    try:
        yield
    finally:
        sys.unraisablehook = hook
    if errors:
        raise Undecodable from errors[0].exc_value


def _openjpeg_reduced(codestream: bytes, stream: Stream, halvings: int) -> Pixels:
    """OpenJPEG by Pillow, which moves what is signed up by half its range."""
    with Image.open(BytesIO(_unclipped(codestream, stream)), formats=("JPEG2000",)) as film:
        film.reduce = halvings  # type: ignore[method-assign, assignment]  # the plugin's own
        rows, columns = _reduced(stream, halvings)
        film._size = columns << halvings, rows << halvings  # Pillow rounds what is reduced, the wavelet rounds it up
        return (np.asarray(film).astype(np.uint16) ^ 0x8000).view(np.int16)


def _openjph_reduced(codestream: bytes, stream: Stream, halvings: int) -> Pixels:
    low = np.empty(_reduced(stream, halvings), dtype=np.int16)
    with _nothing_unraised():
        imagecodecs.htj2k_decode(_unclipped(codestream, stream), skipres=halvings, out=low)
    return low


def _reduced(stream: Stream, halvings: int) -> tuple[int, int]:
    """Rows and columns of a stream's low band."""
    return -(-stream.rows // 2**halvings), -(-stream.columns // 2**halvings)


# Retired processes that libjpeg-turbo reads and pydicom does not know (PS3.5-2006, table A.4-1).
JPEG_SPECTRAL_SELECTION = UID("1.2.840.10008.1.2.4.53")
JPEG_FULL_PROGRESSION = UID("1.2.840.10008.1.2.4.55")

# The fastest decoder that raises, for one sample per pixel. No other stands behind it: what one finds damaged, the next
# might paint over, as pylibjpeg's libjpeg does.
DECODERS: dict[UID, Decode] = {
    JPEGBaseline8Bit: _jpeg_dct,
    JPEGExtended12Bit: _jpeg_dct,
    JPEG_SPECTRAL_SELECTION: _jpeg_dct,
    JPEG_FULL_PROGRESSION: _jpeg_dct,
    JPEGLossless: _jpeg_lossless,
    JPEGLosslessSV1: _jpeg_lossless,
    JPEGLSLossless: _charls,
    JPEGLSNearLossless: _charls,
    JPEG2000Lossless: _openjpeg,
    JPEG2000: _openjpeg,
    HTJ2KLossless: _openjph,
    HTJ2KLosslessRPCL: _openjph,
    HTJ2K: _openjph,
}
REDUCING_DECODERS: dict[UID, DecodeReduced] = {  # of reversible wavelets only
    JPEG2000Lossless: _openjpeg_reduced,
    HTJ2KLossless: _openjph_reduced,
    HTJ2KLosslessRPCL: _openjph_reduced,
}


def _frame(dataset: Dataset) -> bytes:
    """The one frame's bytes: all fragments, whatever the Basic Offset Table before them says (PS3.5 A.4)."""
    try:
        _offset_table, *fragments = generate_fragments(dataset.PixelData)
        return b"".join(fragments)
    except DAMAGE as error:
        raise Undecodable("The pixel data's fragments cannot be read.") from error


def _codestream(dataset: Dataset) -> bytes:
    """The image's codestream, up to its end marker, which no entropy-coded data holds.

    Behind it some writers pad with 0xFF, with a space or with many zeros.
    """
    frame = _frame(dataset)
    end = frame.rfind(END_MARKER)
    if end < 0:
        raise Truncated
    return frame[: end + 2]


def _run_length(frame: bytes, header: PixelHeader) -> Pixels:
    """RLE Lossless of one sample per pixel: one PackBits segment per byte, the high byte first (PS3.5 annex G).

    Not by pylibjpeg-rle: on a damaged segment it panics, and a Rust panic passes `except Exception` by.
    """
    itemsize = header.bits_allocated // 8
    if len(frame) < 64:
        raise Truncated
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != itemsize:
        raise Undecodable("The RLE data does not have one segment for each byte of a pixel.")
    size = header.rows * header.columns
    planes = np.empty((size, itemsize), dtype=np.uint8)  # little endian: the high byte is the last
    for segment, (start, end) in enumerate(pairwise((*offsets[:count], len(frame)))):
        plane = _unpacked(frame[start:end])
        if len(plane) < size:
            raise Truncated
        # Some writers fill a segment up to an even length: with a pixel more, in two bytes of its own.
        if len(plane) > size and len(_unpacked(frame[start : end - 2])) != size:
            raise Undecodable("The RLE data holds more pixels than the header says: it is damaged.")
        planes[:, itemsize - 1 - segment] = plane[:size]
    return planes.view(f"<u{itemsize}").reshape(header.rows, header.columns)


def _unpacked(segment: bytes) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(imagecodecs.packbits_decode(segment), dtype=np.uint8)
    except (RuntimeError, ValueError) as error:
        raise Undecodable from error


def _described(codestream: bytes, syntax: UID) -> Stream:
    try:
        return _jpeg_2000(codestream) if syntax in JPEG2000TransferSyntaxes else _jpeg(codestream)
    except (struct.error, IndexError) as error:
        raise Undecodable from error


def _jpeg(codestream: bytes) -> Stream:
    """The frame header of a JPEG or JPEG-LS codestream (T.81 B.2.2)."""
    at = 2
    while codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", codestream, at + 4)
            return Stream(rows, columns, samples, bits)
        (length,) = struct.unpack_from(">H", codestream, at + 2)
        at += 2 + length if marker != 0xFF else 1  # any marker may be preceded by fill bytes
    raise Undecodable("The compressed image has no frame header.")


def _jpeg_2000(codestream: bytes) -> Stream:
    """The SIZ segment of a JPEG 2000 codestream (T.800 A.5.1), bare or, against PS3.5 A.4.4, inside a JP2 file.

    Raises Truncated where the tile-parts do not end at the end marker: OpenJPH does not mind if they do not.
    """
    start = codestream.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise Undecodable("The compressed image has no JPEG 2000 codestream.")
    right, bottom, left, top, *tile = struct.unpack_from(">8I", codestream, start + 8)
    samples, depth = struct.unpack_from(">HB", codestream, start + 40)
    one_tile = (left, top, *tile[2:]) == (0, 0, 0, 0) and tile[0] >= right and tile[1] >= bottom
    reversible, halvings = _require_tile_parts(codestream, start + 2)
    return Stream(
        bottom - top,
        right - left,
        samples,
        (depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        start=start,
        reversible=reversible,
        halvings=halvings if one_tile and start == 0 else 0,
    )


def _require_tile_parts(codestream: bytes, at: int) -> tuple[bool, int]:
    """Walk over the main header's segments and the tile-parts, each of which states its length (T.800 A.4.2).

    Returns whether the image is coded by the reversible wavelet, and how many of its steps may be left out: as many as
    it takes (A.6.1), none where a tile-part does not state its length.
    """
    reversible, steps, style = False, 0, 0
    while (marker := codestream[at : at + 2]) != END_MARKER:
        if not marker.startswith(b"\xff"):
            raise Truncated
        (length,) = struct.unpack_from(">H", codestream, at + 2)
        if marker == b"\xff\x52":  # COD
            style, steps, reversible = codestream[at + 4], codestream[at + 9], codestream[at + 13] == 1
        if marker != b"\xff\x90":  # SOT
            at += 2 + length
            continue
        (tile_part,) = struct.unpack_from(">I", codestream, at + 6)
        _require_packets(codestream, at + 12, at + tile_part if tile_part else len(codestream) - 2, style)
        if tile_part == 0:  # the last one, up to the end marker
            return reversible, 0
        at += tile_part
    return reversible, steps if reversible else 0


def _require_packets(codestream: bytes, at: int, end: int, style: int) -> None:
    """Pass over a tile-part's header and require that its packets hold no marker but those that the style announces."""
    while codestream[at : at + 2] != b"\xff\x93":  # SOD
        (length,) = struct.unpack_from(">H", codestream, at + 2)
        at += 2 + length
    allowed = [START_OF_PACKET] if style & 2 else []
    allowed += [END_OF_PACKET_HEADER] if style & 4 else []
    packets = np.frombuffer(codestream, dtype=np.uint8)[at + 2 : end]
    markers = packets[np.flatnonzero(packets[:-1] == 0xFF) + 1]
    if not np.isin(markers[markers >= LEAST_MARKER_IN_PACKETS], allowed).all():
        raise Undecodable(MARKER_IN_DATA)


def _require_scans(codestream: bytes, ff: NDArray[np.intp]) -> None:
    """Walk over a JPEG codestream's segments and scans (T.81 B.1.1). Raises Undecodable where a scan holds a marker
    that is no restart in its turn, or anything but a segment follows it."""
    at, interval, markers = 2, 0, _markers(codestream, ff)
    while codestream[at : at + 2] != END_MARKER:
        marker = codestream[at + 1]
        if codestream[at] != 0xFF or marker not in SEGMENTS:
            raise Undecodable(MARKER_IN_DATA)
        (length,) = struct.unpack_from(">H", codestream, at + 2)
        if marker == 0xDD:  # DRI
            (interval,) = struct.unpack_from(">H", codestream, at + 4)
        at += 2 + length
        if marker == START_OF_SCAN[1]:
            at = _end_of_scan(codestream, markers[np.searchsorted(markers, at) :], restarting=interval > 0)
        while codestream[at + 1] == 0xFF:  # any marker may be preceded by fill bytes
            at += 1


def _places_of_ff(codestream: bytes) -> NDArray[np.intp]:
    """Where 0xFF stands, but for the last byte: before a stuffed 0x00, or where a marker begins."""
    return np.flatnonzero(np.frombuffer(codestream, dtype=np.uint8)[:-1] == 0xFF)


def _markers(codestream: bytes, at: NDArray[np.intp]) -> NDArray[np.intp]:
    """Where markers begin: at the last 0xFF in a row, but for one alone behind which a scan stuffed 0x00 so that none
    can be read out of its data (T.81 B.1.1.2, F.1.2.3)."""
    data = np.frombuffer(codestream, dtype=np.uint8)
    following = data[at + 1]
    stuffed = (following == 0) & (data[at - 1] != 0xFF)
    markers: NDArray[np.intp] = at[(following != 0xFF) & ~stuffed]
    return markers


def _end_of_scan(codestream: bytes, markers: NDArray[np.intp], *, restarting: bool) -> int:
    """The first of the markers behind a scan's start that is no restart in its turn. Raises Truncated without one."""
    for restarts, at in enumerate(markers):
        if not restarting or codestream[at + 1] != 0xD0 + restarts % 8:
            return int(at)
    raise Truncated


def _by_pydicom(dataset: Dataset, syntax: UID) -> tuple[Pixels, str]:
    try:
        options: dict[str, Any] = {"view_only": True, "correct_unused_bits": False, "allow_excess_frames": False}
        pixels, properties = get_decoder(syntax).as_array(
            dataset, index=0, decoding_plugin=SAFE_PLUGINS.get(syntax, ""), **options
        )
    except NotImplementedError as error:
        raise UnsupportedTransferSyntax(f"No decoder is known for the transfer syntax {syntax.name}.") from error
    except DAMAGE as error:
        raise Undecodable from error
    return pixels, str(properties["photometric_interpretation"])


def _stored(pixels: Pixels, stream: Stream | None, header: PixelHeader) -> Pixels:
    """Decoded samples as the header's type, with only the bits that hold the value."""
    itemsize = header.bits_allocated // 8
    if pixels.shape != (header.rows, header.columns):
        raise Undecodable
    pixels = pixels.astype(f"{pixels.dtype.kind}{itemsize}", copy=False).view(f"u{itemsize}")
    # JPEG 2000 and JPEG-LS state how many bits they code, and are right where the header is not.
    trusted = stream is not None and header.transfer_syntax in (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes)
    bits = stream.bits if stream is not None and trusted else header.bits_stored
    unused = header.bits_allocated - bits
    if header.signed:
        signed = (pixels << unused).view(f"i{itemsize}")
        return signed >> unused
    return pixels & (2**bits - 1) if unused and pixels.max() >> bits else pixels
