"""The gate lets a better challenger through, stops a worse one by the right check, and says what it cannot decide."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from db.models import GateResult
from tests.support.values import present
from training import metrics
from training.findings import FINDINGS
from training.gate import BESIDE, Check, JudgedFilms, Result, Rules, judge, judge_mean, overall
from training.manifest import UNKNOWN

pytestmark = pytest.mark.slow  # bootstraps

Array = NDArray[np.floating]

CATEGORIES = {"Pneumothorax": "A", "Consolidation": "B", "Edema": "B", "Effusion": "B", "Mass": "C"}
PREVALENCE = np.array([0.06, 0.3, 0.08, 0.08, 0.06, 0.04, 0.04, 0.08, 0.05, 0.04, 0.005])
RULES = Rules(replicates=100)
RARE = FINDINGS.index("Hernia")


def interval(check: Check) -> tuple[float, float]:
    return present(check.low), present(check.high)


def width(check: Check) -> float:
    low, high = interval(check)
    return high - low


def drawn(*, films: int = 600, seed: int = 0) -> tuple[pd.DataFrame, Array]:
    """Films whose labels depend on nothing but chance, and for each finding the noise that both checkpoints share."""
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame((rng.random((films, len(FINDINGS))) < PREVALENCE).astype(np.uint8), columns=list(FINDINGS))
    described = labels.assign(
        image=[f"{film}.png" for film in range(films)],
        patient_id=[str(film * 5 // 6) for film in range(films)],
        age_years=rng.choice([30.0, 50.0, 70.0], films),
        sex=rng.choice(["M", "F"], films),
        view_position=rng.choice(["AP", "PA"], films, p=[0.4, 0.6]),
        split="test",
    )
    return described, rng.normal(size=labels.shape)


def seen(films: pd.DataFrame, noise: Array, *, auroc: float, seed: int = 1, own: float = 0.3) -> Array:
    """Calibrated probabilities of a network of this AUROC, `own` of whose noise (a share of variance) is its own."""
    truth = films[list(FINDINGS)].to_numpy() == 1
    apart = np.sqrt(2) * norm.ppf(auroc)
    mixed = np.sqrt(1 - own) * noise + np.sqrt(own) * np.random.default_rng(seed).normal(size=noise.shape)
    odds = np.log(PREVALENCE / (1 - PREVALENCE)) + apart * (apart * truth + mixed) - apart**2 / 2
    return np.asarray(1 / (1 + np.exp(-odds)))


def judged(
    films: pd.DataFrame,
    champion: Array,
    challenger: Array,
    *,
    rules: Rules = RULES,
    categories: Mapping[str, str] = CATEGORIES,
) -> dict[tuple[str, str], Check]:
    train, _ = drawn(films=800, seed=99)
    kept_aside = JudgedFilms(films, "gold", train)
    rng = np.random.default_rng(5)
    checks = judge(kept_aside, champion, challenger, rules=rules, categories=categories, rng=rng)
    assert [check.number for check in checks] == list(range(1, len(checks) + 1))
    assert {check.films_from for check in checks} == {"gold"}
    return {(check.name, check.subject): check for check in checks}


def failed(checks: Mapping[tuple[str, str], Check]) -> set[tuple[str, str]]:
    return {which for which, check in checks.items() if check.result == "failed"}


def undecided(checks: Mapping[tuple[str, str], Check]) -> set[tuple[str, str]]:
    return {which for which, check in checks.items() if check.result == "undecided"}


URGENT = ("Consolidation", "Pneumothorax", "Edema", "Effusion")
EVERY_CHECK = [
    ("macro_auroc", ""), *(("auroc", finding) for finding in URGENT), ("sensitivity", "Pneumothorax"), ("ece", ""),
    ("gap", "sex"), ("gap", "age_years"), ("gap", "view"),
    ("baseline", "all_zero"), ("baseline", "prevalence"), ("baseline", "view_age_sex"),
    *(("skill", finding) for finding in URGENT),
]  # fmt: skip


def test_a_better_challenger_passes_every_check() -> None:
    films, noise = drawn()
    checks = judged(films, seen(films, noise, auroc=0.75), seen(films, noise, auroc=0.85, seed=2))
    assert list(checks) == EVERY_CHECK
    assert failed(checks) == set()


def test_an_identical_challenger_passes_every_comparison() -> None:
    films, noise = drawn()
    probabilities = seen(films, noise, auroc=0.8)
    for check in judged(films, probabilities, probabilities).values():
        assert check.result == "passed"
        if check.name not in BESIDE:
            assert (check.difference, check.low, check.high) == (0, 0, 0)
            assert check.champion == check.challenger


def test_a_worse_challenger_is_stopped_and_the_figures_are_the_metrics() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.85), seen(films, noise, auroc=0.65, seed=2)
    checks = judged(films, champion, challenger)
    assert {("macro_auroc", ""), ("auroc", "Effusion"), ("sensitivity", "Pneumothorax")} <= failed(checks)
    common = [k for k in range(len(FINDINGS)) if k != RARE]
    truth = films[[FINDINGS[k] for k in common]].to_numpy()
    before, after = (
        metrics.evaluate(truth, probabilities[:, common], findings=[FINDINGS[k] for k in common])
        for probabilities in (champion, challenger)
    )
    macro, effusion, ece = checks["macro_auroc", ""], checks["auroc", "Effusion"], checks["ece", ""]
    assert (macro.champion, macro.challenger) == pytest.approx((before.macro()["auroc"], after.macro()["auroc"]))
    assert effusion.challenger == pytest.approx(after.per_finding.loc["Effusion", "auroc"])
    assert (ece.champion, ece.challenger) == pytest.approx((before.macro()["ece"], after.macro()["ece"]), abs=1e-6)
    assert macro.note == ece.note == "without Hernia: too few films"
    zero = checks["baseline", "all_zero"]
    assert zero.champion is None
    assert zero.challenger == pytest.approx(after.macro()["brier"])
    assert zero.difference == pytest.approx(after.macro()["brier"] - truth.mean(), abs=1e-6)
    for check in checks.values():
        low, high = interval(check)
        assert low <= high


def test_shuffled_effusions_fail_by_the_figures_of_effusion_alone() -> None:
    films, noise = drawn()
    challenger = seen(films, noise, auroc=0.87, seed=2)
    k = FINDINGS.index("Effusion")
    challenger[:, k] = seen(films, noise, auroc=0.52)[:, k]  # it has learned little more than the prevalence
    assert failed(judged(films, seen(films, noise, auroc=0.75), challenger)) == {
        ("auroc", "Effusion"),
        ("skill", "Effusion"),
    }


def test_beside_a_champion_that_knows_nothing_of_a_finding_a_challenger_still_has_to() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.75), seen(films, noise, auroc=0.87, seed=2)
    k = FINDINGS.index("Effusion")
    for probabilities, seed in ((champion, 5), (challenger, 6)):
        probabilities[:, k] = np.random.default_rng(seed).permutation(probabilities[:, k])
    checks = judged(films, champion, challenger)
    assert ("skill", "Effusion") in failed(checks)
    assert ("skill", "Pneumothorax") not in failed(checks)


def test_two_findings_whose_columns_were_swapped_fail_by_their_aurocs() -> None:
    films, noise = drawn()
    probabilities = seen(films, noise, auroc=0.85)
    swapped = probabilities.copy()
    columns = [FINDINGS.index("Effusion"), FINDINGS.index("Consolidation")]
    swapped[:, columns] = probabilities[:, columns[::-1]]
    checks = judged(films, probabilities, swapped)
    assert {("auroc", "Effusion"), ("auroc", "Consolidation"), ("macro_auroc", "")} <= failed(checks)
    assert ("auroc", "Pneumothorax") not in failed(checks)


def test_a_challenger_that_does_not_see_one_view_fails_by_the_gap_between_views() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.8), seen(films, noise, auroc=0.9, seed=2)
    pa = (films["view_position"] == "PA").to_numpy()
    challenger[pa] = np.random.default_rng(3).permutation(challenger[pa])
    checks = judged(films, champion, challenger)
    assert ("gap", "view") in failed(checks)
    assert failed(checks).isdisjoint({("gap", "sex"), ("gap", "age_years")})
    rate = {view: _missed(films[films["view_position"] == view], films, challenger) for view in ("AP", "PA")}
    assert checks["gap", "view"].challenger == pytest.approx(rate["PA"] - rate["AP"], abs=1e-6)


def _missed(group: pd.DataFrame, films: pd.DataFrame, probabilities: Array) -> float:
    """A group's false-negative rate within the group, averaged over cuts and findings, by scikit-learn."""
    positives = group[list(FINDINGS)].sum().to_numpy()
    known = [k for k in range(len(FINDINGS)) if positives[k]]
    of_group = probabilities[films.index.get_indexer(group.index)]
    missed = [1 - roc_auc_score(group[FINDINGS[k]], of_group[:, k]) for k in known]
    return float(np.average(missed, weights=positives[known]))


