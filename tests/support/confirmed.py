"""A site whose radiologists confirmed what they saw: small films on which a finding can be seen, and their reviews."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import insert
from sqlalchemy.orm import Session

from db.base import database_now
from db.models import Instance, Review, Study, StudyPriority
from tests.support.dicom_files import make_film
from training.checkpoint import Header, save_checkpoint
from training.findings import FINDINGS
from training.imaging.preprocessing import Preprocessing
from training.networks import make_network

SIDE = 96


def picture(present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (SIDE, SIDE): gray noise, and for each finding of `present` (11,) a bright square in its place."""
    film = rng.integers(60, 120, size=(SIDE, SIDE)).astype(np.uint8)
    for k in np.flatnonzero(present):
        row, column = 24 * (k // 4), 24 * (k % 4)
        film[row + 4 : row + 20, column + 4 : column + 20] = 230
    return film


def confirm_films(
    session: Session, folder: Path, *, films: int, first: int = 1, seed: int = 0, days_ago: float = 1.0
) -> None:
    """Scored studies of one film each, two of a patient, every finding confirmed present or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, now = np.random.default_rng(seed), database_now(session)
    studies, instances, places, reviews = [], [], [], []
    for number in range(first, first + films):
        present = rng.random(len(FINDINGS)) < 0.3
        view, path = ("AP", "PA")[number % 2], folder / f"{number}.dcm"
        pixels = picture(present, rng)
        if not path.exists():  # the same seed drew the same film
            make_film(path, pixels=pixels, view_position=view, SOPInstanceUID=f"2.25.1.{number}")
        at = now - timedelta(days=days_ago)
        studies.append(
            {"id": number, "study_instance_uid": f"2.25.{number}", "patient_key": f"patient-{number // 2}",
             "stat": False, "patient_sex": "MF"[number % 3 % 2], "patient_age_years": 20 + number % 60,
             "received_at": at, "state": "scored", "revision": 1, "attempts": 1, "suspect": False}
        )  # fmt: skip
        instances.append(
            {"id": number, "study_id": number, "sop_instance_uid": f"2.25.1.{number}", "path": str(path), "view": view,
             "state": "scored", "in_scope": True, "received_at": at}
        )  # fmt: skip
        places.append(
            {"study_id": number, "stat": False, "received_at": at, "category": "D", "category_a": False, "urgency": 0.1,
             "ranked_at": at}
        )  # fmt: skip
        reviews += [
            {"study_id": number, "finding": finding, "verdict": "present" if here else "absent", "reader": "dr",
             "reviewed_at": at}
            for finding, here in zip(FINDINGS, present, strict=True)
        ]  # fmt: skip
    for table, rows in ((Study, studies), (Instance, instances), (StudyPriority, places), (Review, reviews)):
        session.execute(insert(table), rows)


def save_beginner(path: Path) -> Path:
    """A network with random weights whose norms have seen such films, so that it can learn from its first step on."""
    torch.manual_seed(0)
    network, rng = make_network("mobilenet"), np.random.default_rng(0)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what comes
    preprocessing = Preprocessing(size=SIDE)
    films = np.stack([picture(rng.random(len(FINDINGS)) < 0.3, rng) for _ in range(32)])
    with torch.no_grad():
        network.train()(preprocessing.tensor(torch.from_numpy(films)))
    for norm in norms:
        norm.momentum = 0.1
    header = Header("mobilenet", preprocessing=preprocessing, thresholds={f: {"flag_10": 0.5} for f in FINDINGS})
    save_checkpoint(path, header, state=network.state_dict())
    return path
