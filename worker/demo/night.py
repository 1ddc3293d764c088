"""A night of phantom studies: thirty DICOM studies as they come from many devices, good and bad.

Every picture is drawn (see phantom_thorax), every name and number is made up, and the same seed writes the same bytes,
so writing them twice is harmless. `generate` says of each file what an honest worker must make of it.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
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
)

from worker.demo.film import Film, Outcome, Study, phantom_dataset, save

ARTISTS = min(4, os.cpu_count() or 1)  # films drawn side by side; each takes some 50 MB


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


def _bedside(*findings: str, side: str = "right", **differs: Any) -> Film:
    return Film(findings, side, "AP", **{"tags": {"SeriesDescription": "CHEST PORTABLE"}, **differs})


def _code(value: str, meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return [item]


LATERAL = Film(view="LL", outcome="skipped", reason="lateral_view")
LATERAL_BY_CODE = {"ViewPosition": None, "ViewCodeSequence": _code("399067008", "lateral")}
PA_BY_CODE = {"ViewPosition": None, "ViewCodeSequence": _code("272479007", "postero-anterior")}
AP_BY_SERIES = {"ViewPosition": "", "SeriesDescription": "CHEST AP PORTABLE"}
HAND = {"BodyPartExamined": "HAND", "StudyDescription": "HAND", "SeriesDescription": "HAND PA", "ViewPosition": "PA"}
RAW = {"SOPClassUID": DigitalXRayImageStorageForProcessing, "PresentationIntentType": "FOR PROCESSING"}
CUT = Film(("Effusion",), syntax=JPEG2000Lossless, damage="truncated", outcome="quarantined", reason="truncated")


def plan() -> tuple[Study, ...]:
    """The night, in order of arrival."""
    films: dict[str, tuple[Film, ...]] = {
        "normal": (Film(),),
        "pneumothorax, right": (Film(("Pneumothorax",), "right", syntax=JPEGLosslessSV1),),
        "effusion, left": (Film(("Effusion",), "left", syntax=JPEG2000Lossless),),
        "consolidation, right": (
            Film(("Consolidation",), syntax=ImplicitVRLittleEndian, modality="CR", photometric="MONOCHROME1", bits=10),
        ),
        "mass, left": (Film(("Mass",), "left", syntax=RLELossless),),
        "cardiomegaly": (Film(("Cardiomegaly",), syntax=JPEGLSLossless),),
        "edema and a large heart": (_bedside("Edema", "Cardiomegaly", photometric="MONOCHROME1"),),
        "emphysema": (Film(("Emphysema",), syntax=DeflatedExplicitVRLittleEndian),),
        "atelectasis": (_bedside("Atelectasis", syntax=JPEG2000, modality="CR"),),
        "fibrosis": (Film(("Fibrosis",), syntax=ExplicitVRBigEndian),),
        "pleural thickening, left": (Film(("Pleural_Thickening",), "left", syntax=HTJ2KLossless, bits=16),),
        "hernia, PA and lateral": (Film(("Hernia",), syntax=JPEGLossless), replace(LATERAL, syntax=JPEGLosslessSV1)),
        "normal, but STAT": (_bedside(),),
        "hydropneumothorax, left": (_bedside("Pneumothorax", "Effusion", side="left", syntax=JPEGLSNearLossless),),
        "normal, 8 bits": (Film(syntax=JPEGBaseline8Bit, bits=8),),
        "normal, INVERSE": (Film(photometric="MONOCHROME1", tags={"PresentationLUTShape": "INVERSE"}),),
        "lateral alone": (LATERAL,),
        "lateral by its code": (replace(LATERAL, tags=LATERAL_BY_CODE),),
        "consolidation, by code": (
            Film(("Consolidation",), "left", syntax=JPEG2000Lossless, tags=PA_BY_CODE),
        ),
        "effusion, by series": (_bedside("Effusion", modality="CR", tags=AP_BY_SERIES),),
        "mass, view unknown": (
            Film(("Mass",), tags={"ViewPosition": ""}, outcome="skipped", reason="view_unknown"),
        ),
        "hand": (Film(view="HAND", tags=HAND, outcome="skipped", reason="body_part_not_chest"),),
        "raw detector values": (Film(tags=RAW, outcome="skipped", reason="for_processing"),),
        "effusion, cut": (CUT,),
        "no pixels": (Film(damage="no pixel data", outcome="quarantined", reason="no_pixel_data"),),
        "nodule, right": (Film(("Mass",), "right", syntax=JPEGExtended12Bit),),
        "no preamble": (Film(("Atelectasis", "Cardiomegaly"), syntax=ImplicitVRLittleEndian, damage="no preamble"),),
        "effusion, one film cut": (Film(("Effusion", "Cardiomegaly"), "left"), CUT),
        "edema, two films": (_bedside("Edema", syntax=HTJ2K, bits=16), _bedside("Edema", "Effusion")),
        "emphysema and mass": (Film(("Emphysema", "Mass"), syntax=RLELossless, photometric="MONOCHROME1"),),
    }  # fmt: skip
    return tuple(
        Study(number, title, each, stat="STAT" in title) for number, (title, each) in enumerate(films.items(), 1)
    )


def generate(
    folder: Path, *, seed: int, studies: Sequence[Study] | None = None, on_study: Callable[[], None] = lambda: None
) -> list[Written]:
    """Write the whole night (or `studies`) under `folder`: a folder each, a duplicate, and a file that is no DICOM.

    `on_study` is called after each study, for a progress bar.
    """
    written: list[Written] = []
    with ThreadPoolExecutor(ARTISTS) as artists:  # Pillow and numpy let go of the interpreter while they draw
        for files in artists.map(lambda study: list(write(study, folder, seed=seed)), studies or plan()):
            written += files
            on_study()
    return [*written, *_write_strays(folder, written)]


def write(study: Study, folder: Path, *, seed: int) -> Iterator[Written]:
    """Draw and write one study's films, some with the ending .dcm and some without."""
    place = folder / study.accession_number
    place.mkdir(parents=True, exist_ok=True)
    for number, film in enumerate(study.films, 1):
        path = place / (f"{film.view}{number}.dcm" if study.number % 3 else f"IM{number:06d}")
        dataset = phantom_dataset(study, film, number=number, seed=seed)
        save(dataset, path, damage=film.damage)
        uids = (dataset.StudyInstanceUID, dataset.SOPInstanceUID)
        yield Written(path, study.title, film.outcome, film.reason, film.findings, *uids)


def _write_strays(folder: Path, written: list[Written]) -> Iterator[Written]:
    """Other files in such folders: a film that was sent twice, and a letter."""
    first = written[0]
    again = folder / "resent" / first.path.name
    again.parent.mkdir(exist_ok=True)
    shutil.copyfile(first.path, again)
    yield replace(first, path=again, outcome="duplicate", reason="sent twice")
    letter = folder / "README.TXT"
    letter.write_text("These films are drawings made by `nightread demo`. No patient was ever in front of them.\n")
    yield Written(letter, "a letter", "ignored", "not_dicom")
