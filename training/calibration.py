"""From logits to probabilities that mean what they say, and the cuts at which a finding is called.

Everything here is fitted on validation films at their natural prevalence, never on an undersampled set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from training.checkpoint import Calibration, Header
from training.manifest import UNKNOWN

Array = NDArray[np.floating]

ISOTONIC_FROM_POSITIVES: Final = 1000
FLATTEST_SLOPE: Final = 0.05
"""A finding whose logits say nothing on validation, or the opposite, keeps its films in order and says little."""
REFERENCE_LEVELS: Final = tuple(level / 100 for level in range(101))


def fit_calibration(
    logits: Array,
    labels: NDArray[np.integer],
    *,
    shift: Sequence[float],
    isotonic_from_positives: int = ISOTONIC_FROM_POSITIVES,
) -> Calibration:
    """Take back the loss's shift (F,), then fit each finding of logits and labels (N, F) by itself, where it is known.

    Platt's two numbers each; a rising table instead for findings with at least `isotonic_from_positives` positives
    and as many negatives.
    """
    unshifted = np.asarray(logits, dtype=np.float64) - np.asarray(shift)  # (N, F)
    known = [truth != UNKNOWN for truth in labels.T]
    columns = [(logits[here], truth[here]) for logits, truth, here in zip(unshifted.T, labels.T, known, strict=True)]
    lines = [platt(*column) for column in columns]
    tables = {
        k: isotonic(scores, truth)
        for k, (scores, truth) in enumerate(columns)
        if min(truth.sum(), (1 - truth).sum()) >= isotonic_from_positives
    }
    slopes, intercepts = zip(*lines, strict=True)
    return Calibration(tuple(shift), slopes, intercepts, tables)


def platt(logits: Array, labels: NDArray[np.integer]) -> tuple[float, float]:
    """Slope and intercept of a sigmoid for logits and 0/1 labels (N,).

    Platt (1999) aims at (P + 1) / (P + 2) and 1 / (N + 2) rather than 1 and 0, so that few positives do not make it
    sure of itself; each film therefore enters twice, as a positive and as a negative, with those weights. Without films
    the logits stand as they are.
    """
    if not len(labels):
        return 1.0, 0.0
    positives, negatives = int(labels.sum()), int((1 - labels).sum())
    aim = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    twice = np.concatenate([logits, logits])[:, None]
    classes, weights = np.repeat([1, 0], len(logits)), np.concatenate([aim, 1 - aim])
    line = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(twice, classes, sample_weight=weights)
    slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
    if slope >= FLATTEST_SLOPE:
        return slope, intercept
    return FLATTEST_SLOPE, logit(aim.mean()) - FLATTEST_SLOPE * float(logits.mean())


def isotonic(logits: Array, labels: NDArray[np.integer]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A rising table (logits, probabilities) that fits logits and 0/1 labels (N,); flat beyond both ends."""
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels)
    return tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist())


def at_site(calibration: Calibration, *, fitted: Sequence[float], site: Sequence[float]) -> Calibration:
    """The same calibration for a site with other prevalences: log odds move by logit(site) - logit(fitted).

    fitted, site: prevalences (F,) in (0, 1) of the films it was fitted on, and of the site's. This holds when findings
    look the same at both and only come more or less often.
    """
    moved = [logit(there) - logit(here) for here, there in zip(fitted, site, strict=True)]
    intercepts = tuple(intercept + by for intercept, by in zip(calibration.intercept, moved, strict=True))
    tables = {
        k: (knots, tuple(_moved(height, moved[k]) for height in heights))
        for k, (knots, heights) in calibration.isotonic.items()
    }
    return Calibration(calibration.shift, calibration.slope, intercepts, tables)


def header_at_site(header: Header, site: Mapping[str, float]) -> Header:
    """A checkpoint's header for a site whose prevalences of some findings are known, each in (0, 1).

    Thresholds move with the probabilities, so that they flag the same films; the reference, against which drift is
    judged, moves too. Raises KeyError for a finding that the checkpoint does not score, ValueError for a prevalence
    outside (0, 1) or a checkpoint that does not say what it was calibrated on.
    """
    fitted = _fitted_prevalences(header)
    if unknown := set(site) - set(header.findings):
        raise KeyError(f"the checkpoint does not score {', '.join(sorted(unknown))}")
    if not all(0 < share < 1 for share in (*site.values(), *fitted.values())):
        raise ValueError("a prevalence lies between 0 and 1, and so must the one that the checkpoint was calibrated at")
    wanted = {finding: site.get(finding, fitted[finding]) for finding in header.findings}
    by = {finding: logit(wanted[finding]) - logit(fitted[finding]) for finding in header.findings}
    quantiles = header.reference["probabilities"]
    return replace(
        header,
        calibration=at_site(header.calibration, fitted=list(fitted.values()), site=list(wanted.values())),
        thresholds={f: {n: _moved(cut, by[f]) for n, cut in cuts.items()} for f, cuts in header.thresholds.items()},
        reference={
            **header.reference,
            "probabilities": {f: [_moved(height, by[f]) for height in heights] for f, heights in quantiles.items()},
        },
        training={**header.training, "site_prevalence": dict(site)},
    )


def _fitted_prevalences(header: Header) -> dict[str, float]:
    """Of the films that a checkpoint was calibrated on: validation, or all of them where it was crossfitted."""
    films, positives = header.training.get("films", {}), header.training.get("positives", {})
    split = "validation" if films.get("validation") else "train"
    if not films.get(split):
        raise ValueError("the checkpoint does not say on how many films it was calibrated")
    known = header.training.get("known", {}).get(split) or dict.fromkeys(header.findings, films[split])
    # A finding that no film had a label for is as one that none had: a prevalence of 0, which cannot be moved.
    return {finding: positives[split][finding] / max(1, known[finding]) for finding in header.findings}


def thresholds(
    probabilities: Array, labels: NDArray[np.integer], *, findings: Sequence[str]
) -> dict[str, dict[str, float]]:
    """finding -> {"sensitivity_90", "flag_10"} for probabilities and labels (N, F); a film at the cut is flagged.

    sensitivity_90: the highest cut that still flags 90 % of the positives; a finding without positives has none.
    flag_10: the cut that flags 10 % of all films, whatever they hold.
    """
    cuts: dict[str, dict[str, float]] = {}
    for finding, scores, truth in zip(findings, probabilities.T, labels.T, strict=True):
        cuts[finding] = {"flag_10": _cut(scores, 0.1)}
        if (truth == 1).any():
            cuts[finding]["sensitivity_90"] = _cut(scores[truth == 1], 0.9)
    return cuts


def reference(probabilities: Array, *, findings: Sequence[str]) -> dict[str, Any]:
    """The checkpoint's `reference`, to see drift by: 101 quantiles of each finding of probabilities (N, F)."""
    quantiles = np.quantile(probabilities, REFERENCE_LEVELS, axis=0).T  # (F, 101)
    columns = {finding: values.astype(float).tolist() for finding, values in zip(findings, quantiles, strict=True)}
    return {"films": len(probabilities), "levels": list(REFERENCE_LEVELS), "probabilities": columns}


def _cut(scores: Array, share: float) -> float:
    """The score of the film that completes the highest `share` of them."""
    return float(np.sort(scores)[::-1][max(0, int(np.ceil(share * len(scores) - 1e-9)) - 1)])


def _moved(probability: float, by: float) -> float:
    return probability if probability in (0, 1) else float(expit(logit(probability) + by))
