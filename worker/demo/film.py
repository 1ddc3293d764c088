"""One phantom film: its picture, its header, and its bytes in the transfer syntax that it comes in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from worker.demo.canvas import Map, Sheet, collimate, expose, letter
from worker.demo.findings import draw, reshape
from worker.demo.others import hand, lateral
from worker.demo.thorax import Build, Thorax, bedside_wires

FIRST_FILM_AT = datetime(2025, 12, 31, 20, 30)
MINUTES_BETWEEN_STUDIES = 15
ROWS = 1280
SHEETS = {"PA": (800, 656, 512), "AP": (690, 726, 494), "LL": (800, 656, 514), "HAND": (690, 564, 423)}  # h, w, scale

Outcome = Literal["kept", "skipped", "quarantined", "duplicate", "ignored"]
Damage = Literal["", "truncated", "no pixel data", "no preamble"]


@dataclass(frozen=True)
class Film:
    """One instance to write, and what must become of it."""

    findings: tuple[str, ...] = ()
    side: str = "right"
    view: str = "PA"  # drawn so; written to View Position unless `tags` says otherwise
    syntax: uid.UID = uid.ExplicitVRLittleEndian
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


def picture(film: Film, *, rng: np.random.Generator, rows: int = ROWS) -> Map:
    """The film as displayed: float32 (rows, columns) in [0, 1], white = dense.

    A film of fewer rows is drawn on a smaller sheet: for training, where thousands are drawn.
    """
    height, width, scale = SHEETS[film.view]
    fewer = rows / ROWS
    sheet = Sheet(round(fewer * height), round(fewer * width), fewer * scale)
    if film.view == "HAND":
        drawing = hand(sheet, rng)
    elif film.view == "LL":
        drawing = letter(lateral(sheet, rng), "L", at=(0.07, 0.07), size=0.05)
    else:
        drawing = _frontal(film, sheet, rng)
    return expose(drawing, rows=rows, rng=rng)


def _frontal(film: Film, sheet: Sheet, rng: np.random.Generator) -> Map:
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
    placed = replace(
        sheet,
        scale=sheet.scale * rng.uniform(0.96, 1.03),
        centre=(rng.normal(0, 0.015), 0.5 + rng.normal(0, 0.025)),
        tilt_degrees=rng.normal(0, 2.2 if bedside else 0.7),
    )
    thorax = Thorax(placed, reshape(build, film.findings), rng)
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
    image = picture(film, rng=np.random.default_rng([seed, study.number, number]))
    dataset = Dataset()
    for keyword, value in {**_header(study, film, number=number, seed=seed), **film.tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = film.syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    _put_pixels(dataset, image, film)
    return dataset


def _header(study: Study, film: Film, *, number: int, seed: int) -> dict[str, Any]:
    entropy = (f"nightread phantom {seed}", f"study {study.number}")
    taken = FIRST_FILM_AT + timedelta(minutes=MINUTES_BETWEEN_STUDIES * study.number + number)
    day, time = taken.strftime("%Y%m%d"), taken.strftime("%H%M%S")
    computed = film.modality == "CR"
    return {
        "SOPClassUID": uid.ComputedRadiographyImageStorage if computed else uid.DigitalXRayImageStorageForPresentation,
        "StudyInstanceUID": uid.generate_uid(entropy_srcs=[*entropy]),
        "SeriesInstanceUID": uid.generate_uid(entropy_srcs=[*entropy, "series"]),
        "SOPInstanceUID": uid.generate_uid(entropy_srcs=[*entropy, f"film {number}"]),
        "ImageType": ["DERIVED" if film.syntax in LOSSY else "ORIGINAL", "PRIMARY"],
        "LossyImageCompression": "01" if film.syntax in LOSSY else None,
        "StudyDate": day, "AcquisitionDate": day, "StudyTime": time, "AcquisitionTime": time,
        "AccessionNumber": study.accession_number, "PatientID": study.accession_number,
        "PatientName": f"PHANTOM^{study.number:02d}", "PatientBirthDate": "", "PatientSex": "O",
        "Modality": film.modality, "Manufacturer": "NIGHTREAD PHANTOMS",
        "PresentationIntentType": None if computed else "FOR PRESENTATION",
        "StudyDescription": "CHEST", "BodyPartExamined": "CHEST", "ViewPosition": film.view,
        "SeriesNumber": 1, "InstanceNumber": number, "BurnedInAnnotation": "NO",
        "ImageComments": "Drawn by nightread demo; not a patient",
        "RequestedProcedurePriority": "STAT" if study.stat else None,
    }  # fmt: skip


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
    dataset.BitsAllocated, dataset.PixelRepresentation = 8 * pixels.itemsize, 0
    dataset.BitsStored, dataset.HighBit = film.bits, film.bits - 1
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
ENCODERS: dict[uid.UID, Callable[[Pixels, int], bytes]] = {
    uid.JPEGBaseline8Bit: lambda pixels, _: bytes(imagecodecs.jpeg8_encode(pixels, level=95)),
    uid.JPEGExtended12Bit: lambda pixels, _: bytes(imagecodecs.jpeg8_encode(pixels, level=97, bitspersample=12)),
    uid.JPEGLossless: partial(_jpeg_lossless, predictor=4),
    uid.JPEGLosslessSV1: partial(_jpeg_lossless, predictor=1),
    uid.JPEG2000Lossless: _jpeg_2000,
    uid.JPEG2000: partial(_jpeg_2000, level=55),
    uid.HTJ2KLossless: lambda pixels, _: bytes(imagecodecs.htj2k_encode(pixels, reversible=True)),
    uid.HTJ2K: lambda pixels, _: bytes(imagecodecs.htj2k_encode(pixels, reversible=False)),
}
LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000, uid.HTJ2K, uid.JPEGLSNearLossless})


def _compress(dataset: Dataset, pixels: Pixels) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in ENCODERS:
        dataset.PixelData = encapsulate([ENCODERS[syntax](pixels, dataset.BitsStored)])
        dataset["PixelData"].VR = "OB"
    elif syntax == uid.JPEGLSNearLossless:
        dataset.compress(syntax, pixels, generate_instance_uid=False, jls_error=3)
    elif syntax.is_encapsulated:
        dataset.compress(syntax, pixels, generate_instance_uid=False)
    else:
        dataset.PixelData = (pixels.byteswap() if syntax == uid.ExplicitVRBigEndian else pixels).tobytes()
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
