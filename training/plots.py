"""The pictures of a training: what was learned from, how it went, and how far the probabilities can be believed.

Every function returns a matplotlib Figure of its own and touches no global state; `save` writes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from training.findings import FINDINGS
from training.manifest import UNKNOWN, findings_in
from training.metrics import evaluate
from training.pointing import wilson

# Okabe and Ito's colours, which colour-blind readers tell apart: https://jfly.uni-koeln.de/color/
BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
RED: Final = "#D55E00"
GRAY: Final = "#8A8F98"
_FAINT: Final = "#D9DCE1"
_STYLES: Final = tuple((line, marker) for line in ("-", "--", "-.") for marker in ("o", "s", "^", "D"))
"""Two lines that run through the same points are told apart by these, as eleven colours are not."""
_BINS: Final = 10
_NONE: Final = "No_finding"


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG (150 dots per inch), making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def label_distribution(
    before: pd.DataFrame, after: pd.DataFrame, *, names: tuple[str, str] = ("before", "after")
) -> Figure:
    """Films per finding, and without any, in two manifests of films to learn from: before and after sampling."""
    findings = list(findings_in(before))
    rarest_last = [*(before[findings] == 1).sum().sort_values(ascending=False).index, _NONE]
    counts = [_counts(films, findings)[rarest_last] for films in (before, after)]
    figure, axes = _figure(9, 6)
    rows = np.arange(len(rarest_last))
    legend = (f"{names[0]}: {len(before):,} films", f"{names[1]}: {len(after):,} films")
    for offset, count, name, colour in zip((-0.2, 0.2), counts, legend, (_FAINT, BLUE), strict=True):
        bars = axes.barh(rows + offset, count.to_numpy(), height=0.38, color=colour, label=name)
        axes.bar_label(bars, labels=[f"{number:,}" for number in count], padding=3, fontsize=8, color="#333333")
    axes.set_yticks(rows, [_words(name) for name in rarest_last])
    axes.invert_yaxis()
    axes.set_xlabel("films")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.1)
    axes.set_title("Labels of the training films before and after sampling")
    axes.legend(loc="center right", frameon=False)
    return figure


def training_curves(epochs: pd.DataFrame) -> Figure:
    """Loss, the paper's two accuracies beside those of a network that says nothing, and macro AUROC, over the epochs.

    `epochs` is a run's metrics.csv: epoch, train_loss, and "validation/..." with `Evaluation.flat` of those films.
    """
    figure = Figure(figsize=(12, 4.3), layout="constrained")
    loss, accuracy, ranking = figure.subplots(1, 3)
    _lines(loss, epochs, {"train_loss": ("training", GRAY), "validation/loss": ("validation", BLUE)})
    loss.set(title="Loss", ylabel="loss", ylim=(0, None))
    for name, colour in (("binary_accuracy", BLUE), ("exact_match", ORANGE)):  # silence's are dotted
        _lines(accuracy, epochs, {f"validation/{name}/all": (name.replace("_", " "), colour)})
        _level(accuracy, epochs, f"validation/all_zero_{name}/all", colour=colour)
    accuracy.set(title="Accuracies on validation", ylabel="share right", ylim=(0, 1))
    macros = {"auroc/macro": ("macro AUROC", GREEN), "auroc/macro_without_hernia": ("without Hernia", GRAY)}
    _lines(ranking, epochs, {f"validation/{name}": drawn for name, drawn in macros.items()})
    ranking.axhline(0.5, color=_FAINT, linewidth=1)
    ranking.set(title="Ranking on validation", ylabel="AUROC")
    for axes in (loss, accuracy, ranking):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return figure


def false_negatives(epochs: pd.DataFrame) -> Figure:
    """Overlooked findings over the epochs: their number together, and the share overlooked of each finding."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    together, each = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _lines(together, epochs, {"validation/false_negatives/all": ("all findings", RED)})
    together.set(title="False negatives on validation", ylabel="film-finding pairs overlooked", ylim=(0, None))
    named = {f"validation/false_negative_rate/{finding}": finding for finding in FINDINGS}
    colours = colormaps["tab20"](range(len(FINDINGS)))
    _lines(each, epochs, {column: (_words(f), c) for (column, f), c in zip(named.items(), colours, strict=True)})
    each.set(title="False-negative rate of each finding", ylabel="share overlooked", ylim=(-0.02, 1.02))
    each.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def read_sweep(folder: Path) -> dict[float, pd.DataFrame]:
    """The figures of the runs under a sweep's folder, by learning rate, as `learning_rates` takes them."""
    return {float(run.parent.name.removeprefix("rate-")): pd.read_csv(run) for run in folder.glob("rate-*/metrics.csv")}


def learning_rates(runs: Mapping[float, pd.DataFrame]) -> Figure:
    """Training loss over the epochs, a line per learning rate. `runs`: rate -> rows of epoch, train_loss."""
    figure, axes = _figure(8, 4.8)
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(runs)))
    for place, (shade, (rate, epochs)) in enumerate(zip(shades, sorted(runs.items(), reverse=True), strict=True)):
        name = f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-")
        _lines(axes, epochs, {"train_loss": (name, shade)}, style=place)
    axes.set(title="Learning rate and loss", ylabel="training loss")
    losses = pd.concat([epochs["train_loss"] for epochs in runs.values()])
    if losses.max() > 20 * losses.min() > 0:  # a rate that is too high must not press the others flat
        axes.set_yscale("log")
    axes.legend(title="learning rate", frameon=False)
    return figure


