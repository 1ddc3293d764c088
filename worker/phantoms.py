"""A night of phantom studies: about thirty DICOM studies as they come from many devices, good and bad.

Every picture is drawn (see phantom_thorax), every name and number is made up, and the same seed writes the same bytes,
so writing them twice is harmless. `generate` says of each file what an honest worker must make of it.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
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
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
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

from worker.phantom_findings import draw, reshape
from worker.phantom_others import hand, lateral
from worker.phantom_sheet import Map, Sheet, collimate, expose, letter
from worker.phantom_thorax import Build, Thorax, bedside_wires

NIGHT = datetime(2026, 1, 1, 6, 30)  # noqa: DTZ001 - DICOM times are local; the films end half an hour before the day
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

    title: str
    films: tuple[Film, ...]
    stat: bool = False
    number: int = 0

    @property
    def accession_number(self) -> str:
        return f"DEMO-{self.number:02d}"


@dataclass(frozen=True)
class Written:
    """One file on disk. UIDs are empty where the file is no DICOM object."""

    path: Path
    title: str
    outcome: Outcome
    reason: str = ""
    findings: tuple[str, ...] = ()
    study_instance_uid: str = ""
    sop_instance_uid: str = ""


def _code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return [item]


def plan() -> tuple[Study, ...]:
    """The night, in order of arrival."""
    bedside = {"SeriesDescription": "CHEST PORTABLE"}
    side_view = Film(view="LL", outcome="skipped", reason="lateral_view")
    unseen = {"ViewPosition": None}
    palm = Film(view="hand", tags={"BodyPartExamined": "HAND", "StudyDescription": "HAND PA", "SeriesDescription": "HAND PA", "ViewPosition": "PA"},
                outcome="skipped", reason="body_part_not_chest")  # fmt: skip
    raw = {"SOPClassUID": DigitalXRayImageStorageForProcessing, "PresentationIntentType": "FOR PROCESSING"}
    cut = Film(("Effusion",), syntax=JPEG2000Lossless, damage="truncated", outcome="quarantined", reason="truncated")
    studies = [
        Study("normal", (Film(),)),
        Study("pneumothorax, right", (Film(("Pneumothorax",), "right", syntax=JPEGLosslessSV1),)),
        Study("effusion, left", (Film(("Effusion",), "left", syntax=JPEG2000Lossless),)),
        Study("consolidation, right", (Film(("Consolidation",), "right", syntax=ImplicitVRLittleEndian, modality="CR", photometric="MONOCHROME1", bits=10),)),
        Study("mass, left", (Film(("Mass",), "left", syntax=RLELossless),)),
        Study("cardiomegaly", (Film(("Cardiomegaly",), syntax=JPEGLSLossless),)),
        Study("edema at the bedside", (Film(("Edema", "Cardiomegaly"), view="AP", photometric="MONOCHROME1", tags=bedside),)),
        Study("emphysema", (Film(("Emphysema",), syntax=DeflatedExplicitVRLittleEndian),)),
        Study("atelectasis", (Film(("Atelectasis",), view="AP", syntax=JPEG2000, modality="CR"),)),
        Study("fibrosis", (Film(("Fibrosis",), syntax=ExplicitVRBigEndian),)),
        Study("pleural thickening, left", (Film(("Pleural_Thickening",), "left", syntax=HTJ2KLossless, bits=16),)),
        Study("hernia, two films", (Film(("Hernia",), syntax=JPEGLossless), replace(side_view, syntax=JPEGLosslessSV1))),
        Study("normal, but STAT", (Film(view="AP", tags=bedside),), stat=True),
        Study("hydropneumothorax, left", (Film(("Pneumothorax", "Effusion"), "left", view="AP", syntax=JPEGLSNearLossless, tags=bedside),)),
        Study("normal, 8 bits", (Film(syntax=JPEGBaseline8Bit, bits=8),)),
        Study("normal, MONOCHROME1 and INVERSE", (Film(photometric="MONOCHROME1", tags={"PresentationLUTShape": "INVERSE"}),)),
        Study("lateral alone", (side_view,)),
        Study("lateral, told by its code only", (replace(side_view, tags=unseen | {"ViewCodeSequence": _code("399067008", "SCT", "lateral")}),)),
        Study("consolidation, view told by its code only", (Film(("Consolidation",), "left", syntax=JPEG2000Lossless,
              tags=unseen | {"ViewCodeSequence": _code("272479007", "SCT", "postero-anterior")}),)),
        Study("effusion, view told by the series only", (Film(("Effusion",), "right", view="AP", modality="CR",
              tags={"ViewPosition": "", "SeriesDescription": "CHEST AP PORTABLE"}),)),
        Study("view unknown", (Film(("Mass",), tags={"ViewPosition": ""}, outcome="skipped", reason="view_unknown"),)),
        Study("hand", (palm,)),
        Study("for processing", (Film(tags=raw, outcome="skipped", reason="for_processing"),)),
        Study("truncated", (cut,)),
        Study("no pixel data", (Film(damage="no pixel data", outcome="quarantined", reason="no_pixel_data"),)),
        Study("nodule, 12-bit JPEG", (Film(("Mass",), "right", syntax=JPEGExtended12Bit),)),
        Study("no preamble", (Film(("Atelectasis", "Cardiomegaly"), syntax=ImplicitVRLittleEndian, damage="no preamble"),)),
        Study("two films, one broken", (Film(("Effusion", "Cardiomegaly"), "left"), cut)),
        Study("two frontal films", (Film(("Edema",), view="AP", syntax=HTJ2K, bits=16, tags=bedside), Film(("Edema", "Effusion"), "right", view="AP", tags=bedside))),
        Study("emphysema and mass", (Film(("Emphysema", "Mass"), "right", syntax=RLELossless, photometric="MONOCHROME1"),)),
    ]  # fmt: skip
    return tuple(replace(study, number=number) for number, study in enumerate(studies, 1))


def generate(folder: Path, *, seed: int = 7) -> list[Written]:
    """Write the whole night under `folder`: one folder per study, a duplicate, and a file that is no DICOM."""
    written = [each for study in plan() for each in write(study, folder, seed=seed)]
    return [*written, *write_strays(folder, written)]


def write(study: Study, folder: Path, *, seed: int) -> Iterator[Written]:
    """Draw and write one study's films, some with the ending .dcm and some without."""
    place = folder / study.accession_number
    place.mkdir(parents=True, exist_ok=True)
    for number, film in enumerate(study.films, 1):
        path = place / (f"{film.view}{number}.dcm" if study.number % 3 else f"IM{number:06d}")
        dataset = _dataset(study, film, number=number, seed=seed)
        _save(dataset, path, damage=film.damage)
        yield Written(
            path,
            study.title,
            film.outcome,
            film.reason,
            film.findings,
            dataset.StudyInstanceUID,
            dataset.SOPInstanceUID,
        )