def test_a_gap_that_may_be_chance_passes_with_a_remark() -> None:
    """On 200 films the gaps of two networks that are as good differ in half the cases, by as much as you like."""
    rules, grown = replace(RULES, gap=0.005), []
    for seed in range(4):
        films, noise = drawn(films=200, seed=seed)
        champion, challenger = (seen(films, noise, auroc=0.8, seed=seed + own, own=0.6) for own in (10, 20))
        checks = judged(films, champion, challenger, rules=rules).values()
        grown += [check for check in checks if check.name == "gap" and (check.difference or 0) > rules.gap]
    assert len(grown) >= 4
    assert sum(check.result == "failed" for check in grown) <= 1
    assert all("chance" in (check.note or "") for check in grown if check.result == "passed")


def test_a_challenger_that_is_too_sure_of_itself_fails_by_its_calibration() -> None:
    films, noise = drawn()
    probabilities = seen(films, noise, auroc=0.85)
    sure = 1 / (1 + np.exp(-2.5 * np.log(probabilities / (1 - probabilities)) - 1.5))
    checks = judged(films, probabilities, sure)
    assert ("ece", "") in failed(checks)
    assert failed(checks) <= {("ece", ""), ("baseline", "all_zero"), ("baseline", "prevalence")}


def test_a_sensitivity_is_that_of_the_tenth_of_the_films_with_the_highest_probabilities() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.85), seen(films, noise, auroc=0.7, seed=2)
    check = judged(films, champion, challenger)["sensitivity", "Pneumothorax"]
    has = films["Pneumothorax"].to_numpy() == 1
    for probabilities, figure in ((champion, check.champion), (challenger, check.challenger)):
        flagged = np.argsort(-probabilities[:, FINDINGS.index("Pneumothorax")])[:60]
        assert figure == pytest.approx(has[flagged].sum() / has.sum())


