"""A network's probabilities judged: beside the baselines, with intervals, in slices, and against what needs no film.

evaluate.csv      slice, films, model, finding, metric, value, low, high
added.csv         per finding, what the network adds to view, age and sex
predictions.csv   image, and per finding the calibrated probability (of a checkpoint; a crossfit has out_of_fold.csv)
rankings.png      ROC, and precision against recall
reliability.png   observed shares against predicted probabilities
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from training import metrics, plots
from training.checkpoint import Checkpoint, build, load_checkpoint
from training.crossfit import OUT_OF_FOLD, deal, predict_logits
from training.imaging.preprocessing import Greys
from training.manifest import UNKNOWN, findings_in, prevalence
from training.prepared import Prepared

Array = NDArray[np.floating]

PREDICTIONS: Final = "predictions.csv"
DECIMALS: Final = 4
SEED: Final = 2026
_FOLDS: Final = 5


def judge_checkpoint(
    path: Path, prepared: Prepared, folder: Path, *, split: str = "test", adjudicated: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The figures of a checkpoint on one part of the split; the baselines are fitted on "train".

    Raises the CheckpointError that fits, also when its findings are not the prepared set's.
    """
    checkpoint = load_checkpoint(path, findings=prepared.findings)
    films = prepared.manifest[prepared.manifest["split"] == split]
    train = prepared.manifest[prepared.manifest["split"] == "train"]
    probabilities = checkpoint.calibration.probabilities(predict_logits(checkpoint, prepared, split=split))
    cuts = [checkpoint.thresholds.get(finding, {}).get("sensitivity_90", 0.5) for finding in prepared.findings]
    models = {"network": probabilities, **metrics.baselines(train, films)}
    _write_predictions(films["image"], probabilities, checkpoint.findings, folder)
    return judge(films, models, folder, thresholds=cuts, adjudicated=adjudicated)


def predictions(checkpoint: Checkpoint, inputs: Greys, names: Sequence[str], folder: Path) -> Path:
    """Write predictions.csv for inputs (N, size, size) of these names; its path."""
    with torch.inference_mode():
        logits = build(checkpoint)(checkpoint.preprocessing.tensor(inputs)).numpy()
    return _write_predictions(names, checkpoint.calibration.probabilities(logits), checkpoint.findings, folder)


def _write_predictions(
    names: Sequence[str] | pd.Series, probabilities: Array, findings: Sequence[str], folder: Path
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(probabilities, columns=list(findings)).round(DECIMALS)
    table.insert(0, "image", list(names))
    table.to_csv(folder / PREDICTIONS, index=False)
    return folder / PREDICTIONS


def judge_crossfit(prepared: Prepared, crossfit: Path, folder: Path) -> pd.DataFrame:
    """A recipe's figures by its out-of-fold probabilities; the baselines never saw the fold they speak of either."""
    judged = pd.read_csv(crossfit / OUT_OF_FOLD, dtype={"image": str}).set_index("image")
    films = prepared.manifest
    fold = judged.loc[films["image"], "fold"].to_numpy()
    probabilities = judged.loc[films["image"], list(prepared.findings)].to_numpy()
    pooled = metrics.baselines(films, films)
    everywhere = _log_odds(prevalence(films[list(prepared.findings)]))  # (F,)
    for number in np.unique(fold):
        here = fold == number
        baseline = metrics.baselines(films[~here], films[here])
        # Where a fold holds more cases the others hold fewer; taken for what it says, that would rank folds backwards.
        fairly = _log_odds(baseline["view_age_sex"]) - _log_odds(baseline["prevalence"]) + everywhere
        pooled["view_age_sex"][here] = expit(fairly)
    return judge(films, {"network": probabilities, **pooled}, folder)


def judge(
    films: pd.DataFrame,
    models: dict[str, Array],
    folder: Path,
    *,
    thresholds: float | Sequence[float] = 0.5,
    adjudicated: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Write and return the figures of "network" and its baselines, probabilities (N, F) each."""
    folder.mkdir(parents=True, exist_ok=True)
    findings = findings_in(films)
    rng = np.random.default_rng(SEED)
    table = metrics.report(films, models, rng=rng, thresholds=thresholds, adjudicated=adjudicated)
    table.to_csv(folder / "evaluate.csv", index=False)
    added(films, models["network"], baseline=models["view_age_sex"], rng=rng).to_csv(folder / "added.csv", index=False)
    for draw in (plots.rankings, plots.reliability):
        plots.save(draw(films[list(findings)], models["network"], findings=findings), folder / f"{draw.__name__}.png")
    return table


def added(
    films: pd.DataFrame, network: Array, *, baseline: Array, rng: np.random.Generator, replicates: int = 1000
) -> pd.DataFrame:
    """finding, without, both, gain, low, high: AUROCs of view, age and sex without the network's word and with it.

    network, baseline: probabilities (N, F). "Both" is a logistic regression on the two log odds, fitted on four fifths
    of these patients and asked about the fifth. The 95 % interval of the gain is a bootstrap over patients. A last row,
    "macro", is the mean over findings.
    """
    findings = list(findings_in(films))
    truth = films[findings].to_numpy()
    fold = deal(films, folds=_FOLDS, seed=int(rng.integers(2**31)))
    both = np.stack([_combined(truth[:, k], baseline[:, k], network[:, k], fold) for k in range(len(findings))], axis=1)
    draws = metrics.patient_draws(films["patient_id"], rng=rng, replicates=replicates)
    drawn = np.concatenate([_aurocs(truth, both, each) - _aurocs(truth, baseline, each) for each in draws])  # (R, F)
    everyone = np.ones((1, len(films)), dtype=np.float32)
    without, together = (_aurocs(truth, each, everyone)[0] for each in (baseline, both))
    table = pd.DataFrame({"finding": findings, "without": without, "both": together, "gain": together - without})
    table[["low", "high"]] = np.nanquantile(drawn, (0.025, 0.975), axis=0).T
    known = drawn[np.isfinite(drawn).any(axis=1)]
    low, high = np.quantile(np.nanmean(known, axis=1), (0.025, 0.975))
    macro = [float(column) for column in table[["without", "both", "gain"]].mean()]
    table.loc[len(table)] = ["macro", *macro, low, high]
    return table


def _combined(truth: NDArray[np.uint8], one: Array, other: Array, fold: NDArray[np.int64]) -> Array:
    """Outputs (N,) of a logistic regression on two log odds for each fold, fitted on the others."""
    odds = np.stack([_log_odds(one), _log_odds(other)], axis=1)  # (N, 2)
    probabilities = one.astype(float).copy()
    for number in np.unique(fold):
        here = fold == number
        others = ~here & (truth != UNKNOWN)
        if len(np.unique(truth[others])) == 2:
            probabilities[here] = LogisticRegression().fit(odds[others], truth[others]).predict_proba(odds[here])[:, 1]
    return probabilities


def _aurocs(truth: NDArray[np.uint8], probabilities: Array, weights: Array) -> Array:
    """AUROC (R, F) in draws that count the films (R, N) times; NaN without both kinds of films."""
    columns = zip(truth.T, probabilities.T, strict=True)
    return np.stack([metrics.weighted_ranking(labels, scores, weights)[0] for labels, scores in columns], axis=1)


def _log_odds(probabilities: Array) -> Array:
    return np.asarray(logit(np.clip(probabilities.astype(float), 1e-6, 1 - 1e-6)))