def write_strays(folder: Path, written: list[Written]) -> Iterator[Written]:
    """What else lies in such folders: a study that was sent twice, and a letter."""
    first = written[0]
    again = folder / "resent" / first.path.name
    again.parent.mkdir(exist_ok=True)
    shutil.copyfile(first.path, again)
    yield replace(first, path=again, outcome="duplicate", reason="sent twice")
    letter_path = folder / "README.TXT"
    letter_path.write_text("These films are drawings made by `nightread demo`. No patient was ever in front of them.\n")
    yield Written(letter_path, "a letter", "ignored", "not_dicom")


def picture(film: Film, *, rng: np.random.Generator) -> Map:
    """The film as displayed: float32 (rows, columns) in [0, 1], white = dense."""
    if film.view == "hand":
        return expose(hand(Sheet(height=760, width=620, scale=465), rng), rows=ROWS, rng=rng)
    if film.view == "LL":
        drawing = letter(lateral(Sheet(height=880, width=720, scale=565), rng), "L", at=(0.07, 0.07), size=0.05)
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
    height, width, zoom = (760, 800, 0.68) if bedside else (880, 720, 0.78)
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
    drawing = letter(drawing, "PORTABLE  AP", at=(0.14, 0.95), size=0.022)
    return collimate(drawing, margins=tuple(rng.uniform(0.0, 0.05, 4)))


def _dataset(study: Study, film: Film, *, number: int, seed: int) -> Dataset:
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
    taken = NIGHT - timedelta(minutes=16 * (31 - study.number) - number)
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


def _jpeg_lossless(pixels: NDArray[np.integer[Any]], bits: int, *, predictor: int) -> bytes:
    return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)


# What pydicom cannot write, or not quickly: (pixels (rows, columns), bits stored) -> codestream.
ENCODERS: dict[UID, Callable[[NDArray[np.integer[Any]], int], bytes]] = {
    JPEGBaseline8Bit: lambda pixels, _: imagecodecs.jpeg8_encode(pixels, level=95),
    JPEGExtended12Bit: lambda pixels, _: imagecodecs.jpeg8_encode(pixels, level=97, bitspersample=12),
    JPEGLossless: lambda pixels, bits: _jpeg_lossless(pixels, bits, predictor=4),
    JPEGLosslessSV1: lambda pixels, bits: _jpeg_lossless(pixels, bits, predictor=1),
    JPEG2000Lossless: lambda pixels, bits: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", bitspersample=bits, reversible=True),
    JPEG2000: lambda pixels, bits: imagecodecs.jpeg2k_encode(pixels, level=55, codecformat="j2k", bitspersample=bits, reversible=False),
    HTJ2KLossless: lambda pixels, _: imagecodecs.htj2k_encode(pixels, reversible=True),
    HTJ2K: lambda pixels, _: imagecodecs.htj2k_encode(pixels, reversible=False),
}  # fmt: skip
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000, HTJ2K, JPEGLSNearLossless})


def _compress(dataset: Dataset, pixels: NDArray[np.integer[Any]]) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in LOSSY:
        dataset.LossyImageCompression = "01"
        dataset.ImageType = ["DERIVED", "PRIMARY"]
    if syntax in ENCODERS:
        dataset.PixelData = encapsulate([ENCODERS[syntax](pixels, dataset.BitsStored)])
        dataset["PixelData"].VR = "OB"
    elif syntax.is_encapsulated:
        extra = {"jls_error": 3} if syntax == JPEGLSNearLossless else {}
        dataset.compress(syntax, pixels, generate_instance_uid=False, **extra)
    else:
        dataset.PixelData = (pixels.byteswap() if syntax == ExplicitVRBigEndian else pixels).tobytes()
        dataset["PixelData"].VR = "OW"


def _save(dataset: Dataset, path: Path, *, damage: Damage) -> None:
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
