"""Why one study is read before another, by the reading key: what SQL's `above_next_because` is held against."""

from worker.ranking.priority import RULES, ReadingKey


def why_before(earlier: ReadingKey, later: ReadingKey) -> str:
    """The first rule in which two keys differ; the earlier study must be before the later."""
    assert earlier < later
    return next(rule for rule, mine, other in zip(RULES, earlier, later, strict=True) if mine != other)
