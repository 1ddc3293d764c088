"""How good the probabilities are: per finding and overall, with intervals, beside baselines, in slices.

Labels are 0, 1 or UNKNOWN (N, F), probabilities in [0, 1] (N, F), columns in the order of `findings`. A film's finding
whose label is unknown has no part in any figure. Where a figure is not defined (an AUROC without positives) it is NaN,
and the macro mean leaves it out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression

from training.findings import AGE_BANDS, FINDINGS
from training.manifest import UNKNOWN, findings_in, prevalence

Array = npt.NDArray[np.floating]

ECE_BINS: Final = 15
"""Equal-width bins of probability (Guo et al., On Calibration of Modern Neural Networks, ICML 2017)."""
RAREST: Final = "Hernia"
"""227 films in NIH: its figures are mostly chance, so every macro mean is also given without it."""
RATES: Final = ("false_negative_rate", "auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "brier", "ece")
WITHIN_SOURCE: Final = "auroc_within_source"
_OVERALL: Final = ("binary_accuracy", "exact_match")
_REPLICATES_AT_ONCE: Final = 100


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of probabilities.

    binary_accuracy  share of film-finding pairs decided right
    exact_match      share of films with every finding decided right
    all_zero_...     the same two for a network that never says anything: both reward silence, so they stand beside
    per_finding      a row per finding: positives, prevalence, false_negatives and RATES, all but the counts in [0, 1]
    """

    films: int
    binary_accuracy: float
    exact_match: float
    all_zero_binary_accuracy: float
    all_zero_exact_match: float
    per_finding: pd.DataFrame

    def macro(self, *, without: Sequence[str] = ()) -> pd.Series:
        """The mean of each rate over the findings for which it is defined."""
        return self.per_finding[list(RATES)].drop(index=list(without), errors="ignore").mean()

    def table(self) -> pd.DataFrame:
        """finding, metric, value: every figure there is; finding is also "all", "macro" and "macro_without_hernia"."""
        overall = {
            "binary_accuracy": self.binary_accuracy,
            "exact_match": self.exact_match,
            "all_zero_binary_accuracy": self.all_zero_binary_accuracy,
            "all_zero_exact_match": self.all_zero_exact_match,
            "false_negatives": self.per_finding["false_negatives"].sum(),
        }
        figures = pd.concat(
            [
                pd.DataFrame(overall, index=["all"]),
                pd.DataFrame({"macro": self.macro(), "macro_without_hernia": self.macro(without=(RAREST,))}).T,
                self.per_finding.astype(float),
            ]
        )
        return figures.rename_axis("finding").melt(ignore_index=False, var_name="metric").dropna().reset_index()

    def flat(self) -> dict[str, float]:
        """Every figure under one name: "exact_match/all", "auroc/Mass", "auroc/macro", "auroc/macro_without_hernia"."""
        table = self.table()
        return dict(zip(table["metric"] + "/" + table["finding"], table["value"].astype(float), strict=True))


def evaluate(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    findings: Sequence[str] = FINDINGS,
    thresholds: npt.ArrayLike = 0.5,
) -> Evaluation:
    """Every figure for these films; a probability at or above its threshold (one, or one per finding) is positive."""
    truth, scores = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)  # (N, F)
    decided = scores >= np.asarray(thresholds, dtype=float)
    once = np.ones((1, len(truth)))
    present, absent = truth == 1, truth == 0
    rates = dict(zip(RATES, weighted_rates(truth, scores, decided.astype(float), once)[0], strict=True))
    counts = {
        "positives": present.sum(axis=0),
        "prevalence": prevalence(truth),
        "false_negatives": (present & ~decided).sum(axis=0),
    }
    right, known = decided == present, present | absent
    named = known.any(axis=1)
    return Evaluation(
        films=len(truth),
        binary_accuracy=float(right[known].mean()),
        exact_match=float((right | ~known)[named].all(axis=1).mean()),
        all_zero_binary_accuracy=float(absent[known].mean()),
        all_zero_exact_match=float((~present)[named].all(axis=1).mean()),
        per_finding=pd.DataFrame(counts | rates, index=pd.Index(findings, name="finding")),
    )


def ratio(part: Array, whole: Array) -> Array:
    """part / whole, NaN where the whole is empty."""
    undefined = np.full(np.shape(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=undefined, where=np.asarray(whole) > 0))


