"""Confirmed labels, film by film: the labels that retraining learns from, and nothing else."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from db.models import FINDING_COLUMNS, Instance, Review, Study, StudyPriority

FILM_VIEWS = ("AP", "PA")


@dataclass(frozen=True)
class ConfirmedFilm:
    """A scored film of a study that somebody confirmed.

    `labels` (11,) in vocabulary order: 1 present, 0 absent, None unknown. `patient` is the site's keyed hash, or the
    study's number where the header names no patient.
    """

    instance_id: int
    path: str
    view: str
    patient: str
    patient_sex: str | None
    patient_age_years: int | None
    confirmed_at: datetime
    labels: tuple[int | None, ...]


@dataclass(frozen=True)
class _Word:
    """Latest verdicts on a study."""

    at: datetime
    labels: tuple[int | None, ...]


def confirmed_films(session: Session, *, until: datetime, unconfirmed_is_absent: bool) -> list[ConfirmedFilm]:
    """Every scored film of the studies that were confirmed up to `until`, by instance id.

    A later opinion outweighs an earlier one, whoever gave it, and `not_assessed` makes the finding unknown again. With
    `unconfirmed_is_absent` a study that was read counts, and what nobody named in it is absent; else what nobody named
    is unknown.
    """
    words = _words(session, until=until, unconfirmed_is_absent=unconfirmed_is_absent)
    confirmed = _confirmations(until, unconfirmed_is_absent)
    films = (
        select(Instance.id, Instance.path, Instance.view, Study.id, Study.patient_key, Study.patient_sex,
               Study.patient_age_years)
        .join(Study, Study.id == Instance.study_id)
        .where(Instance.state == "scored", Instance.view.in_(FILM_VIEWS), or_(*confirmed))
        .order_by(Instance.id)
    )  # fmt: skip
    return [
        ConfirmedFilm(
            instance, path, view or "", key or f"study-{study}", sex, age, words[study].at, words[study].labels
        )
        for instance, path, view, study, key, sex, age in session.execute(films)
        if any(label is not None for label in words[study].labels)
    ]


def _confirmations(until: datetime, unconfirmed_is_absent: bool) -> list[ColumnElement[bool]]:
    reviewed = select(Review.id).where(Review.study_id == Study.id, Review.reviewed_at <= until).exists()
    read = select(StudyPriority.study_id).where(StudyPriority.study_id == Study.id, StudyPriority.read_at <= until)
    return [reviewed, read.exists()] if unconfirmed_is_absent else [reviewed]


def _words(session: Session, *, until: datetime, unconfirmed_is_absent: bool) -> dict[int, _Word]:
    opinions: dict[int, list[Review]] = defaultdict(list)
    reviews = select(Review).where(Review.reviewed_at <= until).order_by(Review.reviewed_at, Review.id)
    for opinion in session.scalars(reviews):
        opinions[opinion.study_id].append(opinion)
    read: dict[int, datetime] = {}
    if unconfirmed_is_absent:
        listed = select(StudyPriority.study_id, StudyPriority.read_at).where(StudyPriority.read_at <= until)
        read = {study: at for study, at in session.execute(listed) if at is not None}
    return {study: _word(opinions.get(study, ()), read.get(study)) for study in {*opinions, *read}}


def _word(opinions: Sequence[Review], read_at: datetime | None) -> _Word:
    labels: dict[str, int | None] = dict.fromkeys(FINDING_COLUMNS, None if read_at is None else 0)
    for opinion in opinions:  # oldest first
        labels[opinion.finding.lower()] = {"present": 1, "absent": 0}.get(opinion.verdict)
    latest = max([opinion.reviewed_at for opinion in opinions] + ([read_at] if read_at else []))
    return _Word(latest, tuple(labels.values()))
