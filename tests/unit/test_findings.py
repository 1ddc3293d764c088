import numpy as np
import pytest

from training.findings import FINDINGS, NIH_LABELS, UnknownLabel, column, findings_of


def test_the_order_is_the_designs() -> None:
    assert FINDINGS[0] == "Mass"
    assert FINDINGS[3] == "Pneumothorax"
    assert FINDINGS[10] == "Hernia"
    assert len(FINDINGS) == len(set(FINDINGS)) == 11


def test_all_fourteen_nih_labels_lead_to_a_finding() -> None:
    assert len(NIH_LABELS) == 15
    assert set(NIH_LABELS.values()) == {*FINDINGS, None}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("No Finding", []),
        ("Nodule", ["Mass"]),
        ("Mass|Nodule", ["Mass"]),
        ("Infiltration|Pneumonia|Hernia", ["Consolidation", "Hernia"]),
        ("Pleural_Thickening|Effusion", ["Effusion", "Pleural_Thickening"]),
    ],
)
def test_nih_labels_are_merged_into_findings(labels: str, expected: list[str]) -> None:
    present = findings_of(labels)
    assert present.dtype == np.uint8
    assert [finding for finding, one in zip(FINDINGS, present, strict=True) if one] == expected


@pytest.mark.parametrize("labels", ["", "mass", "Mass|", "Fracture"])
def test_a_word_that_nih_never_used_is_refused(labels: str) -> None:
    with pytest.raises(UnknownLabel):
        findings_of(labels)


def test_a_finding_is_a_lower_case_column() -> None:
    assert [column(finding) for finding in FINDINGS][8] == "pleural_thickening"
