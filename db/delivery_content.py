"""What a delivery says: the study's result as the database holds it now, and the result that went out before."""

from dataclasses import dataclass

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from db.deliveries import AWAY, LEFT
from db.models import (
    FINDING_COLUMNS,
    Checkpoint,
    Delivery,
    FilmScore,
    Instance,
    PolicyRow,
    Study,
    StudyPriority,
)


@dataclass(frozen=True)
class FilmOfStudy:
    """A scored film, with its probabilities in vocabulary order."""

    instance_id: int
    path: str
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    pixel_digest: str | None
    rows: int
    columns: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Predecessor:
    """The result that went to the same destination before, or may be there, and its checkpoint."""

    object_uid: str
    checkpoint_digest: str


@dataclass(frozen=True)
class Content:
    """The rows behind a delivery."""

    delivery: Delivery
    study: Study
    place: StudyPriority
    checkpoint: Checkpoint
    policy: PolicyRow
    films: tuple[FilmOfStudy, ...]
    predecessor: Predecessor | None


def content_of(session: Session, delivery_id: int) -> Content | None:
    """The content of a delivery; None where it is not what the database says of the study any more."""
    delivery = session.get_one(Delivery, delivery_id)
    study, place = session.get_one(Study, delivery.study_id), session.get(StudyPriority, delivery.study_id)
    now = (study.state, study.revision, place and place.checkpoint_id, place and place.policy_id)
    if place is None or now != ("scored", delivery.revision, delivery.checkpoint_id, delivery.policy_id):
        return None
    checkpoint = session.get_one(Checkpoint, delivery.checkpoint_id)
    policy = session.get_one(PolicyRow, delivery.policy_id)
    films = _films(session, study, checkpoint)
    return Content(delivery, study, place, checkpoint, policy, films, _predecessor(session, delivery))


def _films(session: Session, study: Study, checkpoint: Checkpoint) -> tuple[FilmOfStudy, ...]:
    file = (
        Instance.id,
        Instance.path,
        Instance.sop_class_uid,
        Instance.series_instance_uid,
        Instance.sop_instance_uid,
        Instance.pixel_digest,
        Instance.rows,
        Instance.columns,
    )
    probabilities = [getattr(FilmScore, name) for name in FINDING_COLUMNS]
    scored = (
        select(*file, *probabilities)
        .join(FilmScore, and_(FilmScore.instance_id == Instance.id, FilmScore.checkpoint_id == checkpoint.id))
        .where(Instance.study_id == study.id, Instance.state == "scored")
        .order_by(Instance.id)
    )
    return tuple(
        FilmOfStudy(number, path, sop_class or "", series or "", uid, digest, rows or 1, columns or 1, tuple(scores))
        for number, path, sop_class, series, uid, digest, rows, columns, *scores in session.execute(scored)
    )


def _predecessor(session: Session, delivery: Delivery) -> Predecessor | None:
    """The newest that was sent; where none was, the newest that was tried and not refused: its answer may be lost."""
    is_sent = Delivery.state.in_(("sent", "confirmed"))
    may_be_there = and_(Delivery.attempts > 0, or_(Delivery.reason.is_(None), Delivery.reason.in_((AWAY, LEFT))))
    before = (
        select(Delivery.object_uid, Checkpoint.digest)
        .join(Checkpoint, Checkpoint.id == Delivery.checkpoint_id)
        .where(
            Delivery.study_id == delivery.study_id,
            Delivery.destination == delivery.destination,
            Delivery.kind == delivery.kind,
            Delivery.id < delivery.id,
            or_(is_sent, may_be_there),
        )
        .order_by(is_sent.desc(), Delivery.id.desc())
    )
    row = session.execute(before.limit(1)).one_or_none()
    return None if row is None else Predecessor(*row)
