"""The gate lets a better challenger through, stops a worse one by the right check, and says what it cannot decide."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from training import metrics
from training.findings import FINDINGS
from training.gate import BESIDE, Check, Rules, judge
from training.manifest import UNKNOWN

pytestmark = pytest.mark.slow  # bootstraps

Array = NDArray[np.float64]

CATEGORIES = {"Pneumothorax": "A", "Consolidation": "B", "Edema": "B", "Effusion": "B", "Mass": "C"}
PREVALENCE = np.array([0.06, 0.3, 0.08, 0.08, 0.06, 0.04, 0.04, 0.08, 0.05, 0.04, 0.005])
RULES = Rules(replicates=100)
RARE = FINDINGS.index("Hernia")


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
    checks = judge(
        films, champion, challenger, train=train, rules=rules, films_from="gold", categories=categories,
        rng=np.random.default_rng(5),
    )  # fmt: skip
    assert [check.number for check in checks] == list(range(1, len(checks) + 1))
    assert {check.films_from for check in checks} == {"gold"}
    return {(check.name, check.subject): check for check in checks}


def failed(checks: Mapping[tuple[str, str], Check]) -> set[tuple[str, str]]:
    return {which for which, check in checks.items() if not check.passed}


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
    said = seen(films, noise, auroc=0.8)
    for check in judged(films, said, said).values():
        assert check.passed
        if check.name not in BESIDE:
            assert (check.difference, check.low, check.high) == (0, 0, 0)
            assert check.champion == check.challenger


def test_a_worse_challenger_is_stopped_and_the_figures_are_the_metrics() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.85), seen(films, noise, auroc=0.75, seed=2)
    checks = judged(films, champion, challenger)
    assert {("macro_auroc", ""), ("auroc", "Effusion"), ("sensitivity", "Pneumothorax")} <= failed(checks)
    common = [k for k in range(len(FINDINGS)) if k != RARE]
    truth = films[[FINDINGS[k] for k in common]].to_numpy()
    before, after = (
        metrics.evaluate(truth, said[:, common], findings=[FINDINGS[k] for k in common])
        for said in (champion, challenger)
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
        assert check.low <= check.high  # type: ignore[operator]


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
    for said, seed in ((champion, 5), (challenger, 6)):
        said[:, k] = np.random.default_rng(seed).permutation(said[:, k])
    checks = judged(films, champion, challenger)
    assert ("skill", "Effusion") in failed(checks)
    assert ("skill", "Pneumothorax") not in failed(checks)


def test_two_findings_whose_columns_were_swapped_fail_by_their_aurocs() -> None:
    films, noise = drawn()
    said = seen(films, noise, auroc=0.85)
    swapped = said.copy()
    columns = [FINDINGS.index("Effusion"), FINDINGS.index("Consolidation")]
    swapped[:, columns] = said[:, columns[::-1]]
    checks = judged(films, said, swapped)
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


def _missed(group: pd.DataFrame, films: pd.DataFrame, said: Array) -> float:
    """A group's false-negative rate within the group, averaged over cuts and findings, by scikit-learn."""
    positives = group[list(FINDINGS)].sum().to_numpy()
    known = [k for k in range(len(FINDINGS)) if positives[k]]
    of_group = said[films.index.get_indexer(group.index)]
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
    assert sum(not check.passed for check in grown) <= 1
    assert all("chance" in (check.note or "") for check in grown if check.passed)


def test_a_challenger_that_is_too_sure_of_itself_fails_by_its_calibration() -> None:
    films, noise = drawn()
    said = seen(films, noise, auroc=0.85)
    sure = 1 / (1 + np.exp(-2.5 * np.log(said / (1 - said)) - 1.5))
    checks = judged(films, said, sure)
    assert ("ece", "") in failed(checks)
    assert failed(checks) <= {("ece", ""), ("baseline", "all_zero"), ("baseline", "prevalence")}


