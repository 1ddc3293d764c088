"""What a person may see: never scores of the blind share; where review comes first, scores only after one's own."""

from collections.abc import Sequence

from sqlalchemy import RowMapping
from sqlalchemy.orm import Session

from db import reading
from db.models import Checkpoint, StudyPriority
from db.morning import Film
from training.pointing import findings_without_map
from worker.ranking.priority import BLIND
from worker.web.requests import Visit


def may_see_scores(place: StudyPriority | None) -> bool:
    """Whether a study stands by what the model saw. A blind one does not, whatever else its flag says."""
    return place is not None and place.checkpoint_id is not None and place.flag != BLIND


def hidden_from(session: Session, visit: Visit, study_ids: list[int]) -> set[int]:
    """The studies whose scores this person may not see yet, because their own review comes first."""
    if not visit.settings.web.review_first:
        return set()
    return set(study_ids) - reading.reviewed_by(session, visit.me.name, study_ids)


def can_be_shown(film: Film) -> bool:
    """Whether a film was decoded before: what failed is not tried again for its picture."""
    return film.state == "scored" and film.pixel_digest is not None


def without_map(parts: Sequence[RowMapping], checkpoint: Checkpoint | None) -> dict[str, str]:
    """The findings that have no heat map, each with the sentence that says why."""
    scores = [(part["finding"], part["probability"], part["threshold"]) for part in parts]
    return findings_without_map(scores, training={} if checkpoint is None else checkpoint.header.get("training", {}))
