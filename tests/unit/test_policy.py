"""Edits of a policy, and the threshold that a capacity asks for."""

import pytest

from training.checkpoint import Header
from worker.ranking.policy import Changes, capacity_finding, edited, reference_films, threshold_from_reference
from worker.ranking.priority import DEFAULT_POLICY, PolicyError

LEVELS = [i / 100 for i in range(101)]


def row(policy, finding):
    return next(row for row in policy.findings if row.finding == finding)


def test_an_edit_changes_what_it_names_and_nothing_else():
    policy = edited(DEFAULT_POLICY, Changes(weights={"Edema": 0.5}, thresholds={"Mass": 0.2}, max_wait_minutes=600))
    assert (row(policy, "Edema").weight, row(policy, "Mass").threshold, policy.max_wait_minutes) == (0.5, 0.2, 600)
    assert row(policy, "Edema").category == row(DEFAULT_POLICY, "Edema").category
    assert [r for r in policy.findings if r.finding not in ("Edema", "Mass")] == [
        r for r in DEFAULT_POLICY.findings if r.finding not in ("Edema", "Mass")
    ]


def test_a_threshold_can_be_given_back_to_the_checkpoint():
    own = edited(DEFAULT_POLICY, Changes(thresholds={"Mass": 0.2}))
    assert row(edited(own, Changes(thresholds={"Mass": None})), "Mass").threshold is None


def test_a_wait_of_zero_is_a_change_and_not_silence():
    assert Changes(max_wait_minutes=0).any
    assert not Changes().any


def test_the_capacity_belongs_to_the_one_finding_in_category_a():
    assert capacity_finding(DEFAULT_POLICY) == "Pneumothorax"
    both = edited(DEFAULT_POLICY, Changes(categories={"Edema": "A"}))
    with pytest.raises(PolicyError, match="2 findings are in category A"):
        capacity_finding(both)


def test_the_reference_gives_the_probability_that_its_share_reaches():
    reference = {"films": 1000, "levels": LEVELS, "probabilities": {"Pneumothorax": [level**2 for level in LEVELS]}}
    assert threshold_from_reference(reference, finding="Pneumothorax", share=0.1) == pytest.approx(0.81)
    with pytest.raises(PolicyError, match="no reference distribution of Edema"):
        threshold_from_reference(reference, finding="Edema", share=0.1)
    with pytest.raises(PolicyError, match="no reference"):
        threshold_from_reference({}, finding="Pneumothorax", share=0.1)


@pytest.mark.parametrize(
    ("films", "words"),
    [
        ({"train": 1155, "validation": 399, "test": 377}, "the checkpoint's 399 validation films"),
        ({"train": 399, "validation": 0, "test": 0}, "the 399 films that the checkpoint learned from"),
        ({}, "the 399 films of the checkpoint's reference"),
    ],
)
def test_a_reference_is_called_what_its_films_were(films, words):
    assert reference_films(Header("mobilenet", reference={"films": 399}, training={"films": films})) == words
