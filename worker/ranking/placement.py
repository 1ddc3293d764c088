"""Where studies go on the list: what scoring writes, the shadow notes, and another policy changes."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from db.base import rounded
from db.results import PriorityResult
from training.findings import FINDINGS
from worker.ranking import priority
from worker.ranking.priority import BLIND, NOT_SCORED, Policy


def placed_unscored(study_id: int, rules: Policy, *, blind: bool) -> PriorityResult:
    """Where a study stands of which nothing was scored, or that is drawn to stand so."""
    place = priority.unscored(rules)
    flag = BLIND if blind else NOT_SCORED
    return PriorityResult(study_id, place.category, rounded(place.urgency), flag, None, None, None)


def placed_together(
    study_ids: Sequence[int],
    probabilities: npt.ArrayLike,
    complete: Sequence[bool],
    *,
    rules: Policy,
    thresholds: Mapping[str, float],
    checkpoint_id: int,
) -> list[PriorityResult]:
    """Where `rules` put N studies that one checkpoint scored, by their probabilities (N, 11)."""
    table = np.asarray(probabilities, dtype=np.float64)
    tops = priority.top_findings(table, rules, thresholds)
    places = priority.standings(table, rules, thresholds, complete=complete)
    return [
        PriorityResult(
            study_id=study_id,
            category=place.category,
            urgency=rounded(place.urgency),
            flag=place.flag,
            top_finding=FINDINGS[top],
            top_probability=rounded(row[top]),
            checkpoint_id=checkpoint_id,
        )
        for study_id, place, row, top in zip(study_ids, places, table, tops, strict=True)
    ]