def intervals(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    patients: npt.ArrayLike,
    rng: np.random.Generator,
    findings: Sequence[str] = FINDINGS,
    thresholds: npt.ArrayLike = 0.5,
    replicates: int = 1000,
) -> pd.DataFrame:
    """finding, metric, low, high: the 95 % percentile bootstrap over patients (N,) of every rate in the table."""
    truth, scores = np.asarray(labels, dtype=np.float32), np.asarray(probabilities, dtype=np.float64)
    decided = (scores >= np.asarray(thresholds, dtype=float)).astype(np.float32)
    drawn: list[Array] = []
    for weights in patient_draws(patients, rng=rng, replicates=replicates):
        rates = weighted_rates(truth, scores, decided, weights)  # (R, RATES, F)
        macros = _mean(rates), _mean(rates[:, :, [finding != RAREST for finding in findings]])
        rates = np.concatenate([rates, np.stack(macros, axis=2)], axis=2)
        overall = weighted_overall(truth, decided, weights)
        drawn.append(np.concatenate([rates.reshape(len(weights), -1), overall], axis=1))
    figures = [(metric, finding) for metric in RATES for finding in (*findings, "macro", "macro_without_hernia")]
    figures += [(metric, "all") for metric in _OVERALL]
    columns = pd.MultiIndex.from_tuples(figures, names=["metric", "finding"])
    bounds = pd.DataFrame(np.concatenate(drawn), columns=columns).quantile([0.025, 0.975]).T.dropna()
    return bounds.set_axis(["low", "high"], axis=1).reset_index()


def patient_draws(patients: npt.ArrayLike, *, rng: np.random.Generator, replicates: int) -> Iterator[Array]:
    """The bootstrap: how often each film counts in each draw, float32 (R, N), in portions of the `replicates`.

    Patients (N,), not films, are drawn with replacement, because films of one patient are no independent witnesses. As
    weights and not as films, a thousand draws of 22,000 films cost a few sorts and running sums.
    """
    names, patient = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    for start in range(0, replicates, _REPLICATES_AT_ONCE):
        size = min(_REPLICATES_AT_ONCE, replicates - start)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)  # (R, patients)
        yield times.astype(np.float32)[:, patient]


def weighted_overall(truth: Array, decided: Array, weights: Array) -> Array:
    """Binary accuracy and exact match (R, 2) of N films that count `weights` (R, N) times each."""
    known = truth != UNKNOWN
    right = (decided == truth) & known
    share = np.stack([right.mean(axis=1), (right | ~known).all(axis=1) & known.any(axis=1)], axis=1)  # (N, 2)
    most = np.stack([known.mean(axis=1), known.any(axis=1)], axis=1)
    return ratio(weights @ share.astype(np.float32), weights @ most.astype(np.float32))


def _mean(rates: Array) -> Array:
    """The mean over the last axis of what is defined."""
    return ratio(np.nansum(rates, axis=-1), np.isfinite(rates).sum(axis=-1))


def weighted_rates(truth: Array, scores: Array, decided: Array, weights: Array) -> Array:
    """RATES (R, RATES, F) of N films that count `weights` (R, N) times each, all draws at once."""
    present, known = (truth == 1).astype(weights.dtype), (truth != UNKNOWN).astype(weights.dtype)  # (N, F)
    films, positives = weights @ known, weights @ present  # (R, F)
    flagged, tp = weights @ (known * decided), weights @ (present * decided)  # (R, F)
    fn, fp = positives - tp, flagged - tp
    tn = films - positives - fp
    columns = list(zip(truth.T, scores.T, strict=True))
    ranked = [weighted_ranking(*column, weights) for column in columns]
    rates = {
        "false_negative_rate": ratio(fn, positives),
        "auroc": np.stack([auroc for auroc, _ in ranked], axis=1),
        "auprc": np.stack([auprc for _, auprc in ranked], axis=1),
        "sensitivity": ratio(tp, positives),
        "specificity": ratio(tn, tn + fp),
        "ppv": ratio(tp, flagged),
        "npv": ratio(tn, tn + fn),
        "brier": np.stack([weighted_brier(*column, weights) for column in columns], axis=1),
        "ece": np.stack([weighted_calibration_error(*column, weights) for column in columns], axis=1),
    }
    return np.stack([rates[name] for name in RATES], axis=1)


def weighted_brier(truth: Array, scores: Array, weights: Array) -> Array:
    """Brier score (R,) of one finding, labels and scores (N,), in draws that count films (R, N) times."""
    known = truth != UNKNOWN
    squares = np.where(known, (scores - truth) ** 2, 0).astype(weights.dtype)
    return ratio(weights @ squares, weights @ known.astype(weights.dtype))


