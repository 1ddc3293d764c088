"""Where one study goes on the list: what scoring writes, the shadow notes, and another policy changes."""

from collections.abc import Mapping

from db.results import PriorityResult
from worker.ranking import priority
from worker.ranking.priority import BLIND, NOT_SCORED, Policy, Probabilities


def placed(
    study_id: int,
    probabilities: Probabilities | None,
    *,
    rules: Policy,
    thresholds: Mapping[str, float],
    checkpoint_id: int | None,
    complete: bool = True,
    blind: bool = False,
) -> PriorityResult:
    """Where `rules` put a study by its probabilities, (11,) in FINDINGS order or None when no film was scored.

    `complete` False: some film in scope could not be scored. `blind`: the study stands as an unscored one does, and its
    place shows nothing of what the model saw.
    """
    if blind or probabilities is None or checkpoint_id is None:
        place = priority.standing(None, rules, thresholds)
        flag = BLIND if blind else NOT_SCORED
        return PriorityResult(study_id, place.category, round(place.urgency, 6), flag, None, None, None)
    place = priority.standing(probabilities, rules, thresholds, complete=complete)
    top = priority.contributions(probabilities, rules)[0]
    return PriorityResult(
        study_id=study_id,
        category=place.category,
        urgency=round(place.urgency, 6),
        flag=place.flag,
        top_finding=top.finding,
        top_probability=round(top.probability, 6),
        checkpoint_id=checkpoint_id,
    )
