"""The figures are scikit-learn's, the fast bootstrap gives the same ones, and baselines stand beside them."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

from training import metrics
from training.findings import FINDINGS
from training.manifest import UNKNOWN, prevalence

pytestmark = pytest.mark.slow  # bootstraps

Array = NDArray[np.float64]


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def films() -> pd.DataFrame:
    """400 films of 150 patients; Hernia has 4 positives, Fibrosis none."""
    draw = rng(0)
    labels = (draw.random((400, len(FINDINGS))) < 0.15).astype(np.uint8)
    labels[:, FINDINGS.index("Fibrosis")] = 0
    labels[:, FINDINGS.index("Hernia")] = np.arange(400) < 4
    described = pd.DataFrame(labels, columns=list(FINDINGS), index=np.arange(400) + 1000)
    return described.assign(
        image=[f"films/{film}.png" for film in range(400)],
        patient_id=[str(film % 150) for film in range(400)],
        age_years=draw.integers(1, 95, 400).astype(float),
        sex=draw.choice(["M", "F", ""], 400),
        view_position=draw.choice(["AP", "PA"], 400),
        split="test",
    )


@pytest.fixture(scope="module")
def labels(films: pd.DataFrame) -> NDArray[np.uint8]:
    return films[list(FINDINGS)].to_numpy()


@pytest.fixture(scope="module")
def scores(labels: NDArray[np.uint8]) -> Array:
    """Probabilities that know something, with many ties."""
    noisy = 1 / (1 + np.exp(-(labels * 1.5 - 1.0 + rng(1).normal(size=labels.shape))))
    return np.asarray(noisy.round(2))


def test_each_figure_is_the_librarys(labels: NDArray[np.uint8], scores: Array) -> None:
    table = metrics.evaluate(labels, scores).per_finding
    for k, finding in enumerate(("Mass", "Consolidation", "Atelectasis", "Pneumothorax")):
        truth, probabilities, row = labels[:, k], scores[:, k], table.loc[finding]
        tn, fp, fn, tp = confusion_matrix(truth, probabilities >= 0.5).ravel()
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, probabilities))
        assert row["auprc"] == pytest.approx(average_precision_score(truth, probabilities))
        assert row["brier"] == pytest.approx(brier_score_loss(truth, probabilities))
        assert row["false_negatives"] == fn
        assert row["false_negative_rate"] == pytest.approx(fn / (fn + tp)) == pytest.approx(1 - row["sensitivity"])
        assert row["specificity"] == pytest.approx(tn / (tn + fp))
        assert row["ppv"] == pytest.approx(tp / (tp + fp))
        assert row["npv"] == pytest.approx(tn / (tn + fn))


def test_the_papers_two_accuracies() -> None:
    labels = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0] * 11])
    silence = metrics.evaluate(labels, np.zeros((2, 11)))
    assert silence.binary_accuracy == pytest.approx(21 / 22)
    assert silence.exact_match == pytest.approx(0.5)
    assert silence.flat()["false_negatives/all"] == 1
    loud = metrics.evaluate(labels, np.ones((2, 11)))
    assert (loud.all_zero_binary_accuracy, loud.all_zero_exact_match) == (silence.binary_accuracy, silence.exact_match)


def test_a_probability_that_is_always_right_on_average_has_no_calibration_error() -> None:
    labels = np.tile(np.array([[1], [0], [0], [0]]), (50, 11))
    assert metrics.evaluate(labels, np.full(labels.shape, 0.25)).macro()["ece"] == pytest.approx(0, abs=1e-6)
    assert metrics.evaluate(labels, np.full(labels.shape, 0.75)).macro()["ece"] == pytest.approx(0.5)


def test_ece_is_the_gap_of_each_bin_weighted_by_its_films() -> None:
    rng = np.random.default_rng(2)
    truth, scores = rng.integers(0, 2, (300, 1)), rng.random((300, 1))
    bins = np.floor(scores[:, 0] * metrics.ECE_BINS)
    gaps = [(bins == b).mean() * abs(scores[bins == b].mean() - truth[bins == b].mean()) for b in np.unique(bins)]
    assert metrics.evaluate(truth, scores, findings=["Mass"]).macro()["ece"] == pytest.approx(sum(gaps))


def test_a_finding_without_positives_has_no_auroc_and_the_mean_leaves_it_out(
    labels: NDArray[np.uint8], scores: Array
) -> None:
    evaluation = metrics.evaluate(labels, scores)
    assert np.isnan(evaluation.per_finding["auroc"]["Fibrosis"])
    defined = evaluation.per_finding["auroc"].drop("Fibrosis")
    assert evaluation.macro()["auroc"] == pytest.approx(defined.mean())
    assert evaluation.macro(without=["Hernia"])["auroc"] == pytest.approx(defined.drop("Hernia").mean())
    assert "auroc/Fibrosis" not in evaluation.flat()


def test_thresholds_may_differ_by_finding(labels: NDArray[np.uint8], scores: Array) -> None:
    cuts = np.linspace(0.2, 0.8, len(FINDINGS))
    table = metrics.evaluate(labels, scores, thresholds=cuts).per_finding
    for k, finding in enumerate(FINDINGS):
        assert table.loc[finding, "false_negatives"] == ((scores[:, k] < cuts[k]) & (labels[:, k] == 1)).sum()


def test_weighted_figures_are_those_of_the_films_repeated(labels: NDArray[np.uint8], scores: Array) -> None:
    weights = rng(3).integers(0, 4, size=(3, len(labels))).astype(np.float32)
    decided = (scores >= 0.5).astype(np.float32)
    drawn = metrics.weighted_rates(labels.astype(np.float32), scores, decided, weights)
    for row, times in zip(drawn, weights.astype(int), strict=True):
        again = metrics.evaluate(labels.repeat(times, axis=0), scores.repeat(times, axis=0))
        expected = again.per_finding[list(metrics.RATES)].to_numpy(dtype=float).T
        np.testing.assert_allclose(row, expected, atol=2e-6)


def test_intervals_hold_the_figure_and_widen_when_patients_have_many_films(
    labels: NDArray[np.uint8], scores: Array
) -> None:
    repeated = np.tile(labels, (4, 1)), np.tile(scores, (4, 1))
    patients = np.tile(np.arange(len(labels)), 4)
    honest = metrics.intervals(*repeated, patients=patients, rng=rng(), replicates=300)
    naive = metrics.intervals(*repeated, patients=np.arange(len(patients)), rng=rng(), replicates=300)
    figures = metrics.evaluate(*repeated).table().merge(honest, on=["finding", "metric"])
    assert ((figures["low"] <= figures["value"] + 1e-6) & (figures["value"] <= figures["high"] + 1e-6)).all()
    auroc = honest["metric"].eq("auroc") & honest["finding"].eq("Mass")
    width = [(table["high"] - table["low"])[auroc].item() for table in (honest, naive)]
    assert width[0] == pytest.approx(2 * width[1], rel=0.25)


def test_the_same_generator_gives_the_same_intervals(labels: NDArray[np.uint8], scores: Array) -> None:
    patients = np.arange(len(labels)) % 150
    one, other = (metrics.intervals(labels, scores, patients=patients, rng=rng(), replicates=50) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)


def test_baselines_know_nothing_of_the_film(films: pd.DataFrame, labels: NDArray[np.uint8]) -> None:
    guesses = metrics.baselines(films, films)
    assert guesses["all_zero"].max() == 0
    np.testing.assert_allclose(guesses["prevalence"][0], labels.mean(axis=0))
    np.testing.assert_allclose(guesses["view_age_sex"].mean(axis=0), labels.mean(axis=0), atol=0.01)


def test_view_age_and_sex_find_what_depends_on_them(films: pd.DataFrame) -> None:
    old = films.assign(Fibrosis=(films["age_years"] > 70).astype("uint8"))
    known = metrics.baselines(old, old)["view_age_sex"][:, FINDINGS.index("Fibrosis")]
    assert roc_auc_score(old["Fibrosis"], known) > 0.95


def test_slices_part_the_films_by_view_sex_age_and_split(films: pd.DataFrame) -> None:
    groups = dict(metrics.slices(films))
    assert list(groups) == [
        "view=AP", "view=PA", "sex=F", "sex=M",
        "age_years=0-17", "age_years=18-39", "age_years=40-59", "age_years=60-79", "age_years=80+", "split=test",
    ]  # fmt: skip
    assert groups["age_years=0-17"]["age_years"].max() < 18
    assert sum(len(group) for name, group in groups.items() if name.startswith("age")) == len(films)
    unknown = dict(metrics.slices(films.assign(age_years=np.nan, sex="")))
    assert list(unknown) == ["view=AP", "view=PA", "split=test"]


def test_within_sources_pairs_of_one_source_alone_count(films: pd.DataFrame, scores: Array) -> None:
    source = np.where(np.arange(400) % 3 == 0, "one", "other")
    table = metrics.within_source(films.assign(source=source), scores, rng=rng(), replicates=20).set_index("finding")
    truth, probabilities = films["Mass"].to_numpy(), scores[:, FINDINGS.index("Mass")]
    won = pairs = 0.0
    for name in ("one", "other"):
        here = source == name
        count = truth[here].sum() * (1 - truth[here]).sum()
        won, pairs = won + roc_auc_score(truth[here], probabilities[here]) * count, pairs + count
    assert table.loc["Mass", "value"] == pytest.approx(won / pairs)
    assert table["metric"].unique().tolist() == ["auroc_within_source"]
    assert table.loc["macro", "value"] == pytest.approx(table.drop("macro")["value"].mean())
    assert table["low"]["macro"] < table["value"]["macro"] < table["high"]["macro"]
    assert np.isnan(table["value"]["Fibrosis"]), "no film has it"


def test_who_only_tells_the_sources_apart_wins_nothing_within_them(films: pd.DataFrame) -> None:
    ill = films["Mass"].to_numpy() == 1
    source = np.where(ill ^ (rng().random(400) < 0.1), "clinic", "screening")
    told = np.repeat(np.where(source == "clinic", 0.9, 0.1)[:, None], len(FINDINGS), axis=1)
    assert metrics.evaluate(films[list(FINDINGS)], told).per_finding["auroc"]["Mass"] > 0.8
    table = metrics.within_source(films.assign(source=source), told, rng=rng(), replicates=10).set_index("finding")
    assert list(table.loc["Mass", ["value", "low", "high"]]) == [0.5, 0.5, 0.5]
    assert metrics.within_source(films.assign(source="one"), told, rng=rng()).empty


def test_the_report_puts_baselines_and_intervals_beside_the_network(films: pd.DataFrame, scores: Array) -> None:
    again = pd.DataFrame({"image": ["3.png", "4.png", "7.png"], "Mass": [1, 0, 1], "Pneumothorax": [0, 1, 1]})
    alike = films.assign(view_position="PA", sex="F", age_years=50.0, source=np.where(films.index % 2, "east", "west"))
    models = {"network": scores, **metrics.baselines(films, films)}
    table = metrics.report(alike, models, rng=rng(), adjudicated=again, replicates=20)
    slices = ["all", "view=PA", "sex=F", "age_years=40-59", "split=test", "source=east", "source=west", "adjudicated"]
    assert table["slice"].unique().tolist() == slices
    macro = table[(table["slice"] == "all") & (table["finding"] == "macro") & (table["metric"] == "auroc")]
    assert macro["model"].tolist() == ["network", "all_zero", "prevalence", "view_age_sex"]
    assert macro.set_index("model")["value"]["all_zero"] == 0.5
    assert (macro["low"] <= macro["value"]).all()
    within = table[(table["metric"] == "auroc_within_source") & (table["finding"] == "macro")]
    assert (within["slice"].unique().tolist(), within["model"].tolist()) == (["all"], macro["model"].tolist())
    read_again = table[(table["slice"] == "adjudicated") & (table["model"] == "network")]
    assert set(read_again["finding"]) == {"all", "macro", "macro_without_hernia", "Mass", "Pneumothorax"}
    assert read_again["films"].unique().tolist() == [3]


@pytest.fixture(scope="module")
def partly(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The labels with a third unknown, Edema wholly, and some films of which nothing is known."""
    unknown = rng(9).random(labels.shape) < 0.33
    unknown[:, FINDINGS.index("Edema")] = True
    unknown[:20] = True
    return np.where(unknown, np.uint8(UNKNOWN), labels)


