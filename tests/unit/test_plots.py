"""The pictures show the figures they were given."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.support.values import present
from training import plots
from training.findings import FINDINGS


def films(counts: dict[str, int]) -> pd.DataFrame:
    """Films of one finding each; "" are films without any."""
    carried = [finding for finding, count in counts.items() for _ in range(count)]
    return pd.DataFrame({name: [int(name == finding) for finding in carried] for name in FINDINGS})


@pytest.fixture
def epochs() -> pd.DataFrame:
    epoch = np.arange(1, 6)
    figures = {
        "binary_accuracy/all": 0.6 + epoch / 50, "exact_match/all": epoch / 50,
        "all_zero_binary_accuracy/all": 0.9, "all_zero_exact_match/all": 0.5,
        "auroc/macro": 0.5 + epoch / 20, "auroc/macro_without_hernia": 0.5 + epoch / 25,
        "false_negatives/all": 100 - epoch, "false_negative_rate/Mass": 1 / epoch, "loss": 1 / epoch,
    }  # fmt: skip
    validation = pd.DataFrame({f"validation/{name}": values for name, values in figures.items()}, index=epoch)
    return validation.assign(epoch=epoch, train_loss=2 / epoch)


def points(line: Line2D) -> NDArray[np.float64]:
    """The x and the y of a line's points."""
    return np.asarray(line.get_data(), dtype=float)


def lines(figure: Figure) -> dict[str, list[float]]:
    return {str(line.get_label()): points(line)[1].tolist() for axes in figure.axes for line in axes.get_lines()}


def test_bars_stand_beside_their_findings_even_where_sampling_changes_their_order() -> None:
    before = films({"Consolidation": 9, "Mass": 5, "Hernia": 2, "": 20})
    after = films({"Consolidation": 1, "Mass": 2, "Hernia": 2})
    axes = plots.label_distribution(before, after).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    shown = [dict(zip(names, [bar.get_width() for bar in bars], strict=True)) for bars in axes.containers]
    assert names[:3] == ["Consolidation", "Mass", "Hernia"]
    assert [shown[0][name] for name in ("Consolidation", "Mass", "Hernia", "No finding")] == [9, 5, 2, 20]
    assert [shown[1][name] for name in ("Consolidation", "Mass", "Hernia", "No finding")] == [1, 2, 2, 0]


def test_the_accuracies_stand_beside_those_of_silence(epochs: pd.DataFrame) -> None:
    drawn = lines(plots.training_curves(epochs))
    assert drawn["exact match"] == pytest.approx(list(epochs["validation/exact_match/all"]))
    assert drawn["training"] == pytest.approx(list(epochs["train_loss"]))
    assert set(drawn["... of all zero"]) == {0.5}
    assert drawn["macro AUROC"][-1] == pytest.approx(0.75)


def test_false_negatives_are_drawn_together_and_for_each_finding(epochs: pd.DataFrame) -> None:
    drawn = lines(plots.false_negatives(epochs))
    assert drawn["all findings"] == [99, 98, 97, 96, 95]
    assert drawn["Mass"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


def test_lines_that_run_through_the_same_points_differ_in_more_than_colour(epochs: pd.DataFrame) -> None:
    level = {f"validation/false_negative_rate/{finding}": 1.0 for finding in FINDINGS}
    figure = plots.false_negatives(epochs.assign(**level))
    styles = {(line.get_linestyle(), line.get_marker()) for line in figure.axes[1].get_lines()}
    assert len(styles) == len(FINDINGS)


def test_one_epoch_stands_in_the_middle_of_whole_epochs(epochs: pd.DataFrame) -> None:
    figure = plots.training_curves(epochs.head(1))
    assert [tuple(axes.get_xlim()) for axes in figure.axes] == [(0, 2)] * 3
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]


def test_the_curves_name_their_areas_and_leave_out_what_nobody_has() -> None:
    draw = np.random.default_rng(0)
    labels = (draw.random((200, 3)) < 0.3).astype(int)
    labels[:, 2] = 0
    probabilities = np.clip(0.4 * labels + draw.random((200, 3)) * 0.6, 0, 1)
    roc, precision = plots.rankings(labels, probabilities, findings=("Mass", "Edema", "Hernia")).axes
    names = [text.get_text() for text in present(roc.get_legend()).get_texts()]
    assert names == [
        f"{f}, AUROC {roc_auc_score(labels[:, k], probabilities[:, k]):.3f}" for k, f in enumerate(("Mass", "Edema"))
    ]
    assert present(precision.get_legend()).get_texts()[0].get_text().startswith("Mass, AUPRC ")
    x, y = points(roc.get_lines()[1])
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels[:, 0], probabilities[:, 0]))


def test_a_line_per_learning_rate_highest_first(epochs: pd.DataFrame, tmp_path: Path) -> None:
    for rate in (1e-4, 1e-2):
        (tmp_path / f"rate-{rate:g}").mkdir()
        epochs.assign(train_loss=rate).to_csv(tmp_path / f"rate-{rate:g}" / "metrics.csv", index=False)
    drawn = lines(plots.learning_rates(plots.read_sweep(tmp_path)))
    assert {name: values[0] for name, values in drawn.items()} == {"1e-2": 1e-2, "1e-4": 1e-4}
    assert list(drawn) == ["1e-2", "1e-4"]


def test_a_calibrated_network_lies_on_the_diagonal() -> None:
    probabilities = np.random.default_rng(0).random((20_000, 2))
    seen = (np.random.default_rng(1).random((20_000, 2)) < probabilities).astype(int)
    figure = plots.reliability(seen, probabilities, findings=("Mass", "Hernia"))
    assert "ECE 0.0" in figure.axes[0].get_title()
    x, y = points(figure.axes[0].get_lines()[1])
    assert np.abs(x - y).max() < 0.05


def test_wilsons_interval_is_the_published_one() -> None:
    probabilities, seen = np.full((1000, 1), 0.1), np.tile([[1]] + [[0]] * 9, (100, 1))  # ten groups of a hundred
    figure = plots.reliability(seen, probabilities, findings=("Mass",))
    (bars,) = figure.axes[0].collections
    assert isinstance(bars, LineCollection)
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.0552, 0.1744), abs=1e-4)


def test_figures_are_saved_and_leave_nothing_open(epochs: pd.DataFrame, tmp_path: Path) -> None:
    path = plots.save(plots.training_curves(epochs), tmp_path / "deep" / "training_curves.png")
    assert Image.open(path).width == 1800
    assert pyplot.get_fignums() == []