def test_a_challenger_that_says_the_same_of_every_film_gains_nothing_by_ties() -> None:
    films, noise = drawn()
    constant = np.broadcast_to(PREVALENCE, noise.shape)
    checks = judged(films, seen(films, noise, auroc=0.8), constant)
    assert checks["sensitivity", "Pneumothorax"].challenger == pytest.approx(0.1)
    assert checks["macro_auroc", ""].challenger == 0.5
    assert ("macro_auroc", "") in failed(checks)


def test_a_baseline_that_knows_more_than_the_challenger_stops_it() -> None:
    """Where age alone tells who is ill, a network that is no better than the champion is still of no use."""
    films, noise = drawn()
    train, _ = drawn(films=800, seed=99)
    films[list(FINDINGS)] = (films[["age_years"]].to_numpy() > 60).astype(np.uint8) | films[list(FINDINGS)]
    train[list(FINDINGS)] = (train[["age_years"]].to_numpy() > 60).astype(np.uint8) | train[list(FINDINGS)]
    probabilities = seen(films, noise, auroc=0.6)
    kept_aside = JudgedFilms(films, "gold", train)
    rng = np.random.default_rng(5)
    checks = judge(kept_aside, probabilities, probabilities, rules=RULES, categories=CATEGORIES, rng=rng)
    assert next(check for check in checks if check.subject == "view_age_sex").result == "failed"


def test_films_whose_label_is_unknown_have_no_part() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.75), seen(films, noise, auroc=0.85, seed=2)
    unknown = np.random.default_rng(4).random(noise.shape) < 0.3
    partly = films.assign(**{
        finding: films[finding].mask(unknown[:, k], UNKNOWN).astype("uint8") for k, finding in enumerate(FINDINGS)
    })  # fmt: skip
    # A probability of a label that nobody knows changes nothing but which films are the tenth that is flagged.
    other = np.where(unknown, np.random.default_rng(6).random(noise.shape), challenger)
    one, two = judged(partly, champion, challenger), judged(partly, champion, other)
    assert {which for which in one if one[which] != two[which]} <= {("sensitivity", "Pneumothorax")}
    k = FINDINGS.index("Effusion")
    known = ~unknown[:, k]
    alone = metrics.evaluate(films.loc[known, ["Effusion"]], challenger[known, k : k + 1], findings=["Effusion"])
    assert one["auroc", "Effusion"].challenger == pytest.approx(alone.per_finding["auroc"].item())