def test_figures_are_those_of_the_known_labels(partly: NDArray[np.uint8], scores: Array) -> None:
    evaluation = metrics.evaluate(partly, scores)
    for k, finding in enumerate(FINDINGS):
        known = partly[:, k] != UNKNOWN
        row = evaluation.per_finding.loc[finding]
        if finding == "Edema":
            assert list(row[["positives", "false_negatives"]]) == [0, 0]
            assert row[["prevalence", *metrics.RATES]].isna().all()
            continue
        alone = metrics.evaluate(partly[known, k : k + 1], scores[known, k : k + 1], findings=[finding]).per_finding
        np.testing.assert_allclose(row.to_numpy(float), alone.loc[finding].to_numpy(float))
    known, right = partly != UNKNOWN, (scores >= 0.5) == (partly == 1)
    assert evaluation.binary_accuracy == pytest.approx(right[known].mean())
    exact = [right[k][known[k]].all() for k in range(20, len(partly))]
    assert evaluation.exact_match == pytest.approx(np.mean(exact))
    assert evaluation.all_zero_binary_accuracy == pytest.approx((partly[known] == 0).mean())


def test_an_unknown_labels_probability_changes_nothing(partly: NDArray[np.uint8], scores: Array) -> None:
    other = np.where(partly == UNKNOWN, rng(2).random(scores.shape), scores)
    pd.testing.assert_frame_equal(metrics.evaluate(partly, scores).table(), metrics.evaluate(partly, other).table())
    patients = np.arange(len(partly)) % 150
    one, two = (
        metrics.intervals(partly, probabilities, patients=patients, rng=rng(), replicates=50)
        for probabilities in (scores, other)
    )
    pd.testing.assert_frame_equal(one, two)
    assert "Edema" not in set(one["finding"])