def test_a_sensitivity_is_that_of_the_tenth_of_the_films_with_the_highest_probabilities() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.85), seen(films, noise, auroc=0.7, seed=2)
    check = judged(films, champion, challenger)["sensitivity", "Pneumothorax"]
    has = films["Pneumothorax"].to_numpy() == 1
    for said, figure in ((champion, check.champion), (challenger, check.challenger)):
        flagged = np.argsort(-said[:, FINDINGS.index("Pneumothorax")])[:60]
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
    said = seen(films, noise, auroc=0.6)
    checks = judge(
        films, said, said, train=train, rules=RULES, films_from="gold", categories=CATEGORIES,
        rng=np.random.default_rng(5),
    )  # fmt: skip
    assert not next(check for check in checks if check.subject == "view_age_sex").passed


def test_films_whose_label_is_unknown_have_no_part() -> None:
    films, noise = drawn()
    champion, challenger = seen(films, noise, auroc=0.75), seen(films, noise, auroc=0.85, seed=2)
    unknown = np.random.default_rng(4).random(noise.shape) < 0.3
    partly = films.assign(**{
        finding: films[finding].mask(unknown[:, k], UNKNOWN).astype("uint8") for k, finding in enumerate(FINDINGS)
    })  # fmt: skip
    # Whatever is said of what nobody knows changes nothing but which films are the tenth that is flagged.
    other = np.where(unknown, np.random.default_rng(6).random(noise.shape), challenger)
    one, two = judged(partly, champion, challenger), judged(partly, champion, other)
    assert {which for which in one if one[which] != two[which]} <= {("sensitivity", "Pneumothorax")}
    k = FINDINGS.index("Effusion")
    known = ~unknown[:, k]
    alone = metrics.evaluate(films.loc[known, ["Effusion"]], challenger[known, k : k + 1], findings=["Effusion"])
    assert one["auroc", "Effusion"].challenger == pytest.approx(alone.per_finding["auroc"].item())


def test_what_too_few_films_have_is_undecided_and_does_not_pass() -> None:
    films, noise = drawn()
    few = films.assign(Edema=np.where(films["Edema"].cumsum() <= 9, films["Edema"], 0).astype("uint8"))
    said = seen(films, noise, auroc=0.8)
    checks = judged(few, said, said)
    assert failed(checks) == {("auroc", "Edema"), ("skill", "Edema")}
    assert checks["auroc", "Edema"].note == "undecided: fewer than 10 films that have it, or that have not"
    assert checks["auroc", "Edema"].difference is None
    enough = judged(few, said, said, rules=replace(RULES, min_positives=9))
    assert failed(enough) <= {("skill", "Edema")}  # nine films may be too few to tell skill from chance
    assert enough["skill", "Edema"].low is not None


def test_films_of_one_view_alone_have_no_gap_between_views() -> None:
    films, noise = drawn()
    said = seen(films, noise, auroc=0.8)
    assert judged(films.assign(view_position="AP"), said, said)["gap", "view"].passed
    one_of_another = films["view_position"].where(films.index == 0, "AP")
    checks = judged(films.assign(view_position=one_of_another.mask(films.index == 0, "PA")), said, said)
    none = "undecided: no two groups with 10 findings each that others of the group have not"
    assert checks["gap", "view"].note == none
    assert not checks["gap", "view"].passed
    assert not judged(films.assign(sex=""), said, said)["gap", "sex"].passed


def test_a_group_of_whom_only_what_is_present_was_confirmed_cannot_be_compared() -> None:
    """Her false-negative rate has no value, and the gap to the other group is not 0."""
    films, noise = drawn()
    said = seen(films, noise, auroc=0.8)
    women = (films["sex"] == "F").to_numpy()
    labels = films[list(FINDINGS)]
    silent = films.assign(**labels.mask(women[:, None] & (labels == 0), UNKNOWN).astype("uint8"))
    worse = np.where(women[:, None], np.random.default_rng(3).random(said.shape) / 100, said)
    gap = judged(silent, said, worse)["gap", "sex"]
    assert not gap.passed
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
    assert both.high - both.low == pytest.approx(once.high - once.low, rel=0.05)  # type: ignore[operator]


def test_the_same_generator_gives_the_same_verdict() -> None:
    films, noise = drawn(films=200)
    said = seen(films, noise, auroc=0.75), seen(films, noise, auroc=0.8, seed=2)
    assert judged(films, *said) == judged(films, *said)