def weighted_ranking(truth: Array, scores: Array, weights: Array) -> tuple[Array, Array]:
    """AUROC and average precision (R,) of one finding, labels and scores (N,), in draws that count films (R, N) times.

    Ties count as in scikit-learn; a draw without both kinds of films gives NaN; films of unknown label are passed over.
    Only the positives are visited: each wins against the negatives below it and half of those beside it.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[truth[order] != UNKNOWN]
    positive = order[truth[order] == 1]
    counted, hits = _running_sum(weights, order), _running_sum(weights, positive)  # (R, N + 1), (R, P + 1)
    falling, at = -scores[order], -scores[positive]
    above, beside = (np.searchsorted(falling, at, side=side) for side in ("left", "right"))
    hits_above, hits_beside = (np.searchsorted(at, at, side=side) for side in ("left", "right"))
    positives, negatives = hits[:, -1], counted[:, -1] - hits[:, -1]
    passed = (counted[:, above] - hits[:, hits_above] + counted[:, beside] - hits[:, hits_beside]) / 2
    beaten = np.einsum("rp,rp->r", weights[:, positive], negatives[:, None] - passed, dtype=np.float64)
    precision = hits[:, hits_beside] / np.maximum(counted[:, beside], 1)
    precisions = np.einsum("rp,rp->r", weights[:, positive], precision, dtype=np.float64)
    defined = np.where(negatives > 0, positives, 0)
    return ratio(beaten, defined * negatives), ratio(precisions, defined)


def weighted_ranking_within(truth: Array, scores: Array, weights: Array, groups: Array) -> Array:
    """AUROC (R,) over the pairs of films that stand in one group, `groups` (N,): what knowing the group cannot win."""
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for group in np.unique(groups):
        here = groups == group
        drawn = weights[:, here]
        auroc, _ = weighted_ranking(truth[here], scores[here], drawn)
        beside = drawn @ (truth[here] == 1) * (drawn @ (truth[here] == 0)).astype(float)
        won, pairs = won + np.nan_to_num(auroc) * beside, pairs + beside
    return ratio(won, pairs)


def within_source(
    films: pd.DataFrame, scores: npt.ArrayLike, *, rng: np.random.Generator, replicates: int = 1000
) -> pd.DataFrame:
    """finding, metric, value, low, high: `auroc_within_source` of probabilities (N, F), per finding and macro.

    Films of one source, such as a hospital, are compared with each other alone. Where sources hold different findings
    an AUROC over all films rewards a network that tells the sources apart. Empty where all films have one source.
    """
    findings = list(findings_in(films))
    if "source" not in films or films["source"].nunique() < 2:
        return pd.DataFrame()
    source = films["source"].to_numpy(dtype=str)
    columns = list(zip(films[findings].to_numpy().T, np.asarray(scores, dtype=np.float64).T, strict=True))

    def figures(weights: Array) -> Array:
        aurocs = [weighted_ranking_within(truth, asked, weights, source) for truth, asked in columns]
        each = np.stack(aurocs, axis=1)  # (R, F)
        return np.concatenate([each, _mean(each)[:, None]], axis=1)

    drawn = [figures(each) for each in patient_draws(films["patient_id"], rng=rng, replicates=replicates)]
    table = pd.DataFrame(np.concatenate(drawn), columns=[*findings, "macro"]).quantile([0.025, 0.975]).T
    table = table.set_axis(["low", "high"], axis=1).rename_axis("finding").reset_index()
    return table.assign(metric=WITHIN_SOURCE, value=figures(np.ones((1, len(films)), dtype=np.float32))[0])


def _running_sum(weights: Array, films: npt.NDArray[np.intp]) -> Array:
    """How many films came before each of these: (R, films + 1). float32 counts whole numbers exactly up to 2**24."""
    sums = np.zeros((len(weights), len(films) + 1), dtype=weights.dtype)
    np.cumsum(weights[:, films], axis=1, out=sums[:, 1:])
    return sums


def weighted_calibration_error(truth: Array, scores: Array, weights: Array) -> Array:
    """ECE (R,) of one finding: per bin the gap between probability and label, weighted by the films in the bin."""
    known = truth != UNKNOWN
    bins = np.searchsorted(np.linspace(0, 1, ECE_BINS + 1), scores, side="right") - 1
    gaps = np.zeros((len(scores), ECE_BINS + 1), dtype=weights.dtype)
    gaps[np.arange(len(scores)), bins] = np.where(known, scores - truth, 0)
    return ratio(np.abs(weights @ gaps).sum(axis=1), weights @ known.astype(weights.dtype))


def baselines(train: pd.DataFrame, films: pd.DataFrame) -> dict[str, Array]:
    """Baselines that need no film, as probabilities (N, F): a network is worth what it adds to these.

    all_zero: never anything. prevalence: each finding's share in `train`. view_age_sex: a logistic regression on those
    three, fitted on `train`. Of a finding that no film in `train` has a label for, all three say 0.
    """
    findings = list(findings_in(films))
    shape = (len(films), len(findings))
    fitted, asked = _description(train), _description(films)
    known = [_logistic(fitted, train[finding].to_numpy(), asked) for finding in findings]
    return {
        "all_zero": np.zeros(shape),
        "prevalence": np.broadcast_to(np.nan_to_num(prevalence(train[findings])), shape),
        "view_age_sex": np.stack(known, axis=1),
    }


def _description(films: pd.DataFrame) -> Array:
    """View, age and sex as float (N, 6): AP, PA, M, F, age in units of its spread about 50 years, and its square."""
    age = ((films["age_years"].astype(float) - 50) / 17).fillna(0)
    columns = [films["view_position"] == "AP", films["view_position"] == "PA", films["sex"] == "M", films["sex"] == "F"]
    return np.column_stack([*columns, age, age**2]).astype(float)


def _logistic(fitted: Array, labels: npt.NDArray[np.uint8], asked: Array) -> Array:
    known = labels != UNKNOWN
    if len(np.unique(labels[known])) < 2:  # one class alone leaves nothing to fit
        return np.full(len(asked), float((labels == 1).any()))
    return np.asarray(LogisticRegression(max_iter=1000).fit(fitted[known], labels[known]).predict_proba(asked)[:, 1])


def groups(films: pd.DataFrame) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Attribute, value and films (N,) of every group with films in it: by view, sex, age band, split and source."""
    bands = pd.cut(films["age_years"], [*AGE_BANDS.values(), np.inf], right=False, labels=list(AGE_BANDS))
    attributes = {"view": films["view_position"], "sex": films["sex"], "age_years": bands}
    attributes |= {name: films[name] for name in ("split", "source") if name in films}
    for attribute, values in attributes.items():
        for value in sorted(value for value in values.dropna().unique() if value):
            yield attribute, value, (values == value).to_numpy(dtype=bool)