def reliability(labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, findings: Sequence[str] = FINDINGS) -> Figure:
    """Per finding: the share of films that had it against the probability they were given, in bins of equal numbers.

    Labels 0, 1 or UNKNOWN, which is passed over, and probabilities, both (N, F). The bars are 95 % Wilson intervals.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    table = evaluate(truth, scores, findings=findings).per_finding
    columns = min(4, len(findings))
    rows = -(-len(findings) // columns)
    figure = Figure(figsize=(3 * columns, 3 * rows + 0.6), layout="constrained")
    figure.suptitle(f"Reliability on {len(truth):,} films: observed against predicted")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, finding, column, answers in zip(grid, findings, scores.T, truth.T, strict=False):
        known = answers != UNKNOWN
        if known.any():
            _reliability_of(axes, answers[known], column[known])
        row = table.loc[finding]
        axes.set_title(f"{_words(finding)}   ECE {row['ece']:.3f}, n+ {row['positives']:.0f}", fontsize=9)
    for axes in grid[len(findings) :]:
        axes.set_axis_off()
    figure.supxlabel("predicted probability")
    figure.supylabel("observed share of films")
    return figure


def rankings(labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, findings: Sequence[str] = FINDINGS) -> Figure:
    """Receiver operating characteristic and precision against recall, a line per finding with films of both kinds.

    Labels 0, 1 or UNKNOWN, which is passed over, and probabilities, both (N, F). The gray line is chance's.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    table = evaluate(truth, scores, findings=findings).per_finding
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color=_FAINT, linewidth=1)
    for place, (finding, colour) in enumerate(zip(findings, colormaps["tab20"](range(len(findings))), strict=True)):
        known = truth[:, place] != UNKNOWN
        answers, given, row = truth[known, place], scores[known, place], table.loc[finding]
        if len(np.unique(answers)) < 2:
            continue
        style: dict[str, Any] = {"color": colour, "linestyle": _STYLES[place % len(_STYLES)][0], "linewidth": 1.4}
        false, true, _ = roc_curve(answers, given)
        roc.plot(false, true, label=f"{_words(finding)}, AUROC {row['auroc']:.3f}", **style)
        right, found, _ = precision_recall_curve(answers, given)
        precision.step(found, right, where="post", label=f"{_words(finding)}, AUPRC {row['auprc']:.3f}", **style)
    roc.set(title="ROC", xlabel="false positive rate", ylabel="sensitivity", box_aspect=1)
    precision.set(title="Precision and recall", xlabel="recall (sensitivity)", ylabel="precision (PPV)", box_aspect=1)
    for axes in (roc, precision):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, fontsize=8)
        _plain(axes)
    return figure


def _reliability_of(axes: Axes, truth: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> None:
    order = np.array_split(np.argsort(probabilities, kind="stable"), _BINS)
    bins = [members for members in order if len(members)]
    means = np.array([probabilities[members].mean() for members in bins])
    share = np.array([truth[members].mean() for members in bins])
    low, high = np.array([wilson(int(truth[members].sum()), len(members)) for members in bins]).T
    low, high = np.minimum(low, share), np.maximum(high, share)  # a bar's ends may not cross its point by rounding
    top = max(float(high.max()), float(means.max())) * 1.05
    axes.plot([0, top], [0, top], color=_FAINT, linewidth=1, zorder=0)
    axes.errorbar(
        means,
        share,
        yerr=(share - low, high - share),
        fmt="o-",
        color=BLUE,
        ecolor=GRAY,
        markersize=3.5,
        linewidth=1.2,
        elinewidth=1,
    )
    axes.set(xlim=(0, top), ylim=(0, top), box_aspect=1)
    axes.locator_params(nbins=4)
    _plain(axes)


def _counts(films: pd.DataFrame, findings: list[str]) -> pd.Series:
    positive = films[findings] == 1
    empty = ~positive.any(axis=1)
    return pd.concat([positive.sum().astype(int), pd.Series({_NONE: int(empty.sum())})])


def _lines(axes: Axes, epochs: pd.DataFrame, columns: Mapping[str, tuple[str, Any]], *, style: int = 0) -> None:
    """One line per column that is there, over the epochs, in styles from this one on; those without the figure are
    passed over."""
    for place, (column, (name, colour)) in enumerate(columns.items(), start=style):
        if column in epochs:
            drawn = epochs[["epoch", column]].dropna()
            line, marker = _STYLES[place % len(_STYLES)]
            axes.plot(
                drawn["epoch"],
                drawn[column],
                linestyle=line,
                marker=marker,
                markersize=3,
                linewidth=1.5,
                color=colour,
                label=name,
            )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:  # else the axis shows twentieths of one epoch
        axes.set_xlim(epochs["epoch"].iloc[0] - 1, epochs["epoch"].iloc[0] + 1)
    _plain(axes)


def _level(axes: Axes, epochs: pd.DataFrame, column: str, *, colour: str) -> None:
    """A dotted line at the figure of a network that says nothing, which does not change."""
    if column in epochs:
        axes.axhline(epochs[column].iloc[-1], color=colour, linewidth=1, linestyle=":", label="... of all zero")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.tick_params(color=GRAY, labelsize=8)


def _words(finding: str) -> str:
    return finding.replace("_", " ").capitalize()
