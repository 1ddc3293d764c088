"""How good the probabilities are: per finding and overall, with intervals, beside baselines, in slices.

Labels are 0/1 (N, F), probabilities in [0, 1] (N, F), columns in the order of `findings`. Where a figure is not defined
(an AUROC without positives) it is NaN, and the macro mean leaves it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, multilabel_confusion_matrix, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from training.findings import FINDINGS

Array = npt.NDArray[np.float64]

ECE_BINS: Final = 15
"""Equal-width bins of probability (Guo et al., On Calibration of Modern Neural Networks, ICML 2017)."""
RAREST: Final = "Hernia"
"""227 films in NIH: its figures are mostly chance, so every macro mean is also given without it."""
RATES: Final = (
    "false_negative_rate", "auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "brier", "ece",
)
AGE_BANDS_YEARS: Final = (0, 18, 40, 60, 80, 130)


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of probabilities.

    binary_accuracy  share of film-finding pairs decided right
    exact_match      share of films with every finding decided right
    per_finding      a row per finding: positives, prevalence, false_negatives and RATES, all but the counts in [0, 1]
    """

    films: int
    binary_accuracy: float
    exact_match: float
    per_finding: pd.DataFrame

    def macro(self, *, without: Sequence[str] = ()) -> pd.Series:
        """The mean of each rate over the findings for which it is defined."""
        return self.per_finding[list(RATES)].drop(index=list(without), errors="ignore").mean()

    def flat(self) -> dict[str, float]:
        """Every figure under one name: "exact_match", "auroc/Mass", "auroc/macro", "auroc/macro_without_hernia"."""
        figures = {"binary_accuracy": self.binary_accuracy, "exact_match": self.exact_match,
                   "false_negatives/all": float(self.per_finding["false_negatives"].sum())}
        for name, row in _with_macros(self).iterrows():
            figures |= {f"{metric}/{name}": float(value) for metric, value in row.dropna().items()}
        return figures


def evaluate(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    findings: Sequence[str] = FINDINGS,
    thresholds: npt.ArrayLike = 0.5,
) -> Evaluation:
    """Every figure for these films; a probability at or above its threshold (one, or one per finding) is positive."""
    truth, scores = np.asarray(labels, dtype=int), np.asarray(probabilities, dtype=float)  # (N, F)
    decided = (scores >= np.asarray(thresholds, dtype=float)).astype(int)
    (tn, fp), (fn, tp) = multilabel_confusion_matrix(truth, decided).transpose(1, 2, 0)  # each (F,)
    per_finding = pd.DataFrame(
        {
            "positives": truth.sum(axis=0),
            "prevalence": truth.mean(axis=0),
            "false_negatives": fn,
            "false_negative_rate": _ratio(fn, fn + tp),
            "auroc": [_ranking(roc_auc_score, truth[:, k], scores[:, k]) for k in range(len(findings))],
            "auprc": [_ranking(average_precision_score, truth[:, k], scores[:, k]) for k in range(len(findings))],
            "sensitivity": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "ppv": _ratio(tp, tp + fp),
            "npv": _ratio(tn, tn + fn),
            "brier": ((scores - truth) ** 2).mean(axis=0),
            "ece": [_calibration_error(truth[:, k], scores[:, k]) for k in range(len(findings))],
        },
        index=pd.Index(findings, name="finding"),
    )
    right = decided == truth
    return Evaluation(len(truth), float(right.mean()), float(right.all(axis=1).mean()), per_finding)


def _ranking(metric, truth: np.ndarray, scores: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    return float(metric(truth, scores)) if 0 < truth.sum() < len(truth) else float("nan")


def _calibration_error(truth: np.ndarray, scores: np.ndarray) -> float:
    return float(binary_calibration_error(*map(torch.tensor, (scores, truth)), n_bins=ECE_BINS))


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Array:
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _with_macros(evaluation: Evaluation) -> pd.DataFrame:
    macros = pd.DataFrame({"macro": evaluation.macro(), "macro_without_hernia": evaluation.macro(without=(RAREST,))}).T
    return pd.concat([evaluation.per_finding.astype(float), macros])
