"""The reading order, study by study: what SQL and the tables of many studies are held against."""

from collections.abc import Mapping, Sequence

from training.findings import FINDINGS
from worker.ranking import priority
from worker.ranking.priority import RULES, Policy, ReadingKey, Standing


def standing(
    probabilities: Mapping[str, float] | Sequence[float] | None,
    policy: Policy,
    thresholds: Mapping[str, float],
    *,
    complete: bool = True,
) -> Standing:
    """Where the policy puts one study, by finding or (11,) in FINDINGS order; None: no film could be scored."""
    if probabilities is None:
        return priority.unscored(policy)
    if isinstance(probabilities, Mapping):
        probabilities = [probabilities[finding] for finding in FINDINGS]
    (place,) = priority.standings([probabilities], policy, thresholds, complete=[complete])
    return place


def why_before(earlier: ReadingKey, later: ReadingKey) -> str:
    """The first rule in which two keys differ; the earlier study must be before the later."""
    assert earlier < later
    return next(rule for rule, mine, other in zip(RULES, earlier, later, strict=True) if mine != other)