def with_edemas(films: pd.DataFrame, count: int) -> pd.DataFrame:
    """The films, only the first `count` edemas of which are left."""
    return films.assign(Edema=np.where(films["Edema"].cumsum() <= count, films["Edema"], 0).astype("uint8"))


def with_column(probabilities: Array, finding: str, column: Array) -> Array:
    """The probabilities with those of one finding replaced."""
    changed = probabilities.copy()
    changed[:, FINDINGS.index(finding)] = column
    return changed


def ranked(truth: Array, *, auroc: float) -> Array:
    """Probabilities of one finding with just this AUROC: each positive is above this share of the negatives."""
    negatives = np.linspace(0.01, 0.99, int((truth == 0).sum()))
    probabilities = np.empty(len(truth))
    probabilities[truth == 0], probabilities[truth == 1] = negatives, np.quantile(negatives, auroc)
    return probabilities


def sensitivity(*, films: int = 600, champion: float, challenger: float, rules: Rules = RULES) -> Check:
    """The check on a challenger of this AUROC beside a champion of that one, on films with generated labels."""
    described, noise = drawn(films=films)
    before, after = (seen(described, noise, auroc=auroc, seed=k) for k, auroc in enumerate((champion, challenger)))
    return judged(described, before, after, rules=rules)["sensitivity", "Pneumothorax"]


def test_a_sensitivity_passes_and_fails_only_where_the_whole_interval_says_so() -> None:
    better, worse = sensitivity(champion=0.6, challenger=0.95), sensitivity(champion=0.95, challenger=0.6)
    assert (better.result, better.note) == ("passed", None)
    assert interval(better)[0] >= -0.02
    assert (worse.result, worse.note) == ("failed", None)
    assert interval(worse)[1] < -0.02


@pytest.mark.parametrize(("champion", "challenger"), [(0.8, 0.81), (0.82, 0.8)])
def test_a_sensitivity_whose_interval_holds_the_bound_is_left_to_a_person(champion: float, challenger: float) -> None:
    check = sensitivity(champion=champion, challenger=challenger)
    low, high = interval(check)
    assert low < -0.02 < high
    assert check.result == "undecided"
    positives = int(drawn()[0]["Pneumothorax"].sum())
    assert present(check.positives_needed) > positives
    assert check.note == f"undecided: about {check.positives_needed} positives would decide it"


def test_a_sensitivity_on_too_few_films_never_passes_and_fails_where_it_is_surely_worse() -> None:
    rules = replace(RULES, min_positives=60)
    few = "fewer than 60 films that have it, or that have not"
    better = sensitivity(champion=0.6, challenger=0.95, rules=rules)
    assert (better.result, better.positives_needed, better.note) == ("undecided", 60, f"undecided: {few}")
    worse = sensitivity(champion=0.95, challenger=0.6, rules=rules)
    assert (worse.result, worse.note) == ("failed", f"{few}, and worse beyond the bound")


def drawn_patients(patients: NDArray[Any]) -> list[Array]:
    return list(metrics.patient_draws(patients, rng=np.random.default_rng(5), replicates=RULES.replicates))


def mean(growth: Array, *, patients: NDArray[Any] | None = None, bound: float = 0.0) -> Check:
    """The check on films whose figure grows from 50 by this much, each measured twice."""
    before = np.full(len(growth), 100.0)
    draws = drawn_patients(np.arange(len(growth)) if patients is None else patients)
    return judge_mean(
        Check(0, "gold", "time_to_report", "Pneumothorax"), before, before + 2 * growth,
        counts=np.full(len(growth), 2.0), bound=bound, draws=draws, rules=RULES,
    )  # fmt: skip


def test_a_mean_that_may_not_grow_passes_and_fails_only_where_the_whole_interval_says_so() -> None:
    spread = np.random.default_rng(7).normal(size=40)
    spread -= spread.mean()
    shorter, longer = mean(spread - 1), mean(spread + 1)
    assert (shorter.result, shorter.champion, shorter.challenger) == ("passed", 50, pytest.approx(49))
    low, high = interval(shorter)
    assert -1.5 < low < -1 < high < 0
    assert (longer.result, longer.difference) == ("failed", pytest.approx(1))
    assert mean(spread + 1, bound=2).result == "passed"
    assert mean(np.zeros(40)).result == "passed"


