"""The laws of the reading order, and the arithmetic under it."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reading_keys import standing, why_before
from training.findings import FINDINGS
from worker.ranking import priority
from worker.ranking.priority import DEFAULT_POLICY, FindingPolicy, PolicyError, Standing, reading_key

THRESHOLDS = dict.fromkeys(FINDINGS, 0.5)
MAX_WAIT = DEFAULT_POLICY.max_wait_minutes

probability = st.floats(0, 1)
rows = st.lists(probability, min_size=len(FINDINGS), max_size=len(FINDINGS))
weights = st.lists(st.floats(0, 10), min_size=len(FINDINGS), max_size=len(FINDINGS))
standings = st.builds(Standing, category=st.sampled_from("ABCD"), urgency=st.sampled_from([0.0, 0.1, 0.4, 1.3]))
waits = st.one_of(st.sampled_from([0.0, 719.0, 720.0, 721.0]), st.floats(0, 5000))
cases = st.tuples(standings, st.booleans(), waits)


def probabilities(**given_findings: float) -> list[float]:
    return list((dict.fromkeys(FINDINGS, 0.0) | given_findings).values())


def urgency(row: Any, policy: priority.Policy = DEFAULT_POLICY) -> float:
    return float(priority.urgencies([row], policy)[0])


def with_finding(finding: str, /, **changes: Any) -> priority.Policy:
    findings = tuple(replace(row, **changes) if row.finding == finding else row for row in DEFAULT_POLICY.findings)
    return replace(DEFAULT_POLICY, findings=findings)


def with_weights(values: list[float]) -> priority.Policy:
    pairs = zip(DEFAULT_POLICY.findings, values, strict=True)
    return replace(DEFAULT_POLICY, findings=tuple(replace(row, weight=value) for row, value in pairs))


def key(case: tuple[Standing, bool, float], study_id: int = 1) -> priority.ReadingKey:
    place, stat, waited = case
    return reading_key(place, stat=stat, waited_minutes=waited, study_id=study_id, max_wait_minutes=MAX_WAIT)


# The default policy


def test_default_policy_is_valid_and_names_the_findings_in_their_order():
    assert priority.validate(DEFAULT_POLICY) == []
    assert tuple(row.finding for row in DEFAULT_POLICY.findings) == FINDINGS


def test_default_policy_repeats_no_code_and_guesses_none():
    for system in ("snomed_ct", "radlex"):
        codes = [code for row in DEFAULT_POLICY.findings if (code := getattr(row, system)) is not None]
        assert len(codes) == len(set(codes))
    unknown = {row.finding for row in DEFAULT_POLICY.findings if row.snomed_ct is None}
    assert unknown == {"Pleural_Thickening"}


def test_the_page_on_the_reading_order_prints_the_default_policy():
    page = (Path(__file__).parents[2] / "docs" / "background" / "reading-order.md").read_text(encoding="utf-8")
    printed = {
        cells[0]: cells[1:]
        for cells in re.findall(r"^\| (\w+) \| ([A-D]) \| ([\d.]+) \| .* \| (.+) \| (.+) \|$", page, re.M)
    }
    for row in DEFAULT_POLICY.findings:
        category, weight, snomed_ct, radlex = printed[row.finding]
        assert (category, float(weight)) == (row.category, row.weight)
        assert (snomed_ct, radlex) == (row.snomed_ct or "-", row.radlex or "-")


def test_default_order_of_weights_is_the_published_one():
    # Baltruschat et al. 2021: pneumothorax > effusion > infiltrate > congestion > atelectasis > cardiomegaly > mass
    published = ["Pneumothorax", "Effusion", "Consolidation", "Edema", "Atelectasis", "Cardiomegaly", "Mass"]
    by_weight = sorted(DEFAULT_POLICY.findings, key=lambda row: -row.weight)
    assert [row.finding for row in by_weight][: len(published)] == published


# Validation


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (with_finding("Edema", weight=-0.1), "Edema: weight must be finite and not negative, not -0.1"),
        (with_finding("Edema", weight=float("nan")), "Edema: weight must be finite and not negative, not nan"),
        (with_finding("Edema", category="E"), "Edema: category must be one of A, B, C, D, not 'E'"),
        (with_finding("Edema", threshold=1.0), "Edema: threshold must lie between 0 and 1, not 1.0"),
        (with_finding("Mass", snomed_ct="36118008"), "SNOMED CT code 36118008 is used twice"),
        (replace(DEFAULT_POLICY, findings=DEFAULT_POLICY.findings[1:]), "Mass is missing"),
        (replace(DEFAULT_POLICY, findings=DEFAULT_POLICY.findings * 2), "Hernia appears 2 times"),
        (with_finding("Mass", finding="Nodule"), "Nodule is not a finding"),
        (replace(DEFAULT_POLICY, max_wait_minutes=0), "max_wait_minutes must be above 0, not 0"),
        (replace(DEFAULT_POLICY, max_wait_minutes=float("inf")), "max_wait_minutes must be above 0, not inf"),
        (replace(DEFAULT_POLICY, max_wait_minutes=9_999_999_999.0), "max_wait_minutes must be at most a year (525600)"),
        (replace(DEFAULT_POLICY, category_a_share=1.0), "category_a_share must lie between 0 and 1, not 1.0"),
        (
            replace(DEFAULT_POLICY, findings=(FindingPolicy("Mass", "A", 1.0),)),
            "no finding is in category B, so a study that cannot be scored has no place",
        ),
    ],
)
def test_a_wrong_policy_is_told_what_is_wrong(policy, sentence):
    assert sentence in priority.validate(policy)


# Urgency


def test_urgency_is_the_weighted_sum_whatever_the_form_of_the_probabilities():
    seen = probabilities(Pneumothorax=0.5, Effusion=0.25)
    assert urgency(seen) == pytest.approx(0.5 * 1.0 + 0.25 * 0.4)
    assert urgency(np.array(seen, dtype=np.float32)) == urgency(seen)


def test_a_study_has_the_same_urgency_alone_and_in_a_batch():
    table = np.random.default_rng(4).random((257, len(FINDINGS)))
    alone = [urgency(row) for row in table]
    assert priority.urgencies(table, DEFAULT_POLICY).tolist() == alone


def test_policy_rows_in_another_order_mean_the_same():
    shuffled = replace(DEFAULT_POLICY, findings=DEFAULT_POLICY.findings[::-1])
    row = np.random.default_rng(5).random(len(FINDINGS))
    assert urgency(row, shuffled) == urgency(row)
    assert priority.category(row, shuffled, THRESHOLDS) == priority.category(row, DEFAULT_POLICY, THRESHOLDS)


@pytest.mark.parametrize(
    "wrong",
    [
        [0.1] * 10,
        [0.1] * 10 + [float("nan")],
        [0.1] * 10 + [1.01],
        [-0.01] + [0.1] * 10,
        probabilities(Nodule=0.5),
    ],
)
def test_probabilities_that_are_none_are_refused(wrong):
    with pytest.raises(PolicyError):
        urgency(wrong)


@given(rows)
def test_contributions_add_up_to_the_urgency_largest_first(row):
    parts = priority.contributions(row, DEFAULT_POLICY)
    assert sum(part.value for part in parts) == pytest.approx(urgency(row))
    assert {part.finding for part in parts} == set(FINDINGS)
    assert all(first.value >= second.value for first, second in itertools.pairwise(parts))


def test_a_study_takes_for_each_finding_the_maximum_over_its_films():
    films = np.zeros((2, len(FINDINGS)))
    films[0, 3], films[1, 3], films[1, 7] = 0.2, 0.9, 0.4
    highest = priority.study_probabilities(films)
    assert (highest[3], highest[7], highest.sum()) == (0.9, 0.4, pytest.approx(1.3))
    with pytest.raises(PolicyError, match="without scored films"):
        priority.study_probabilities(np.zeros((0, len(FINDINGS))))


# Categories


@pytest.mark.parametrize(
    ("seen", "expected", "because"),
    [
        ({}, "D", []),
        ({"Fibrosis": 0.9}, "D", ["Fibrosis"]),
        ({"Mass": 0.5, "Fibrosis": 0.9}, "C", ["Mass"]),
        ({"Effusion": 0.6, "Edema": 0.5, "Mass": 0.9}, "B", ["Edema", "Effusion"]),
        ({"Pneumothorax": 0.5, "Effusion": 0.9}, "A", ["Pneumothorax"]),
        ({"Pneumothorax": 0.4999, "Effusion": 0.4999}, "D", []),
    ],
)
def test_category_is_the_best_among_findings_that_reach_their_threshold(seen, expected, because):
    row = probabilities(**seen)
    assert priority.category(row, DEFAULT_POLICY, THRESHOLDS) == expected
    assert priority.deciding_findings(row, DEFAULT_POLICY, THRESHOLDS) == because


def test_the_policy_threshold_outranks_the_checkpoint_one():
    strict = with_finding("Pneumothorax", threshold=0.8)
    assert priority.category(probabilities(Pneumothorax=0.7), strict, THRESHOLDS) == "D"
    assert priority.category(probabilities(Pneumothorax=0.8), strict, THRESHOLDS) == "A"


def test_a_missing_threshold_is_an_error_except_in_category_d():
    without = {finding: 0.5 for finding in FINDINGS if finding != "Pneumothorax"}
    with pytest.raises(PolicyError, match="Pneumothorax in category A has no threshold"):
        priority.category(probabilities(), DEFAULT_POLICY, without)
    without_d = {row.finding: 0.5 for row in DEFAULT_POLICY.findings if row.category != "D"}
    assert priority.category(probabilities(Hernia=0.9), DEFAULT_POLICY, without_d) == "D"


# Studies without (all) probabilities


def test_an_unscored_study_stands_at_category_b_with_a_flag():
    place = standing(None, DEFAULT_POLICY, THRESHOLDS)
    assert place == Standing("B", 0.40, priority.NOT_SCORED)
    normal = standing(probabilities(Effusion=0.05), DEFAULT_POLICY, THRESHOLDS)
    alarming = standing(probabilities(Pneumothorax=0.5), DEFAULT_POLICY, THRESHOLDS)
    assert key((alarming, False, 0)) < key((place, False, 0)) < key((normal, False, 600))


@given(rows)
def test_a_film_that_failed_never_sends_its_study_back(row):
    whole = standing(row, DEFAULT_POLICY, THRESHOLDS)
    partly = standing(row, DEFAULT_POLICY, THRESHOLDS, complete=False)
    assert partly.flag == priority.PARTLY_SCORED
    assert key((partly, False, 0)) <= key((whole, False, 0))
    assert key((partly, False, 0)) <= key((standing(None, DEFAULT_POLICY, THRESHOLDS), False, 0))


# The laws of the order


@given(row=rows, values=weights, index=st.integers(0, len(FINDINGS) - 1), raised=probability, waited=waits)
def test_no_probability_that_rises_sends_a_study_back(row, values, index, raised, waited):
    policy = with_weights(values)
    higher = [max(p, raised) if i == index else p for i, p in enumerate(row)]
    before, after = (key((standing(r, policy, THRESHOLDS), False, waited)) for r in (row, higher))
    assert after <= before


@given(place=standings, other=cases)
def test_a_human_stat_is_before_every_study_that_is_not(place, other):
    assert key((place, True, 0.0)) < key((other[0], False, other[2]))


@given(case=cases, other=cases)
def test_the_model_never_lowers_a_human_priority(case, other):
    # whatever the model says of either study, the one that a human marked comes first
    (place, _, waited), (other_place, _, other_waited) = case, other
    assert key((place, True, waited)) < key((other_place, False, other_waited))


@given(place=standings, waited=st.floats(720, 5000), other=cases)
def test_nobody_starves_after_the_maximum_wait(place, waited, other):
    if key(other, study_id=2) < key((place, False, waited), study_id=1):
        _, stat, other_waited = other
        assert stat or other_waited >= waited


@given(a=cases, b=cases)
def test_among_studies_neither_stat_nor_overdue_category_a_then_urgency_then_arrival_decides(a, b):
    waiting = [(place, False, min(waited, 719.0)) for place, _, waited in (a, b)]
    expected = sorted(waiting, key=lambda case: (case[0].category != "A", -case[0].urgency, -case[2]))
    assert [key(case)[:-1] for case in sorted(waiting, key=key)] == [key(case)[:-1] for case in expected]


@given(st.lists(cases, max_size=12), st.randoms())
def test_the_order_in_which_studies_are_listed_does_not_matter(listed, random):
    keys = [key(case, study_id=number) for number, case in enumerate(listed)]
    shuffled = random.sample(keys, len(keys))
    assert sorted(shuffled) == sorted(keys)


@given(standings, st.booleans(), waits)
def test_equal_studies_keep_the_order_of_their_numbers(place, stat, waited):
    assert key((place, stat, waited), study_id=7) < key((place, stat, waited), study_id=8)


def test_a_study_becomes_overdue_at_the_maximum_wait_and_not_before():
    urgent = Standing("A", 2.0)
    quiet = Standing("D", 0.0)
    assert key((urgent, False, 1)) < key((quiet, False, MAX_WAIT - 0.01))
    assert key((quiet, False, MAX_WAIT)) < key((urgent, False, 1))


@pytest.mark.parametrize(
    ("earlier", "later", "reason"),
    [
        ((Standing("D", 0.0), True, 0.0), (Standing("A", 2.0), False, 900.0), "a human marked it STAT"),
        ((Standing("D", 0.0), False, 720.0), (Standing("A", 2.0), False, 9.0), "it has waited longer than the maximum"),
        ((Standing("D", 0.0), False, 730.0), (Standing("A", 2.0), False, 720.0), "both are overdue"),
        ((Standing("A", 0.1), False, 0.0), (Standing("B", 2.0), False, 9.0), "it is in category A"),
        ((Standing("D", 0.3), False, 0.0), (Standing("C", 0.2), False, 9.0), "its urgency is higher"),
        ((Standing("D", 0.3), False, 9.0), (Standing("D", 0.3), False, 8.0), "it arrived earlier"),
    ],
)
def test_why_one_study_is_before_the_next_is_told(earlier, later, reason):
    assert reason in priority.RULES[why_before(key(earlier), key(later))]


# The capacity of category A


def test_threshold_flags_about_the_share_asked_for():
    scores = np.random.default_rng(6).beta(1, 20, size=10_000)
    threshold = priority.threshold_for_share(scores, 0.10)
    assert (scores >= threshold).mean() == pytest.approx(0.10, abs=1e-4)


def test_tied_scores_give_the_nearest_share():
    scores = [0.9] * 3 + [0.5] * 4 + [0.1] * 13  # levels flag 15 %, 35 % or everything
    assert priority.threshold_for_share(scores, 0.10) == 0.9
    assert priority.threshold_for_share(scores, 0.30) == 0.5


@given(st.lists(probability, min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_no_other_score_would_flag_a_nearer_share(scores, share):
    values = np.array(scores)
    chosen = priority.threshold_for_share(values, share)
    misses = [abs((values >= level).mean() - share) for level in values]
    assert abs((values >= chosen).mean() - share) == pytest.approx(min(misses))


@pytest.mark.parametrize(("scores", "share"), [([], 0.1), ([0.1, float("nan")], 0.1), ([0.1], 0.0), ([0.1], 1.0)])
def test_a_threshold_cannot_come_from_nothing(scores, share):
    with pytest.raises(PolicyError):
        priority.threshold_for_share(scores, share)


# The finding to name first


def top(given: list[float], rules: priority.Policy = DEFAULT_POLICY, **thresholds: float) -> str:
    (number,) = priority.top_findings([given], rules, THRESHOLDS | thresholds)
    return FINDINGS[number]


def test_the_finding_that_made_the_category_is_named_before_a_heavier_part_of_the_urgency():
    seen = probabilities(Pneumothorax=0.05, Consolidation=0.7)  # adds .05 and .23 to the urgency
    assert priority.contributions(seen, DEFAULT_POLICY)[0].finding == "Consolidation"
    assert top(seen, Pneumothorax=0.04) == "Pneumothorax"


def test_of_several_findings_of_a_category_the_one_farthest_above_its_threshold_is_named():
    assert top(probabilities(Consolidation=0.7, Effusion=0.3), Effusion=0.1) == "Effusion"


def test_a_finding_of_a_lower_category_is_not_named_however_far_above_its_threshold():
    assert top(probabilities(Effusion=0.5, Mass=0.9), Mass=0.01) == "Effusion"


def test_where_nothing_reaches_its_threshold_the_nearest_is_named():
    assert top(probabilities(Consolidation=0.3, Pneumothorax=0.04), Pneumothorax=0.05) == "Pneumothorax"


@given(st.lists(rows, min_size=1, max_size=5))
def test_the_named_finding_is_one_that_decides_wherever_one_does(table: list[list[float]]):
    for row, number in zip(table, priority.top_findings(table, DEFAULT_POLICY, THRESHOLDS), strict=True):
        deciding = priority.deciding_findings(row, DEFAULT_POLICY, THRESHOLDS)
        if priority.category(row, DEFAULT_POLICY, THRESHOLDS) != "D" or deciding:
            assert FINDINGS[number] in deciding
