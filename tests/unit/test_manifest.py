"""Any CSV of films becomes a manifest, or says what is missing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training import manifest


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "films.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_with_its_own_names_becomes_a_manifest(tmp_path: Path) -> None:
    table = manifest.read_rows(
        csv(
            tmp_path,
            "Path,Patient,Age,Gender,View,Effusion,Hernia",
            "a/1.dcm,x7,061Y,female,AP Supine,1,0",
            "a/2.png,x7,61,m,pa,0,1.0",
        )
    )
    assert table["image"].tolist() == ["a/1.dcm", "a/2.png"]
    assert table["patient_id"].tolist() == ["x7", "x7"]
    assert table["age_years"].tolist() == [61, 61]
    assert table["sex"].tolist() == ["F", "M"]
    assert table["view_position"].tolist() == ["AP", "PA"]
    assert manifest.findings_in(table) == ("Effusion", "Hernia")
    assert table[["Effusion", "Hernia"]].to_numpy().tolist() == [[1, 0], [0, 1]]


def test_nih_label_columns_merge(tmp_path: Path) -> None:
    table = manifest.read_rows(
        csv(tmp_path, "file,patient_id,view,Mass,Nodule,Pneumonia", "1.png,1,PA,0,1,0", "2.png,2,PA,0,0,1")
    )
    assert table[["Mass", "Consolidation"]].to_numpy().tolist() == [[1, 0], [0, 1]]


def test_laterals_are_left_out_and_unknown_views_kept_only_on_request(tmp_path: Path) -> None:
    path = csv(tmp_path, "image,patient_id,view,Mass", "1.png,1,PA,0", "2.png,1,L,0", "3.png,1,,0", "4.png,1,LL,1")
    rows = manifest.read_rows(path)
    assert manifest.frontal(rows)["image"].tolist() == ["1.png"]
    assert manifest.frontal(rows, keep_unknown=True)["image"].tolist() == ["1.png", "3.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,view,Mass", "1.png,PA,0"], "no column for patient_id"),
        (["image,patient_id,view", "1.png,1,PA"], "no column names a finding"),
        (["image,patient_id,view,Mass", "1.png,1,PA,0", "1.png,1,AP,0"], "1 rows name an image that another"),
        (["image,patient_id,view,Mass", "1.png,,PA,0"], "1 rows name no patient"),
        (["image,patient_id,view,Mass", "1.png,1,PA,-1"], "column 'Mass': 1 rows are neither 0 nor 1"),
        (["image,patient_id,view,Mass", "1.png,1,PA,"], "column 'Mass': 1 rows are neither 0 nor 1"),
    ],
)
def test_a_table_that_says_too_little_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(manifest.ManifestError, match=message):
        manifest.read_rows(csv(tmp_path, *lines))


def test_ages_in_dicoms_units_are_years() -> None:
    ages = manifest.years(pd.Series(["058Y", "006M", "014D", "52", " 7 ", "", "old"]))
    np.testing.assert_allclose(ages, [58, 0.5, 14 / 365.25, 52, 7, np.nan, np.nan])


def test_the_real_films_become_a_manifest(shared: Path) -> None:
    rows = manifest.read_rows(shared / "data" / "nih_films" / "labels.csv")
    films = manifest.frontal(rows, keep_unknown=True)
    assert len(films) == 1_946
    assert films["patient_id"].nunique() == 1_656
    assert films["view_position"].value_counts().to_dict() == {"PA": 1_271, "AP": 591, "": 84}
    assert films["split"].value_counts().to_dict() == {"train_val": 1_724, "test": 222}
    assert films["source"].value_counts().head(2).to_dict() == {
        "muhammedtalo+COVID-19": 744, "austinauyeung+covid-classifier": 709,
    }  # fmt: skip
    assert films[["Consolidation", "Pneumothorax", "Hernia"]].sum().tolist() == [602, 40, 26]
