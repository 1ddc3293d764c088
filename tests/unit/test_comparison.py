"""Two orders side by side: the ranks, how far they differ, and who makes the difference."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from db.shadow import Listed
from worker.checkpoints.comparison import Pair, compare
from worker.ranking.priority import Standing

NOW = datetime(2026, 11, 26, 7, tzinfo=UTC)


def pair(
    number: int,
    before: Standing,
    after: Standing,
    *,
    stat: bool = False,
    probabilities=None,
    waited_minutes: float = 60,
) -> Pair:
    received = NOW - timedelta(minutes=waited_minutes)
    study = Listed(number, None, stat, received, "2026-11-25", before.category, before.urgency, None, 1)
    return Pair(study, before, after, probabilities)


def by_urgency(before: list[float], after: list[float]) -> list[Pair]:
    pairs = enumerate(zip(before, after, strict=True), start=1)
    return [pair(number, Standing("C", b), Standing("C", a)) for number, (b, a) in pairs]


def test_the_same_order_twice_differs_in_nothing():
    found = compare("a night", by_urgency([0.3, 0.2, 0.1], [0.9, 0.5, 0.4]), now=NOW)
    assert (found.moved, found.spearman, found.kendall, found.movers) == (0, 1, 1, [])
    assert found.same_head == {10: 3, 50: 3}


def test_correlations_of_ranks_are_those_of_scipy():
    rng = np.random.default_rng(3)
    before, after = rng.random(60), rng.random(60)
    found = compare("a night", by_urgency(before.tolist(), after.tolist()), now=NOW)
    assert found.spearman == pytest.approx(stats.spearmanr(before, after).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(before, after).statistic)


def test_who_moves_far_is_counted_and_named_the_farthest_first():
    before = [1 - i / 100 for i in range(30)]
    after = [0.0, *before[1:29], 2.0]  # the first becomes the last, the last the first
    found = compare("a night", by_urgency(before, after), now=NOW)
    assert found.moved == 2
    assert [(m.study, m.rank_before, m.rank_after) for m in found.movers[:2]] == [("1", 1, 30), ("30", 30, 1)]
    assert found.same_head == {10: 9, 50: 30}


def test_studies_that_leave_or_enter_category_a_are_named():
    pairs = [pair(1, Standing("A", 1), Standing("B", 1)), pair(2, Standing("D", 0), Standing("A", 1))]
    found = compare("a night", pairs, now=NOW)
    assert (found.leave_a, found.enter_a) == (["1"], ["2"])


def test_a_humans_stat_stays_first_whatever_either_checkpoint_says():
    pairs = [pair(9, Standing("D", 0), Standing("D", 0), stat=True), *by_urgency([0.1, 0.9], [0.9, 0.1])]
    assert all(mover.study != "9" for mover in compare("a night", pairs, now=NOW).movers)


def test_overdue_studies_stay_where_they_are_on_a_list_and_count_for_nothing_in_a_night():
    late = [pair(i, Standing("C", i), Standing("C", -i), waited_minutes=999 - i) for i in (1, 2)]
    assert compare("the worklist", late, now=NOW, max_wait_minutes=720).movers == []
    assert len(compare("a night", late, now=NOW).movers) == 2


def test_the_largest_difference_of_each_finding_has_its_study():
    one, other = (0.1,) * 11, (0.1, 0.1, 0.1, 0.9) + (0.1,) * 7
    pairs = [
        pair(1, Standing("C", 0), Standing("C", 0), probabilities=(one, one)),
        pair(2, Standing("C", 0), Standing("C", 0), probabilities=(one, other)),
        pair(3, Standing("C", 0), Standing("C", 0)),
    ]
    found = compare("a night", pairs, now=NOW)
    assert found.seen_by_both == 2
    first = found.differences[0]
    assert (first.finding, first.study, first.before, first.after) == ("Pneumothorax", "2", 0.1, 0.9)


def test_an_empty_list_can_be_compared():
    found = compare("a night", [], now=NOW)
    assert (found.studies, found.spearman, found.differences) == (0, None, [])
