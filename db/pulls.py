"""Watermarks of pulling: the day up to which each peer's films are here."""

from datetime import date

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import PullWatermark
from db.upsert import insert


def watermark(session: Session, peer: str) -> date | None:
    """The last day of which every film was pulled from the peer; None where none was yet."""
    day = session.scalar(select(PullWatermark.day).where(PullWatermark.peer == peer))
    return None if day is None else date.fromisoformat(day)


def raise_watermark(session: Session, peer: str, day: date) -> None:
    """Note that every film up to `day` was pulled; a later watermark stays."""
    moment = database_now(session)
    later = insert(session, PullWatermark).values(peer=peer, day=day.isoformat(), updated_at=moment)
    session.execute(
        later.on_conflict_do_update(
            index_elements=["peer"],
            set_={"day": later.excluded.day, "updated_at": moment},
            where=PullWatermark.day < later.excluded.day,
        )
    )
