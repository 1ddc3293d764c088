"""A checkpoint's reference distribution in SQL: what a probability is beside those of the reference films.

The views divide by the mean for the lift ("4 times the usual") and look up the share ("top 3 % of films").
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy.orm import Session

from db.base import rounded
from db.models import ReferenceFinding, ReferenceShare
from db.upsert import insert


def keep_reference(session: Session, checkpoint_id: int, reference: Mapping[str, Any]) -> None:
    """Write a checkpoint header's reference ("levels", "probabilities" by finding); one that is there is kept."""
    tables = reference.get("probabilities", {})
    means = [{"finding": finding, "mean": _mean(reference["levels"], table)} for finding, table in tables.items()]
    steps = [
        step | {"finding": finding} for finding, table in tables.items() for step in _steps(reference["levels"], table)
    ]
    for model, rows in ((ReferenceFinding, means), (ReferenceShare, steps)):
        if rows:
            statement = insert(session, model).on_conflict_do_nothing()
            session.execute(statement, [row | {"checkpoint_id": checkpoint_id} for row in rows])


def _mean(levels: Sequence[float], quantiles: Sequence[float]) -> float:
    """The area under the quantile function, straight between its levels: a few per cent more where the tail is long."""
    steps = zip(pairwise(levels), pairwise(quantiles), strict=True)
    return sum((right - left) * (low + high) / 2 for (left, right), (low, high) in steps)


def _steps(levels: Sequence[float], quantiles: Sequence[float]) -> list[dict[str, float]]:
    """Probabilities, each once, with the share of films that may reach them: for equal quantiles the largest.

    The last level, 1, is left out: from the highest quantile but one on, a film is among the top 1 %, and no smaller
    share can be told from a hundred levels.
    """
    shares = {0.0: 1.0}
    for level, probability in zip(levels[:-1], quantiles[:-1], strict=True):
        shares.setdefault(rounded(probability), rounded(1 - level))
    return [{"probability": probability, "share": share} for probability, share in shares.items()]
