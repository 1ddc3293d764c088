"""A night of phantom studies: forty DICOM studies as they come from many devices, good and bad.

Every picture is drawn (see thorax.py), every name and number is made up, and the same seed writes the same bytes,
so writing them twice is harmless. `generate` says of each file how it must end.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset

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


def _upright(*findings: str, **differs: Any) -> Film:
    return Film(findings, **differs)


def _bedside(*findings: str, **differs: Any) -> Film:
    return Film(findings, **{"view": "AP", "tags": {"SeriesDescription": "CHEST PORTABLE"}, **differs})


def _code(value: str, meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return [item]


LATERAL = Film(view="LL", syntax=uid.JPEGLosslessSV1, outcome="skipped", reason="lateral_view")
LATERAL_BY_CODE = {"ViewPosition": None, "ViewCodeSequence": _code("399067008", "lateral")}
PA_BY_CODE = {"ViewPosition": None, "ViewCodeSequence": _code("272479007", "postero-anterior")}
AP_BY_SERIES = {"ViewPosition": "", "SeriesDescription": "CHEST AP PORTABLE"}
HAND = {"BodyPartExamined": "HAND", "StudyDescription": "HAND", "SeriesDescription": "HAND PA", "ViewPosition": "PA"}
RAW = {"SOPClassUID": uid.DigitalXRayImageStorageForProcessing, "PresentationIntentType": "FOR PROCESSING"}
CUT = Film(("Effusion",), syntax=uid.JPEG2000Lossless, damage="truncated", outcome="quarantined", reason="truncated")


def plan() -> tuple[Study, ...]:
    """The night, in order of arrival."""
    films: dict[str, tuple[Film, ...] | Film] = {
        "normal": _upright(),
        "pneumothorax, right": _upright("Pneumothorax", syntax=uid.JPEGLosslessSV1),
        "effusion, left": _upright("Effusion", side="left", syntax=uid.JPEG2000Lossless),
        "consolidation, right": _upright("Consolidation", syntax=uid.ImplicitVRLittleEndian, modality="CR", bits=10,
                                         photometric="MONOCHROME1"),
        "mass, left": _upright("Mass", side="left", syntax=uid.RLELossless),
        "cardiomegaly": _upright("Cardiomegaly", syntax=uid.JPEGLSLossless),
        "normal, at the bedside": _bedside(),
        "edema and a large heart": _bedside("Edema", "Cardiomegaly", photometric="MONOCHROME1"),
        "emphysema": _upright("Emphysema", syntax=uid.DeflatedExplicitVRLittleEndian),
        "a lateral film alone": LATERAL,
        "atelectasis": _bedside("Atelectasis", syntax=uid.JPEG2000, modality="CR"),
        "normal, 8 bits": _upright(syntax=uid.JPEGBaseline8Bit, bits=8),
        "effusion, right": _bedside("Effusion", syntax=uid.RLELossless),
        "fibrosis": _upright("Fibrosis", syntax=uid.ExplicitVRBigEndian),
        "normal, no pixels": _upright(damage="no pixel data", outcome="quarantined", reason="no_pixel_data"),
        "pleural thickening": _upright("Pleural_Thickening", side="left", syntax=uid.HTJ2KLossless, bits=16),
        "hernia, PA and lateral": (_upright("Hernia", syntax=uid.JPEGLossless), LATERAL),
        "normal, but STAT": _bedside(),
        "effusion and edema": _bedside("Effusion", "Edema", syntax=uid.JPEGLSLossless),
        "a hand": Film(view="HAND", tags=HAND, outcome="skipped", reason="body_part_not_chest"),
        "pneumothorax, effusion": _bedside("Pneumothorax", "Effusion", side="left", syntax=uid.JPEGLSNearLossless),
        "normal, CR": _upright(modality="CR", bits=10),
        "normal, INVERSE": _upright(photometric="MONOCHROME1", tags={"PresentationLUTShape": "INVERSE"}),
        "consolidation, left": _upright("Consolidation", side="left", syntax=uid.JPEG2000Lossless, tags=PA_BY_CODE),
        "lateral by its code": replace(LATERAL, tags=LATERAL_BY_CODE),
        "effusion, AP by series": _bedside("Effusion", modality="CR", tags=AP_BY_SERIES),
        "raw detector values": _upright(tags=RAW, outcome="skipped", reason="for_processing"),
        "mass, right": _upright("Mass", syntax=uid.JPEGExtended12Bit),
        "effusion, file cut": CUT,
        "atelectasis, big heart": _upright("Atelectasis", "Cardiomegaly", syntax=uid.ImplicitVRLittleEndian,
                                             damage="no preamble"),
        "normal, JPEG 2000": _upright(syntax=uid.JPEG2000),
        "mass, view unknown": _upright("Mass", tags={"ViewPosition": ""}, outcome="skipped", reason="view_unknown"),
        "effusion, 1 of 2 cut": (_upright("Effusion", "Cardiomegaly", side="left"), CUT),
        "pneumothorax, left": _bedside("Pneumothorax", side="left", syntax=uid.JPEGLosslessSV1),
        "edema, two films": (_bedside("Edema", syntax=uid.HTJ2K, bits=16), _bedside("Edema", "Effusion")),
        "consolidation, effusion": _upright("Consolidation", "Effusion", syntax=uid.JPEGLossless),
        "emphysema and mass": _upright("Emphysema", "Mass", syntax=uid.RLELossless, photometric="MONOCHROME1"),
        "normal, HTJ2K": _upright(syntax=uid.HTJ2KLossless),
        "pneumothorax, HTJ2K": _upright("Pneumothorax", syntax=uid.HTJ2K),
        "normal, the last": _upright(),
    }  # fmt: skip
    return tuple(
        Study(number, title, each if isinstance(each, tuple) else (each,), stat="STAT" in title)
        for number, (title, each) in enumerate(films.items(), 1)
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
