"""NIH's tables: both shapes of the header, the counts of the real one, the official split, the second readers."""

from pathlib import Path

import pytest

from training.findings import FINDINGS
from training.nih import is_nih, read_adjudicated, read_nih

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = (
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143",
    "00000002_000.png,Nodule|Pneumonia,0,2,414,F,AP,2500,2048,0.168,0.168",
    "00000003_000.png,No Finding,3,3,060Y,F,PA,2500,2048,0.168,0.168",
)


def table(folder: Path, *, header_end: str, row_end: str) -> Path:
    path = folder / "Data_Entry_2017.csv"
    path.write_text("\n".join([HEADER + header_end, *(row + row_end for row in ROWS)]) + "\n")
    return path


@pytest.fixture(scope="module")
def tables(shared: Path) -> Path:
    return shared / "data" / "nih_tables"


@pytest.mark.parametrize(("header_end", "row_end"), [("", ""), (",", ","), (",", "")], ids=["v2020", "2017", "mixed"])
def test_both_shapes_of_the_header_read_alike(tmp_path: Path, header_end: str, row_end: str) -> None:
    manifest = read_nih(table(tmp_path, header_end=header_end, row_end=row_end))
    assert manifest["image"].tolist() == ["00000001_000.png", "00000002_000.png", "00000003_000.png"]
    assert manifest["patient_id"].tolist() == ["1", "2", "3"]
    assert manifest["age_years"].tolist() == [58, 414, 60]
    assert manifest["view_position"].tolist() == ["PA", "AP", "PA"]
    assert manifest["sex"].tolist() == ["M", "F", "F"]


def test_labels_merge_into_the_eleven_findings(tmp_path: Path) -> None:
    manifest = read_nih(table(tmp_path, header_end="", row_end=""))
    carried = [[finding for finding in FINDINGS if row[finding]] for _, row in manifest.iterrows()]
    assert carried == [["Emphysema", "Cardiomegaly"], ["Mass", "Consolidation"], []]


def test_follow_up_number_never_reaches_the_manifest(tmp_path: Path) -> None:
    columns = read_nih(table(tmp_path, header_end="", row_end="")).columns
    assert list(columns) == ["image", "patient_id", "age_years", "sex", "view_position", "split", "source", *FINDINGS]


def test_a_lateral_is_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, header_end="", row_end="")
    path.write_text(path.read_text() + "00000004_000.png,Mass,0,4,50,M,LL,2500,2048,0.168,0.168\n")
    assert len(read_nih(path)) == 3


def test_nihs_table_is_known_by_its_header(tmp_path: Path) -> None:
    other = tmp_path / "labels.csv"
    other.write_text("path,patient_id,view,Mass\na.png,1,PA,0\n")
    assert is_nih(table(tmp_path, header_end=",", row_end=","))
    assert not is_nih(other)


def test_the_real_table_holds_the_published_counts(tables: Path) -> None:
    manifest = read_nih(tables / "Data_Entry_2017_v2020.csv.gz", lists=tables)
    assert len(manifest) == 112_120
    assert manifest["patient_id"].nunique() == 30_805
    assert manifest["view_position"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    assert manifest[list(FINDINGS)].sum().to_dict() == {
        "Mass": 11_207,
        "Consolidation": 24_084,
        "Atelectasis": 11_559,
        "Pneumothorax": 5_302,
        "Edema": 2_303,
        "Emphysema": 2_516,
        "Fibrosis": 1_686,
        "Effusion": 13_317,
        "Pleural_Thickening": 3_385,
        "Cardiomegaly": 2_776,
        "Hernia": 227,
    }
    assert (~manifest[list(FINDINGS)].any(axis=1)).sum() == 60_361
    assert manifest["split"].value_counts().to_dict() == {"train_val": 86_524, "test": 25_596}


def test_adjudicated_labels_stand_for_three_findings(tables: Path) -> None:
    labels = read_adjudicated(tables / "google2019_nih-chest-xray-labels.csv.gz")
    assert len(labels) == 4_376
    assert labels[["Mass", "Consolidation", "Pneumothorax"]].sum().to_dict() == {
        "Mass": 605, "Consolidation": 2_166, "Pneumothorax": 238,
    }  # fmt: skip
