"""Data for judging drift: the scores of a period and the kinds of film that came in; and the stored judgements."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.base import database_now
from db.bulk import upsert_many
from db.models import FINDING_COLUMNS, SETTLED, Drift, FilmScore, Instance, Study

ATTRIBUTES: Mapping[str, InstrumentedAttribute[Any]] = {
    "view": Instance.view,
    "sex": Study.patient_sex,
    "age": Study.patient_age_years,
    "modality": Instance.modality,
    "manufacturer": Instance.manufacturer,
}


@dataclass(frozen=True)
class Arrivals:
    """Arrivals of a period, as counts.

    films: attribute -> value -> scored films; None where the header did not say. studies: settled state -> studies.
    instances: reason -> settled instances that are or may be chest films; None: nothing was wrong with them.
    """

    films: Mapping[str, Mapping[Any, int]]
    studies: Mapping[str, int]
    instances: Mapping[str | None, int]


@dataclass(frozen=True)
class Figure:
    """One figure of one day: how far it moved, from what; `reference` None where there is nothing to compare with."""

    measure: str
    subject: str
    value: float
    reference: float | None
    level: str
    films: int


def scores(session: Session, *, checkpoint_id: int, since: datetime, until: datetime) -> list[tuple[float, ...]]:
    """A checkpoint's probabilities of the films whose study came in the period, each (11,) in vocabulary order."""
    rows = session.execute(
        select(*(getattr(FilmScore, name) for name in FINDING_COLUMNS))
        .join(Instance, Instance.id == FilmScore.instance_id)
        .join(Study, Study.id == Instance.study_id)
        .where(FilmScore.checkpoint_id == checkpoint_id, Instance.state == "scored", *_instances_of(since, until))
    )
    return [tuple(row) for row in rows]


def last_arrival(session: Session) -> datetime | None:
    """When the newest study came that is settled."""
    return session.scalar(select(func.max(Study.received_at)).where(Study.state.in_(SETTLED)))


def arrivals(session: Session, *, since: datetime, until: datetime) -> Arrivals:
    """Arrivals from `since` up to but not including `until`."""
    kinds = (*ATTRIBUTES.values(), Instance.state, Instance.reason, Instance.in_scope)
    counted = (
        select(*kinds, func.count())
        .join(Study, Study.id == Instance.study_id)
        .where(*_instances_of(since, until))
        .group_by(*kinds)
    )
    films: dict[str, Counter[Any]] = {name: Counter() for name in ATTRIBUTES}
    instances: Counter[str | None] = Counter()
    for *values, state, reason, in_scope, count in session.execute(counted):
        if state == "scored":
            for name, value in zip(ATTRIBUTES, values, strict=True):
                films[name][value] += count
        if in_scope and state in SETTLED:
            instances[reason] += count
    came = (Study.state.in_(SETTLED), *_came(since, until))
    states = select(Study.state, func.count()).where(*came).group_by(Study.state)
    return Arrivals(films=films, studies=dict(session.execute(states).all()), instances=instances)


def _came(since: datetime, until: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Study.received_at >= since, Study.received_at < until


def _instances_of(since: datetime, until: datetime) -> tuple[ColumnElement[bool], ...]:
    """The instances of those studies. None came before its study: this condition spares the
    archive that lies before."""
    return Instance.received_at >= since, *_came(since, until)


def record(session: Session, figures: Sequence[Figure], *, day: str, checkpoint_id: int) -> None:
    """Write a day's figures; those of a day that was judged before go, also where nothing takes their place."""
    session.execute(delete(Drift).where(Drift.day == day, Drift.checkpoint_id == checkpoint_id))
    same = {"day": day, "checkpoint_id": checkpoint_id, "computed_at": database_now(session)}
    # Upserted all the same: what another process writes of this day, side by side, no delete of ours sees.
    upsert_many(session, Drift, [asdict(figure) for figure in figures], unique=UNIQUE, same=same)


UNIQUE = ("day", "checkpoint_id", "measure", "subject")


def latest(session: Session) -> Sequence[Drift]:
    """All figures of the last day that was judged, by the checkpoint that was live when it was."""
    newest = session.scalars(select(Drift).order_by(Drift.day.desc(), Drift.computed_at.desc()).limit(1)).first()
    if newest is None:
        return ()
    same_day = select(Drift).where(Drift.day == newest.day, Drift.checkpoint_id == newest.checkpoint_id)
    return session.scalars(same_day.order_by(Drift.id)).all()


def history(session: Session, *, checkpoint_id: int, first: str, last: str) -> Sequence[Drift]:
    """A checkpoint's figures from the day `first` to the day `last`, oldest first."""
    days = select(Drift).where(Drift.checkpoint_id == checkpoint_id, Drift.day.between(first, last))
    return session.scalars(days.order_by(Drift.day, Drift.id)).all()
