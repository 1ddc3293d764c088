"""One phantom film: its picture, its header, and its bytes in the transfer syntax that it comes in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    generate_uid,
)

from worker.demo.canvas import Map, Sheet, collimate, expose, letter
from worker.demo.findings import draw, reshape
from worker.demo.others import hand, lateral
from worker.demo.thorax import Build, Thorax, bedside_wires

LAST_FILM_AT = datetime(2026, 1, 1, 6, 30)
MINUTES_BETWEEN_STUDIES = 16
ROWS = 1280

Outcome = Literal["kept", "skipped", "quarantined", "duplicate", "ignored"]
Damage = Literal["", "truncated", "no pixel data", "no preamble"]


@dataclass(frozen=True)
class Film:
    """One instance to write, and what must become of it."""

    findings: tuple[str, ...] = ()
    side: str = "right"
    view: str = "PA"  # drawn so; written to View Position unless `tags` says otherwise
    syntax: UID = ExplicitVRLittleEndian
    modality: str = "DX"
    photometric: str = "MONOCHROME2"
    bits: int = 12
    tags: Mapping[str, Any] = field(default_factory=dict)  # header attributes that differ; None leaves one out
    damage: Damage = ""
    outcome: Outcome = "kept"
    reason: str = ""  # of an outcome other than kept, as views and pixels call it


@dataclass(frozen=True)
class Study:
    """The films of one study and how it is filed."""

    number: int
    title: str
    films: tuple[Film, ...]
    stat: bool = False

    @property
    def accession_number(self) -> str:
        return f"DEMO-{self.number:02d}"


def picture(film: Film, *, rng: np.random.Generator) -> Map:
    """The film as displayed: float32 (rows, columns) in [0, 1], white = dense."""
    if film.view == "HAND":
        return expose(hand(Sheet(height=690, width=564, scale=423), rng), rows=ROWS, rng=rng)
    if film.view == "LL":
        drawing = letter(lateral(Sheet(height=800, width=656, scale=514), rng), "L", at=(0.07, 0.07), size=0.05)
        return expose(drawing, rows=ROWS, rng=rng)
    return expose(_frontal(film, rng), rows=ROWS, rng=rng)


def _frontal(film: Film, rng: np.random.Generator) -> Map:
    bedside = film.view == "AP"
    build = Build(
        cage=rng.uniform(0.49, 0.55),
        heart_left=rng.uniform(0.25, 0.3) + 0.03 * bedside,
        heart_right=rng.uniform(0.1, 0.13),
        dome_rise=rng.uniform(0.1, 0.14),
        right_dome=rng.normal(0.99, 0.015) - 0.07 * bedside,
        left_dome=rng.normal(1.025, 0.015) - 0.07 * bedside,
        breasts=rng.choice([0.0, 0.0, 0.7, 1.1]),
        girth=rng.uniform(0.7, 1.8),
    )
    height, width, zoom = (690, 726, 0.68) if bedside else (800, 656, 0.78)
    sheet = Sheet(
        height=height,
        width=width,
        scale=zoom * width * rng.uniform(0.96, 1.03),
        centre=(rng.normal(0, 0.015), 0.5 + rng.normal(0, 0.025)),
        tilt_degrees=rng.normal(0, 2.2 if bedside else 0.7),
    )
    thorax = Thorax(sheet, reshape(build, film.findings), rng)
    draw(thorax, film.findings, side=film.side)
    if bedside:
        bedside_wires(thorax)
    return _framed(thorax.render(), bedside=bedside, rng=rng)


def _framed(drawing: Map, *, bedside: bool, rng: np.random.Generator) -> Map:
    """The lead markers and the shutters' shadow. Every film says that it is a phantom."""
    drawing = drawing ** np.float32(rng.uniform(0.8, 1.3))  # no two rooms expose alike
    drawing = letter(drawing, "L", at=(0.93, 0.07), size=0.045)
    drawing = letter(drawing, "PHANTOM", at=(0.9, 0.115), size=0.018)
    if not bedside:
        return collimate(drawing, margins=(0.0, rng.uniform(0, 0.02), 0.0, rng.uniform(0, 0.015)))
    drawing = letter(drawing, "AP  PORTABLE", at=(0.17, 0.08), size=0.022)
    left, top, right, bottom = rng.uniform(0.0, 0.045, 4)
    return collimate(drawing, margins=(left, top, right, bottom))