def test_weighted_figures_with_unknown_labels_are_those_of_the_films_repeated(
    partly: NDArray[np.uint8], scores: Array
) -> None:
    weights = rng(3).integers(0, 4, size=(3, len(partly))).astype(np.float32)
    decided, truth = (scores >= 0.5).astype(np.float32), partly.astype(np.float32)
    drawn = metrics.weighted_rates(truth, scores, decided, weights)
    overall = metrics.weighted_overall(truth, decided, weights)
    for row, whole, times in zip(drawn, overall, weights.astype(int), strict=True):
        again = metrics.evaluate(partly.repeat(times, axis=0), scores.repeat(times, axis=0))
        np.testing.assert_allclose(row, again.per_finding[list(metrics.RATES)].to_numpy(dtype=float).T, atol=2e-6)
        np.testing.assert_allclose(whole, [again.binary_accuracy, again.exact_match], atol=2e-6)


def test_baselines_learn_from_the_known_labels(films: pd.DataFrame, partly: NDArray[np.uint8]) -> None:
    train = films.assign(**dict(zip(FINDINGS, partly.T, strict=True)))
    probabilities = metrics.baselines(train, films)
    mass, edema = FINDINGS.index("Mass"), FINDINGS.index("Edema")
    share = train.loc[train["Mass"] != UNKNOWN, "Mass"].mean()
    assert probabilities["prevalence"][0, mass] == pytest.approx(share)
    assert probabilities["view_age_sex"][:, mass].mean() == pytest.approx(share, abs=0.03)
    assert not probabilities["view_age_sex"][:, edema].any()
    assert not probabilities["prevalence"][:, edema].any()


def test_a_prevalence_is_a_share_of_the_known_films() -> None:
    assert prevalence([[1, UNKNOWN], [0, UNKNOWN], [UNKNOWN, UNKNOWN]])[0] == 0.5
    assert np.isnan(prevalence([[1, UNKNOWN], [0, UNKNOWN]])[1])


def test_a_report_of_films_with_unknown_labels(films: pd.DataFrame, partly: NDArray[np.uint8], scores: Array) -> None:
    partial = films.assign(**dict(zip(FINDINGS, partly.T, strict=True)))
    table = metrics.report(partial, {"network": scores}, rng=rng(), replicates=20)
    assert table.loc[table["metric"] == "positives", "value"].max() < 400
    assert set(table["slice"]) >= {"all", "view=AP", "sex=M"}