def slices(films: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and films of every group, such as "view=AP"."""
    for attribute, value, members in groups(films):
        yield f"{attribute}={value}", films[members]


def readjudicated(films: pd.DataFrame, adjudicated: pd.DataFrame) -> pd.DataFrame:
    """The films that were read again, with their new labels as the only ones (see `nih.read_adjudicated`)."""
    described = films.drop(columns=list(findings_in(films)))
    name = described["image"].str.rsplit("/", n=1).str[-1]
    readjudicated_films = described.assign(name=name).join(adjudicated.set_index("image"), on="name", how="inner")
    return readjudicated_films.drop(columns="name")


def report(
    films: pd.DataFrame,
    models: Mapping[str, npt.ArrayLike],
    *,
    rng: np.random.Generator,
    thresholds: npt.ArrayLike = 0.5,
    adjudicated: pd.DataFrame | None = None,
    replicates: int = 1000,
) -> pd.DataFrame:
    """slice, films, model, finding, metric, value, low, high: the network beside its baselines, whole and in slices.

    Where the films have several sources, also `within_source`.

    `models` are probabilities (N, F) for `films`: "network" and, by name, whatever stands beside it (see `baselines`).
    `adjudicated` adds a slice of the films that radiologists read again, measured against their labels. The thresholds
    (one, or one per finding) are the network's; the baselines decide at .5.
    """
    findings = list(findings_in(films))
    scores_of = {name: pd.DataFrame(np.asarray(asked), films.index, findings) for name, asked in models.items()}
    groups = [("all", films), *slices(films)]
    if adjudicated is not None:
        groups.append(("adjudicated", readjudicated(films, adjudicated)))
    half = pd.Series(0.5, index=findings)
    cuts = dict.fromkeys(scores_of, half) | {"network": half * 0 + np.asarray(thresholds)}
    tables = [
        _figures(group, scores, thresholds=cuts[model], rng=rng, replicates=replicates)
        .assign(slice=name, films=len(group), model=model)
        for name, group in groups if len(group) > 0
        for model, scores in scores_of.items()
    ]  # fmt: skip
    tables += [
        within_source(films, scores, rng=rng, replicates=replicates).assign(slice="all", films=len(films), model=model)
        for model, scores in scores_of.items()
    ]
    table = pd.concat([each for each in tables if len(each)])
    return table[["slice", "films", "model", "finding", "metric", "value", "low", "high"]].reset_index(drop=True)


def _figures(
    films: pd.DataFrame, scores: pd.DataFrame, *, thresholds: pd.Series, rng: np.random.Generator, replicates: int
) -> pd.DataFrame:
    """finding, metric, value, low, high of these films, for the findings they have labels for."""
    findings = list(findings_in(films))
    labels, asked, cut = films[findings].to_numpy(), scores.loc[films.index, findings].to_numpy(), thresholds[findings]
    value = evaluate(labels, asked, findings=findings, thresholds=cut).table()
    bounds = intervals(
        labels, asked, patients=films["patient_id"], rng=rng, findings=findings, thresholds=cut, replicates=replicates
    )
    return value.merge(bounds, on=["finding", "metric"], how="left")
