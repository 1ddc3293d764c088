"""A site's own past, for a replay in another order: studies, when they were read, and what readers confirmed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Review, StudyPriority


def studies_read(session: Session, *, since: datetime) -> Sequence[StudyPriority]:
    """The places of the studies received since then that people have read.

    Left out: studies said to have been read before they were received (the clock of a RIS may be off).
    """
    place = StudyPriority
    return session.scalars(select(place).where(place.received_at >= since, place.read_at >= place.received_at)).all()


def confirmed(session: Session, *, since: datetime) -> Mapping[int, Mapping[str, bool]]:
    """Study -> assessed finding -> whether any reader found it present, of the studies received since then."""
    reviews = (
        select(Review.study_id, Review.finding, Review.verdict)
        .join(StudyPriority, StudyPriority.study_id == Review.study_id)
        .where(Review.verdict != "not_assessed", StudyPriority.received_at >= since)
    )
    present: dict[int, dict[str, bool]] = defaultdict(dict)
    for study_id, finding, verdict in session.execute(reviews):
        present[study_id][finding] = present[study_id].get(finding, False) or verdict == "present"
    return present
