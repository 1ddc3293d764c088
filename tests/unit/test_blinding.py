"""The draw of the blind share, and what being blind does and does not do to a study's place."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from training.checkpoint import Header
from training.findings import FINDINGS
from worker.context import Live
from worker.ranking.blinding import Blinding
from worker.ranking.priority import BLIND, DEFAULT_POLICY, Standing, reading_key

SECRET, OTHER = "ab" * 32, "cd" * 32
UIDS = [f"1.2.3.{number}" for number in range(4000)]
HEADER = Header("mobilenet", thresholds={finding: {"flag_10": 0.5} for finding in FINDINGS})
LIVE = Live(1, "ab" * 32, Path("any"), HEADER, DEFAULT_POLICY, policy_id=1)

probabilities = st.lists(st.floats(0, 1), min_size=11, max_size=11)


def drawn(share: float, secret: str = SECRET) -> set[str]:
    return {uid for uid in UIDS if Blinding(share, secret).draws(uid)}


def test_a_share_of_nothing_draws_nobody():
    assert drawn(0.0) == set()


def test_the_share_is_drawn_and_drawn_the_same_again():
    assert 0.08 < len(drawn(0.1)) / len(UIDS) < 0.12
    assert drawn(0.1) == drawn(0.1)


def test_a_larger_share_holds_a_smaller_one():
    assert drawn(0.05) < drawn(0.1)


def test_another_secret_draws_others_so_nobody_can_tell_without_it():
    both = drawn(0.1) & drawn(0.1, OTHER)
    assert len(both) < 0.03 * len(UIDS)


@given(probabilities)
def test_a_blind_study_stands_where_an_unscored_one_does_and_shows_nothing(values: list[float]):
    blind, unscored = LIVE.place(1, values, blind=True), LIVE.place(1, None)
    assert (blind.category, blind.urgency) == (unscored.category, unscored.urgency) == ("B", 0.4)
    assert (blind.flag, blind.top_finding, blind.top_probability, blind.checkpoint_id) == (BLIND, None, None, None)


@given(st.lists(st.tuples(probabilities, st.booleans(), st.booleans(), st.floats(0, 2000)), min_size=2, max_size=8))
def test_a_humans_stat_comes_first_and_the_overdue_next_whoever_is_blind(studies):
    keys = []
    for number, (values, stat, blind, waited) in enumerate(studies):
        place = LIVE.place(number, values, blind=blind)
        standing = Standing(place.category, place.urgency, place.flag)
        key = reading_key(standing, stat=stat, waited_minutes=waited, study_id=number, max_wait_minutes=720)
        keys.append((key, (not stat, waited < 720)))
    order = [rule for _, rule in sorted(keys)]
    assert order == sorted(order)
