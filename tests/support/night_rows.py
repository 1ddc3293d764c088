"""Rows of a night for the tests of the morning page: made with SQLAlchemy, without a film on disk."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from db import policies, registry, runs
from db.base import database_now
from db.models import FINDING_COLUMNS, Checkpoint, FilmScore, Instance, Run, Study, StudyPriority
from tests.support.reading_keys import standing
from training.findings import FINDINGS
from worker.ranking import policy, priority

THRESHOLDS = dict.fromkeys(FINDINGS, 0.5)
PATIENT_KEY = "feedfacecafe" * 5  # what must never show on a page
FOLDER = "/archive/DOE^JANE"  # a path can name a patient


def add_champion(session: Session, *, path: str = "/nowhere.safetensors", network: str = "mobilenet") -> Checkpoint:
    """A champion and the default policy."""
    header = {
        "thresholds": {finding: {policy.THRESHOLD: cut} for finding, cut in THRESHOLDS.items()},
        "training": {"films": {"train": 1234}, "patients": {"train": 987}},
        "code_commit": "c0ffee",
    }
    row = registry.register(
        session, digest="ab" * 32, path=path, network=network, header=header, reference={}, by="test"
    )
    registry.set_state(session, row, "champion", by="test")
    policy.activate_default(session, capacity=THRESHOLDS)
    session.flush()
    return row


def open_run(session: Session) -> Run:
    checkpoint, active = registry.champion(session), policies.active(session)
    assert checkpoint is not None
    assert active is not None
    run_id = runs.open_run(
        session, kind="night", checkpoint_id=checkpoint.id, policy_id=active.id, settings={}, shared=False
    )
    return session.get_one(Run, run_id)


def add_studies(
    session: Session, run: Run, probabilities: Sequence[Mapping[str, float]], *, first: int = 1, **study: Any
) -> None:
    """Scored studies numbered from `first`, one film each, ranked by the default policy; findings left out are .01."""
    received = study.pop("received_at", None) or database_now(session) - timedelta(minutes=90)
    tables: tuple[list[dict[str, Any]], ...] = ([], [], [], [])
    for number, given in enumerate(probabilities, start=first):
        scores = {finding: given.get(finding, 0.01) for finding in FINDINGS}
        for rows, row in zip(tables, _rows(number, scores, run, received, study), strict=True):
            rows.append(row)
    for table, rows in zip((Study, Instance, FilmScore, StudyPriority), tables, strict=True):
        session.execute(insert(table), rows)


def _rows(
    number: int, scores: Mapping[str, float], run: Run, received: datetime, study: Mapping[str, Any]
) -> tuple[dict[str, Any], ...]:
    place = standing(scores, priority.DEFAULT_POLICY, THRESHOLDS)
    about = {
        "id": number,
        "study_instance_uid": f"2.25.{number}",
        "accession_number": f"ACC{number:05d}",
        "patient_key": PATIENT_KEY,
        "patient_age_years": 64,
        "received_at": received,
        "settled_at": received,
        "state": "scored",
        "run_id": run.id,
        "stat": False,
    } | dict(study)
    film = {
        "id": number,
        "study_id": number,
        "sop_instance_uid": f"2.25.{number}.1",
        "path": f"{FOLDER}/{number}.dcm",
        "modality": "DX",
        "view": "PA",
        "rows": 2500,
        "columns": 2048,
        "state": "scored",
        "pixel_digest": f"{number:064x}",
        "received_at": received,
    }
    columns = dict(zip(FINDING_COLUMNS, scores.values(), strict=True))
    ids = {"checkpoint_id": run.checkpoint_id}
    score = {"id": number, "instance_id": number, "run_id": run.id, "scored_at": received, **ids, **columns}
    listed = {
        "study_id": number,
        "stat": about["stat"],
        "received_at": received,
        "category": place.category,
        "category_a": place.category == "A",
        "urgency": place.urgency,
        "policy_id": run.policy_id,
        "ranked_at": received,
        **ids,
    }
    return about, film, score, listed


def add_unscored(
    session: Session, number: int, *, state: str, reason: str, accession_number: str | None = None
) -> None:
    """A study that no model could score, at category B."""
    now = database_now(session)
    received = now - timedelta(minutes=30)
    session.execute(
        insert(Study).values(
            id=number, study_instance_uid=f"2.25.{number}", accession_number=accession_number, received_at=received,
            settled_at=now, state=state, reason=reason, attempts=1,
        )
    )  # fmt: skip
    session.execute(
        insert(Instance).values(
            id=number, study_id=number, sop_instance_uid=f"2.25.{number}.1", path=f"{FOLDER}/{number}.dcm",
            modality="CR", state=state, reason=reason, received_at=received,
        )
    )  # fmt: skip
    session.execute(
        insert(StudyPriority).values(
            study_id=number, stat=False, received_at=received, category="B", category_a=False, urgency=0.4,
            flag="not_scored", ranked_at=now,
        )
    )  # fmt: skip
