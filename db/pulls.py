"""Pulling: the day up to which each peer was pulled, and the studies of which films could not be fetched."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import PullWatermark, UnpulledStudy
from db.upsert import insert

ILLEGAL = ""  # in the place of a UID that the Standard does not allow


@dataclass(frozen=True)
class Progress:
    """How far the pulls of a peer are: `day` is None until the first was pulled; `moved_at`: when one went on."""

    day: date | None
    moved_at: datetime


def progress(session: Session, peer: str) -> Progress | None:
    """How far the pulls of the peer are; None where none has begun."""
    row = session.get(PullWatermark, peer)
    return None if row is None else Progress(date.fromisoformat(row.day) if row.day else None, row.updated_at)


def watermark(session: Session, peer: str) -> date | None:
    """The last day that was pulled from the peer with those before it; None where none was yet."""
    found = progress(session, peer)
    return None if found is None else found.day


def begin(session: Session, peer: str) -> None:
    """Note the peer's first pull; of a later one nothing is noted."""
    row = insert(session, PullWatermark).values(peer=peer, day=None, updated_at=database_now(session))
    session.execute(row.on_conflict_do_nothing(index_elements=["peer"]))


def raise_watermark(session: Session, peer: str, day: date) -> None:
    """Note that the peer was pulled up to `day`; a later watermark stays."""
    moment = database_now(session)
    later = insert(session, PullWatermark).values(peer=peer, day=day.isoformat(), updated_at=moment)
    session.execute(
        later.on_conflict_do_update(
            index_elements=["peer"],
            set_={"day": later.excluded.day, "updated_at": moment},
            where=or_(PullWatermark.day.is_(None), PullWatermark.day < later.excluded.day),
        )
    )


def note_end(session: Session, peer: str) -> None:
    """Note that a pull of the peer came to its end."""
    session.execute(update(PullWatermark).where(PullWatermark.peer == peer).values(updated_at=database_now(session)))


def note_day(session: Session, peer: str, day: date, failed: Mapping[str, Counter[str]]) -> None:
    """Note what failed of a day, all of which was asked for: reasons by Study Instance UID. What failed before and is
    not among it has come, or is no longer there."""
    moment = database_now(session)
    for study, reasons in failed.items():
        _note(session, peer, day, study, reasons, moment=moment)
    session.execute(delete(UnpulledStudy).where(_of(peer, day), UnpulledStudy.last_failed_at < moment))


def note_study(session: Session, peer: str, day: date, study: str, reasons: Counter[str]) -> None:
    """Note what failed of one study, all of which was asked for."""
    if reasons:
        _note(session, peer, day, study, reasons, moment=database_now(session))
    else:
        session.execute(delete(UnpulledStudy).where(_of(peer, day), UnpulledStudy.study_instance_uid == study))


def unpulled(session: Session, peers: Sequence[str]) -> list[dict[str, str | int | datetime]]:
    """The studies of these peers of which films could not be fetched, by peer and day."""
    chosen = select(*UnpulledStudy.__table__.columns).where(UnpulledStudy.peer.in_(peers))
    ordered = chosen.order_by(UnpulledStudy.peer, UnpulledStudy.day, UnpulledStudy.study_instance_uid)
    return [dict(row) for row in session.execute(ordered).mappings()]


def unpulled_count(session: Session, peers: Sequence[str]) -> int:
    """How many studies of these peers have films that could not be fetched; illegal UIDs of a day count as one."""
    return session.scalar(select(func.count()).select_from(UnpulledStudy).where(UnpulledStudy.peer.in_(peers))) or 0


def to_try_again(session: Session, peer: str, *, before: date, failed_since: datetime) -> list[tuple[date, str]]:
    """Studies of days before `before` that failed first since a moment, as (day, Study Instance UID)."""
    chosen = select(UnpulledStudy.day, UnpulledStudy.study_instance_uid).where(
        UnpulledStudy.peer == peer,
        UnpulledStudy.day < before.isoformat(),
        UnpulledStudy.study_instance_uid != ILLEGAL,
        UnpulledStudy.first_failed_at >= failed_since,
    )
    return [(date.fromisoformat(day), study) for day, study in session.execute(chosen.order_by(UnpulledStudy.day))]


def forget_unpulled(session: Session, *, before: datetime) -> None:
    """Forget the studies that failed first before a moment."""
    session.execute(delete(UnpulledStudy).where(UnpulledStudy.first_failed_at < before))


def _of(peer: str, day: date) -> ColumnElement[bool]:
    return (UnpulledStudy.peer == peer) & (UnpulledStudy.day == day.isoformat())


def _note(session: Session, peer: str, day: date, study: str, reasons: Counter[str], *, moment: datetime) -> None:
    ((reason, _),) = reasons.most_common(1)
    latest = {"reason": reason, "failures": reasons.total(), "last_failed_at": moment}
    key = {"peer": peer, "day": day.isoformat(), "study_instance_uid": study}
    row = insert(session, UnpulledStudy).values(**key, **latest, first_failed_at=moment)
    session.execute(row.on_conflict_do_update(index_elements=list(key), set_=latest))