@pytest.mark.parametrize("growth", [-0.1, 0.1])
def test_a_mean_whose_interval_holds_the_bound_is_left_to_a_person(growth: float) -> None:
    spread = np.random.default_rng(7).normal(size=40)
    check = mean(spread - spread.mean() + growth)
    low, high = interval(check)
    assert low < 0 < high
    assert check.result == "undecided"
    half = high if growth < 0 else -low
    assert check.positives_needed == np.ceil(40 * ((half + abs(growth)) / abs(growth)) ** 2)


def test_a_difference_of_just_the_bound_is_undecided_without_a_number() -> None:
    check = mean(np.tile([-1.0, 1.0], 20))
    assert (check.result, check.positives_needed) == ("undecided", None)
    assert check.note == "undecided: the difference is the bound itself"


def test_the_times_of_one_patients_films_are_drawn_together() -> None:
    growth = np.repeat([-1.0, -1.0, 0.5, -1.0, -1.0, 0.5], 20)
    alone, together = mean(growth), mean(growth, patients=np.arange(120) // 20)
    assert width(together) > 2 * width(alone)


def test_films_that_were_not_measured_have_no_part_in_a_mean() -> None:
    counts, before, after = np.array([0.0, 3, 1]), np.array([0.0, 30, 30]), np.array([0.0, 27, 9])
    check = judge_mean(
        Check(0, "gold", "time_to_report", ""), before, after, counts=counts, bound=0,
        draws=drawn_patients(np.arange(3)), rules=RULES,
    )  # fmt: skip
    assert (check.champion, check.challenger, check.result) == (15, 9, "passed")


def test_what_too_few_films_have_is_undecided_and_does_not_pass() -> None:
    films, noise = drawn()
    few = with_edemas(films, 9)
    probabilities = seen(films, noise, auroc=0.8)
    checks = judged(few, probabilities, probabilities)
    assert failed(checks) == set()
    assert undecided(checks) == {("auroc", "Edema"), ("skill", "Edema")}
    assert checks["auroc", "Edema"].note == "undecided: fewer than 10 films that have it, or that have not"
    assert checks["auroc", "Edema"].positives_needed == 10
    assert checks["auroc", "Edema"].difference == 0
    assert overall(check.result for check in checks.values()) == "undecided"
    enough = judged(few, probabilities, probabilities, rules=replace(RULES, min_positives=9))
    assert enough["auroc", "Edema"].result == "passed"


def test_what_too_few_films_have_fails_all_the_same_where_the_challenger_is_worse() -> None:
    films, noise = drawn()
    few = with_edemas(films, 9)
    probabilities, truth = seen(films, noise, auroc=0.8), few["Edema"].to_numpy(dtype=float)
    champion = with_column(probabilities, "Edema", ranked(truth, auroc=0.8))
    slightly = judged(few, champion, with_column(probabilities, "Edema", ranked(truth, auroc=0.79)))
    assert slightly["auroc", "Edema"].result == "undecided"
    clearly = judged(few, champion, with_column(probabilities, "Edema", ranked(truth, auroc=0.7)))["auroc", "Edema"]
    assert (clearly.result, clearly.positives_needed) == ("failed", None)
    assert clearly.note == "fewer than 10 films that have it, or that have not, and worse beyond the bound"


def test_a_finding_that_no_film_has_is_undecided_without_figures() -> None:
    films, noise = drawn()
    probabilities = seen(films, noise, auroc=0.8)
    check = judged(with_edemas(films, 0), probabilities, probabilities)["auroc", "Edema"]
    assert (check.result, check.difference, check.positives_needed) == ("undecided", None, 10)


def skill_of_edema(*, positives: int, champion: float, challenger: float) -> Check:
    """The check on a challenger of this AUROC for Edema beside a champion of that one."""
    films, noise = drawn()
    few = with_edemas(films, positives)
    probabilities, truth = seen(films, noise, auroc=0.8), few["Edema"].to_numpy(dtype=float)
    rng = np.random.default_rng(8)
    spread = rng.normal(scale=0.25, size=len(truth))  # ties would make the intervals too narrow
    columns = [np.clip(ranked(truth, auroc=auroc) + spread * (truth == 1), 0, 1) for auroc in (champion, challenger)]
    return judged(few, *(with_column(probabilities, "Edema", column) for column in columns))["skill", "Edema"]


def test_skill_that_neither_has_shown_is_undecided_with_the_number_of_films_that_would_decide() -> None:
    check = skill_of_edema(positives=12, champion=0.5, challenger=0.55)
    (low, high), difference = interval(check), present(check.difference)
    assert low < 0 < difference < high
    assert check.result == "undecided"
    expected = 12 * ((difference - low) / difference) ** 2
    assert check.positives_needed == np.ceil(expected)
    assert check.note == f"beside chance, .5; undecided: about {check.positives_needed} positives would decide it"
    assert check.champion == pytest.approx(0.55, abs=0.05)


def test_skill_that_the_champion_has_shown_and_the_challenger_has_not_fails() -> None:
    check = skill_of_edema(positives=12, champion=0.9, challenger=0.55)
    assert interval(check)[0] < 0
    assert check.result == "failed"
    assert check.note == "beside chance, .5; the champion has shown skill"


def test_skill_passes_where_it_is_shown_and_fails_where_its_absence_is() -> None:
    assert skill_of_edema(positives=12, champion=0.5, challenger=0.95).result == "passed"
    check = skill_of_edema(positives=60, champion=0.45, challenger=0.45)
    assert (check.result, check.note) == ("failed", "beside chance, .5; shown to know next to nothing")


def test_a_macro_auroc_that_is_no_worse_but_not_shown_to_be_is_undecided() -> None:
    films, noise = drawn(films=300)
    check = judged(films, seen(films, noise, auroc=0.78), seen(films, noise, auroc=0.785, seed=2))["macro_auroc", ""]
    assert interval(check)[0] < -0.005 <= present(check.difference)
    assert check.result == "undecided"
    assert present(check.positives_needed) > 100


def test_a_verdict_fails_with_one_check_and_is_undecided_with_one() -> None:
    assert overall(["passed", "passed"]) == "passed"
    assert overall(["passed", "undecided"]) == "undecided"
    assert overall(["undecided", "failed", "passed"]) == "failed"
    assert overall([]) == "failed"


def test_the_database_knows_the_same_results() -> None:
    assert set(get_args(GateResult)) == set(get_args(Result))


def test_films_of_one_view_alone_have_no_gap_between_views() -> None:
    films, noise = drawn()
    probabilities = seen(films, noise, auroc=0.8)
    assert judged(films.assign(view_position="AP"), probabilities, probabilities)["gap", "view"].result == "passed"
    one_of_another = films["view_position"].where(films.index == 0, "AP")
    checks = judged(
        films.assign(view_position=one_of_another.mask(films.index == 0, "PA")), probabilities, probabilities
    )
    none = "undecided: no two groups with 10 findings each that others of the group have not"
    assert checks["gap", "view"].note == none
    assert checks["gap", "view"].result == "undecided"
    assert judged(films.assign(sex=""), probabilities, probabilities)["gap", "sex"].result == "undecided"


def test_a_group_of_whom_only_what_is_present_was_confirmed_cannot_be_compared() -> None:
    """Her false-negative rate has no value, and the gap to the other group is not 0."""
    films, noise = drawn()
    probabilities = seen(films, noise, auroc=0.8)
    women = (films["sex"] == "F").to_numpy()
    labels = films[list(FINDINGS)]
    silent = films.assign(**labels.mask(women[:, None] & (labels == 0), UNKNOWN).astype("uint8"))
    worse = np.where(women[:, None], np.random.default_rng(3).random(probabilities.shape) / 100, probabilities)
    gap = judged(silent, probabilities, worse)["gap", "sex"]
    assert gap.result == "undecided"
    assert gap.difference is None
    assert (gap.note or "").startswith("undecided: no two groups")


def test_patients_are_drawn_and_not_films() -> None:
    """Twice the films of the same patients tell no more: the interval stays as wide."""
    films, noise = drawn(films=300)
    champion, challenger = seen(films, noise, auroc=0.75), seen(films, noise, auroc=0.8, seed=2)
    again = pd.concat([films, films.assign(image="again/" + films["image"])], ignore_index=True)
    once = judged(films, champion, challenger)["macro_auroc", ""]
    twice = judged(
        again, np.tile(champion, (2, 1)), np.tile(challenger, (2, 1)), rules=replace(RULES, min_positives=20)
    )
    both = twice["macro_auroc", ""]
    assert width(both) == pytest.approx(width(once), rel=0.05)


def test_the_same_generator_gives_the_same_verdict() -> None:
    films, noise = drawn(films=200)
    probabilities = seen(films, noise, auroc=0.75), seen(films, noise, auroc=0.8, seed=2)
    assert judged(films, *probabilities) == judged(films, *probabilities)
