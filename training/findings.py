"""The ordered vocabulary of findings, and how the 14 labels of NIH ChestX-ray14 become these 11.

The order is part of every checkpoint and of every array whose last axis is "findings"; never sort it.
"""

import numpy as np
from numpy.typing import NDArray

FINDINGS: tuple[str, ...] = (
    "Mass",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Hernia",
)

NIH_LABELS: dict[str, str | None] = {
    **{finding: finding for finding in FINDINGS},
    "Nodule": "Mass",
    "Infiltration": "Consolidation",
    "Pneumonia": "Consolidation",
    "No Finding": None,
}
"""NIH label -> finding. Zhou (2020) merges what one film can hardly tell apart."""

AGE_BANDS: dict[str, int] = {"0-17": 0, "18-39": 18, "40-59": 40, "60-79": 60, "80+": 80}
"""Name -> where the band begins, in years: the groups in which films are counted and judged."""


class UnknownLabel(ValueError):
    """A label that is none of NIH's fifteen words."""


def column(finding: str) -> str:
    """The finding's SQL column: lower case, as in ``film_score.pleural_thickening``."""
    return finding.lower()


def findings_of(nih_labels: str) -> NDArray[np.uint8]:
    """NIH's "Finding Labels" cell -> uint8 (11,), 1 where present.

    ``"Nodule|Pneumonia"`` sets Mass and Consolidation. Raises UnknownLabel for any other word.
    """
    present = np.zeros(len(FINDINGS), dtype=np.uint8)
    for label in nih_labels.split("|"):
        if label not in NIH_LABELS:
            raise UnknownLabel(f"{label!r} is not a label of NIH ChestX-ray14")
        finding = NIH_LABELS[label]
        if finding is not None:
            present[FINDINGS.index(finding)] = 1
    return present
