"""NIH ChestX-ray14: its tables, its official split, its second readers, and where it comes from.

Wang et al., ChestX-ray8, CVPR 2017, pp. 3462-3471; images and tables: https://nihcc.app.box.com/v/ChestXray-NIHCC
"""

import zlib
from collections import Counter
from gzip import BadGzipFile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from training.findings import FINDINGS, findings_of
from training.manifest import ManifestError, checked, frontal, read_rows, years

KAGGLE: Final = "nih-chest-xrays/data"
TRAIN_VAL_LIST: Final = "train_val_list.txt"
TEST_LIST: Final = "test_list.txt"

# The header's "OriginalImage[Width,Height]" holds a comma, so it reads as more columns than it means, and the 2017 file
# ends its lines with one more. The first seven columns are the same in both, and the only ones needed.
_COLUMNS: Final = ("image", "labels", "follow_up", "patient_id", "age_years", "sex", "view_position")
_NO_CSV: Final = (
    pd.errors.ParserError,
    pd.errors.EmptyDataError,
    UnicodeDecodeError,
    BadGzipFile,
    EOFError,
    zlib.error,
)
_ADJUDICATED: Final = {"Nodule or mass": "Mass", "Airspace opacity": "Consolidation", "Pneumothorax": "Pneumothorax"}


def read_table(
    table: Path, *, lists: Path | None = None, keep_unknown: bool = False
) -> tuple[pd.DataFrame, Counter[str]]:
    """The manifest of NIH's own table or of anybody else's, and how many of its rows are left out, by their view.

    Raises ManifestError, which names the file, when it is no CSV or does not say what a manifest needs.
    """
    try:
        if is_nih(table):
            return read_nih(table, lists=lists), Counter()  # all its films are AP or PA
        rows = read_rows(table)
    except ManifestError as wrong:
        raise ManifestError(f"{table}: {wrong}") from wrong
    except _NO_CSV as error:
        reason = str(error).partition("\n")[0]
        raise ManifestError(f"{table} is no CSV in UTF-8: {reason or type(error).__name__}") from error
    manifest = frontal(rows, keep_unknown=keep_unknown)
    views = rows.loc[~rows["image"].isin(manifest["image"]), "view_position"]
    return manifest, Counter(f"view {view}" if view else "no view" for view in views)


def is_nih(table: Path) -> bool:
    """Whether a CSV is NIH's own table, by its header."""
    return {"Image Index", "Finding Labels"} <= set(pd.read_csv(table, nrows=0, index_col=False).columns)


def read_nih(table: Path, *, lists: Path | None = None) -> pd.DataFrame:
    """The manifest of Data_Entry_2017.csv or Data_Entry_2017_v2020.csv, also gzipped: AP and PA films, 11 findings.

    `lists` is the folder of train_val_list.txt and test_list.txt; without it `split` is empty. Follow-up # is left out:
    it says how ill a patient is and would be learned instead of the film.
    """
    raw = pd.read_csv(
        table, header=0, names=_COLUMNS, usecols=range(7), index_col=False, dtype="string", keep_default_na=False
    )
    manifest = raw[["image", "patient_id"]].assign(
        age_years=years(raw["age_years"]), sex=raw["sex"], view_position=raw["view_position"], split="", source=""
    )
    if lists is not None:
        manifest["split"] = _official_split(manifest["image"], lists)
    combinations, combination = np.unique(raw["labels"].to_numpy(dtype=str), return_inverse=True)  # 836 of them
    labels = np.stack([findings_of(words) for words in combinations])[combination]  # (N, 11)
    return frontal(checked(pd.concat([manifest, pd.DataFrame(labels, columns=list(FINDINGS))], axis=1)))


def _official_split(images: pd.Series, lists: Path) -> pd.Series:
    """For each image "train_val", "test", or "" when it is in neither list."""
    splits = {
        image: split
        for split, name in (("train_val", TRAIN_VAL_LIST), ("test", TEST_LIST))
        for image in (lists / name).read_text().split()
    }
    return images.map(lambda image: splits.get(image, "")).astype("string")


def read_adjudicated(table: Path) -> pd.DataFrame:
    """The labels that radiologists agreed on for 4,376 NIH films (Majkowska et al., Radiology 2020; 294:421).

    image, and 0/1 columns for the three of our findings they stand for: Mass ("nodule or mass"), Consolidation
    ("airspace opacity", a little wider than NIH's three labels) and Pneumothorax. Fracture is none of ours.
    """
    raw = pd.read_csv(table, index_col=False)
    labels = {finding: (raw[name] == "YES").astype("uint8") for name, finding in _ADJUDICATED.items()}
    return pd.DataFrame({"image": raw["Image Index"], **labels})


def fetch(folder: Path) -> Path:
    """Download the set from Kaggle (42 GB, unpacked by kagglehub) into `folder`, and return where it lies.

    Needs a Kaggle token, as KAGGLE_API_TOKEN or in ~/.kaggle, and room for the download and its contents at once.
    """
    import kagglehub

    return Path(kagglehub.dataset_download(KAGGLE, output_dir=str(folder)))
