"""A factory of small DICOM files for the tests: `make_film` gives a chest film with fresh UIDs, in any transfer syntax.

Every keyword that is a DICOM attribute (`Modality="CT"`) overrides the header; None removes the attribute.
"""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)


def _bit_pattern(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The stored bits as unsigned numbers: JPEG knows no sign, DICOM reads two's complement out of it."""
    unsigned = np.ascontiguousarray(pixels).view(f"u{pixels.dtype.itemsize}")
    return unsigned & unsigned.dtype.type(2**bits - 1)


def _jpeg_lossless(pixels: np.ndarray, bits: int, *, predictor: int) -> bytes | bytearray:
    return imagecodecs.jpeg8_encode(
        _bit_pattern(pixels, bits), lossless=True, predictor=predictor, bitspersample=max(bits, 8)
    )


# The syntaxes that pydicom cannot write, by imagecodecs: (pixels, bits stored) -> codestream.
ENCODERS: dict[str, Callable[[np.ndarray, int], bytes | bytearray]] = {
    JPEGBaseline8Bit: lambda pixels, _: imagecodecs.jpeg8_encode(pixels, level=95),
    JPEGExtended12Bit: lambda pixels, _: imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12),
    JPEGLossless: lambda pixels, bits: _jpeg_lossless(pixels, bits, predictor=4),
    JPEGLosslessSV1: lambda pixels, bits: _jpeg_lossless(pixels, bits, predictor=1),
    JPEGLSNearLossless: lambda pixels, _: imagecodecs.jpegls_encode(pixels, level=2),
    JPEG2000: lambda pixels, bits: imagecodecs.jpeg2k_encode(
        pixels, level=60, codecformat="j2k", bitspersample=bits, reversible=False
    ),
    HTJ2KLossless: lambda pixels, _: imagecodecs.htj2k_encode(pixels, reversible=True),
    HTJ2KLosslessRPCL: lambda pixels, _: imagecodecs.htj2k_encode(pixels, reversible=True),
    HTJ2K: lambda pixels, _: imagecodecs.htj2k_encode(pixels, reversible=False),
}

LOSSLESS_SYNTAXES: tuple[UID, ...] = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
)
LOSSY_SYNTAXES: tuple[UID, ...] = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)


def texture(rows: int = 96, columns: int = 80, *, bits: int = 12, seed: int = 0, signed: bool = False) -> np.ndarray:
    """A noisy, thorax-like texture (rows, columns) over the whole range of `bits`; uint8, int8, uint16 or int16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    lungs = np.exp(-(((np.abs(x) - 0.45) / 0.3) ** 2 + (y / 0.7) ** 2))
    field = 1 - 0.7 * lungs + 0.1 * np.sin(14 * y) + 0.03 * rng.standard_normal((rows, columns))
    field = (field - field.min()) / (field.max() - field.min())
    levels = np.rint(field * (2**bits - 1)).astype(np.int32)
    if signed:
        return (levels - 2 ** (bits - 1)).astype(np.int8 if bits <= 8 else np.int16)
    return levels.astype(np.uint8 if bits <= 8 else np.uint16)


def make_film(
    path: Path | str | None = None,
    *,
    pixels: np.ndarray | None = None,
    bits: int | None = None,
    photometric: str = "MONOCHROME2",
    transfer_syntax: str = ExplicitVRLittleEndian,
    view_position: str | None = "PA",
    **attributes: Any,
) -> Dataset:
    """A chest film as a dataset with fresh UIDs, written to `path` if one is given.

    pixels: (rows, columns) or (rows, columns, 3), uint8, int8, uint16 or int16; `texture` if None.
    bits: Bits Stored; by default all that the dtype holds, 12 for the default texture.
    """
    if pixels is None:
        bits = bits or 12
        pixels = texture(bits=bits)
    bits = bits or 8 * pixels.dtype.itemsize
    film = _described(pixels, bits=bits, photometric=photometric, transfer_syntax=transfer_syntax)
    _put_pixels(film, pixels, bits)
    for keyword, value in ({"ViewPosition": view_position} | attributes).items():
        if value is None:
            film.pop(keyword, None)
        else:
            setattr(film, keyword, value)
    if path is not None:
        save(film, path)
    return film


def _described(pixels: np.ndarray, *, bits: int, photometric: str, transfer_syntax: str) -> Dataset:
    """Everything but the pixels themselves."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    film.SOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = generate_uid()
    film.StudyInstanceUID = generate_uid()
    film.SeriesInstanceUID = generate_uid()
    film.PatientName, film.PatientID = "Phantom^Test", "PHANTOM-1"
    film.AccessionNumber = "A1"
    film.StudyDate = film.AcquisitionDate = "20260101"
    film.StudyTime = film.AcquisitionTime = "030000"
    film.Modality, film.BodyPartExamined = "DX", "CHEST"
    film.ImageType = ["ORIGINAL", "PRIMARY"]
    film.PresentationIntentType = "FOR PRESENTATION"
    film.Rows, film.Columns = pixels.shape[:2]
    film.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    if film.SamplesPerPixel > 1:
        film.PlanarConfiguration = 0
    film.PhotometricInterpretation = photometric
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    return film


def save(film: Dataset, path: Path | str | BinaryIO) -> None:
    """Writes the dataset as a DICOM file, preamble and all."""
    film.file_meta.MediaStorageSOPClassUID = film.get("SOPClassUID", DigitalXRayImageStorageForPresentation)
    film.file_meta.MediaStorageSOPInstanceUID = film.get("SOPInstanceUID", generate_uid())
    film.save_as(path, enforce_file_format=True)


def _put_pixels(film: Dataset, pixels: np.ndarray, bits: int) -> None:
    syntax = film.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        big = syntax == ExplicitVRBigEndian
        # Big endian 8-bit data is written as OB here, which is never swapped (PS3.5 A.3).
        raw = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes() if big else pixels.tobytes()
        film.PixelData = raw + b"\0" * (len(raw) % 2)
        film["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    elif syntax in ENCODERS:
        film.PixelData = encapsulate([bytes(ENCODERS[syntax](pixels, bits))])
        film["PixelData"].VR = "OB"
    else:
        film.compress(syntax, pixels, generate_instance_uid=False)


def data_set_digest(path: Path) -> str:
    """SHA-256 of a file's bytes after its meta information."""
    content = path.read_bytes()
    (length,) = struct.unpack("<L", content[140:144])  # (0002,0000), PS3.10 section 7.1
    return hashlib.sha256(content[144 + length :]).hexdigest()