def phantom_dataset(study: Study, film: Film, *, number: int, seed: int) -> Dataset:
    """The film with its header; UIDs depend on nothing but the seed and the place in the plan."""
    uid = (f"nightread phantom {seed}", f"study {study.number}")
    image = picture(film, rng=np.random.default_rng([seed, study.number, number]))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = film.syntax
    dataset.SOPClassUID = (
        ComputedRadiographyImageStorage if film.modality == "CR" else DigitalXRayImageStorageForPresentation
    )
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[*uid])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*uid, "series"])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*uid, f"film {number}"])
    _describe(dataset, study, film, number=number)
    _put_pixels(dataset, image, film)
    for keyword, value in film.tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _describe(dataset: Dataset, study: Study, film: Film, *, number: int) -> None:
    taken = LAST_FILM_AT - timedelta(minutes=MINUTES_BETWEEN_STUDIES * (30 - study.number) - number)
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.StudyDate = dataset.AcquisitionDate = taken.strftime("%Y%m%d")
    dataset.StudyTime = dataset.AcquisitionTime = taken.strftime("%H%M%S")
    dataset.AccessionNumber = study.accession_number
    dataset.Modality, dataset.Manufacturer = film.modality, "NIGHTREAD PHANTOMS"
    dataset.StudyDescription = "CHEST"
    dataset.PatientName = f"PHANTOM^{study.number:02d}"
    dataset.PatientID = study.accession_number
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", film.view
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.BurnedInAnnotation = "NO"
    dataset.ImageComments = "Drawn by nightread demo; not a patient"
    if film.modality == "DX":
        dataset.PresentationIntentType = "FOR PRESENTATION"
    if study.stat:
        dataset.RequestedProcedurePriority = "STAT"


def _put_pixels(dataset: Dataset, image: Map, film: Film) -> None:
    """Stored values in the middle of the detector's range, with the window that shows them."""
    top = 2**film.bits - 1
    low, width = (0, top) if film.bits == 8 else (round(0.05 * top), round(0.86 * top))
    stored = np.rint(low + image * width)
    centre = low + width / 2
    if film.photometric == "MONOCHROME1":  # low values are white, PS3.3 C.7.6.3.1.2
        stored, centre = top - stored, top - centre
    pixels = stored.astype(np.uint8 if film.bits == 8 else np.uint16)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, film.photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 if film.bits == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = film.bits, film.bits - 1, 0
    dataset.WindowCenter, dataset.WindowWidth = f"{centre:.1f}", f"{width}"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    _compress(dataset, pixels)


Pixels = NDArray[np.integer[Any]]


def _jpeg_lossless(pixels: Pixels, bits: int, *, predictor: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits))


def _jpeg_2000(pixels: Pixels, bits: int, *, level: int | None = None) -> bytes:
    reversible = level is None
    return bytes(imagecodecs.jpeg2k_encode(pixels, level, codecformat="j2k", bitspersample=bits, reversible=reversible))


# What pydicom cannot write, or not quickly: (pixels (rows, columns), bits stored) -> codestream.
ENCODERS: dict[UID, Callable[[Pixels, int], bytes]] = {
    JPEGBaseline8Bit: lambda pixels, _: bytes(imagecodecs.jpeg8_encode(pixels, level=95)),
    JPEGExtended12Bit: lambda pixels, _: bytes(imagecodecs.jpeg8_encode(pixels, level=97, bitspersample=12)),
    JPEGLossless: partial(_jpeg_lossless, predictor=4),
    JPEGLosslessSV1: partial(_jpeg_lossless, predictor=1),
    JPEG2000Lossless: _jpeg_2000,
    JPEG2000: partial(_jpeg_2000, level=55),
    HTJ2KLossless: lambda pixels, _: bytes(imagecodecs.htj2k_encode(pixels, reversible=True)),
    HTJ2K: lambda pixels, _: bytes(imagecodecs.htj2k_encode(pixels, reversible=False)),
}
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000, HTJ2K, JPEGLSNearLossless})


def _compress(dataset: Dataset, pixels: Pixels) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in LOSSY:
        dataset.LossyImageCompression = "01"
        dataset.ImageType = ["DERIVED", "PRIMARY"]
    if syntax in ENCODERS:
        dataset.PixelData = encapsulate([ENCODERS[syntax](pixels, dataset.BitsStored)])
        dataset["PixelData"].VR = "OB"
    elif syntax == JPEGLSNearLossless:
        dataset.compress(syntax, pixels, generate_instance_uid=False, jls_error=3)
    elif syntax.is_encapsulated:
        dataset.compress(syntax, pixels, generate_instance_uid=False)
    else:
        dataset.PixelData = (pixels.byteswap() if syntax == ExplicitVRBigEndian else pixels).tobytes()
        dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path, *, damage: Damage) -> None:
    if damage == "no pixel data":
        del dataset.PixelData
    if damage == "no preamble":
        # Some devices write the bare data set: no preamble, no file meta, implicit little endian.
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        return
    dataset.save_as(path, enforce_file_format=True)
    if damage == "truncated":
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 5])
