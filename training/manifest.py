"""The manifest: one row per film, with its patient, its view, its source and a column per finding: 0, 1 or UNKNOWN.

Every data set becomes this table before anything else looks at it: `nih.read_nih` makes it of the NIH tables,
`read_rows` of anybody else's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.errors import TrainingFailed
from training.findings import FINDINGS, NIH_LABELS

DESCRIPTION: Final = ("image", "patient_id", "age_years", "sex", "view_position", "split", "source")
UNKNOWN: Final = 255
"""The label of a film and a finding on which nobody spoke. Whatever counts films counts those with a label alone."""
OLDEST_YEARS: Final = 120
"""Ages above it are typing errors (NIH holds one of 414 years)."""

_NAMES: Final = {
    "image": ("image", "path", "file", "filename", "image index", "image_index"),
    "patient_id": ("patient_id", "patientid", "patient id", "patient"),
    "age_years": ("age_years", "age", "patient age"),
    "sex": ("sex", "gender", "patient sex", "patient gender"),
    "view_position": ("view_position", "view", "view position", "viewposition"),
    "split": ("split", "official_split"),
    "source": ("source", "source_repo", "site", "hospital", "institution"),
}
_NEEDED: Final = ("image", "patient_id", "view_position")
_YEARS: Final = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


class ManifestError(TrainingFailed, ValueError):
    """The table does not say what a manifest needs."""


def findings_in(manifest: pd.DataFrame) -> tuple[str, ...]:
    """The findings the manifest has labels for, in the order of the vocabulary."""
    return tuple(finding for finding in FINDINGS if finding in manifest.columns)


def counts(parts: Mapping[str, pd.DataFrame], *, findings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How many films, patients, and per finding known and positive labels each part of a manifest has."""
    truths = {name: part[list(findings)] for name, part in parts.items()}
    return {
        "films": {name: len(part) for name, part in parts.items()},
        "patients": {name: part["patient_id"].nunique() for name, part in parts.items()},
        "known": {name: (truth != UNKNOWN).sum().to_dict() for name, truth in truths.items()},
        "positives": {name: (truth == 1).sum().to_dict() for name, truth in truths.items()},
    }


def prevalence(labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Each finding's share (F,) of the films whose label is known, of labels (N, F); NaN where none is."""
    truth = np.asarray(labels)
    positives, known = (truth == 1).sum(axis=0), (truth != UNKNOWN).sum(axis=0)
    return np.asarray(np.divide(positives, known, out=np.full(known.shape, np.nan), where=known > 0))


def years(ages: pd.Series) -> pd.Series:
    """Ages as float years from numbers or DICOM age strings ("058Y", "011M"; PS3.5 6.2, AS); what is neither is NaN."""
    text = ages.astype("string").str.strip().str.upper()
    parts = text.str.extract(r"^(\d+(?:\.\d+)?)([YMWD]?)$")
    return parts[0].astype("Float64").astype("float64") * parts[1].replace("", "Y").map(_YEARS).astype("float64")


def frontal(manifest: pd.DataFrame, *, keep_unknown: bool = False) -> pd.DataFrame:
    """The AP and PA films; with `keep_unknown` also those whose view is empty. Laterals and the rest are left out."""
    wanted = ("AP", "PA", "") if keep_unknown else ("AP", "PA")
    return manifest[manifest["view_position"].isin(wanted)].reset_index(drop=True)


def read_rows(path: Path) -> pd.DataFrame:
    """A manifest from any CSV with a path, a patient, a view and finding columns.

    Column names are matched without regard to case; "file" or "path" serve for the image, "view" for the view position
    and so on. A finding is read from its own column and from those of the NIH labels it merges (Mass = Mass or Nodule).
    A finding without any column is left out of the manifest: unknown is not negative.

    Raises ManifestError when a needed column is missing, two rows name one image, or a label is neither 0 nor 1.
    """
    table = pd.read_csv(path, dtype="string", keep_default_na=False)
    by_name = {name.strip().lower(): name for name in table.columns}
    manifest = pd.DataFrame(index=table.index)
    for column in DESCRIPTION:
        heading = next((by_name[name] for name in _NAMES[column] if name in by_name), None)
        if heading is None and column in _NEEDED:
            raise ManifestError(f"no column for {column}: expected one of {', '.join(_NAMES[column])}")
        manifest[column] = "" if heading is None else table[heading].str.strip()
    manifest["age_years"] = years(manifest["age_years"])
    manifest["sex"] = manifest["sex"].str.upper().str[:1]
    manifest["view_position"] = _plain_view(manifest["view_position"])
    for finding in FINDINGS:
        sources = [by_name[label.lower()] for label in _labels_of(finding) if label.lower() in by_name]
        if sources:
            manifest[finding] = pd.concat([_zero_or_one(table[name]) for name in sources], axis=1).max(axis=1)
    return checked(manifest)


def checked(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest itself, if its images are named once each and at least one finding has labels."""
    if not findings_in(manifest):
        raise ManifestError(f"no column names a finding: expected some of {', '.join(FINDINGS)}")
    if (twice := int(manifest["image"].duplicated().sum())) > 0:
        raise ManifestError(f"{twice} rows name an image that another row names too")
    if (nameless := int((manifest["patient_id"] == "").sum())) > 0:
        raise ManifestError(f"{nameless} rows name no patient: films of one patient could not be kept together")
    return manifest


def _labels_of(finding: str) -> list[str]:
    return [finding, *(label for label, merged in NIH_LABELS.items() if merged == finding and label != finding)]


def _zero_or_one(labels: pd.Series) -> pd.Series:
    values = pd.to_numeric(labels, errors="coerce")
    if (odd := int((~values.isin((0, 1))).sum())) > 0:
        raise ManifestError(f"column {labels.name!r}: {odd} rows are neither 0 nor 1; decide what they are first")
    return values.astype("uint8")


def _plain_view(views: pd.Series) -> pd.Series:
    """ "AP", "PA", "" (unknown) or what was there; "AP Supine" and "AP_ERECT" are AP."""
    upper = views.str.upper()
    plain = upper.str.extract(r"^(AP|PA)\b", expand=False) if len(upper) else upper
    return plain.fillna(upper)
