"""A checkpoint that gives no probabilities: refused where it can be, and taken back where it ranks already."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sqlalchemy import select

from db import registry
from db.models import FilmScore, Study
from db.session import read_scope, session_scope
from tests.support.dicom_files import make_film
from tests.support.untrained import save_unsound
from tests.support.values import present
from training.checkpoint import Calibration, UnsoundCheckpoint, load_checkpoint
from worker.checkpoints import promotion
from worker.context import Context
from worker.doctor import examine
from worker.intake.receive import receive
from worker.monitoring.prometheus import WorkMetrics
from worker.queue.tasks import Service
from worker.scoring.inference import Classifier
from worker.terminal.refusals import refusal_of


@pytest.fixture
def unsound(tmp_path: Path) -> Path:
    return save_unsound(tmp_path / "unsound.safetensors")


@pytest.fixture
def study(context, tmp_path) -> int:
    """A study that waits; its id."""
    folder = tmp_path / "films"
    folder.mkdir()
    make_film(folder / "a.dcm")
    (study_id,) = receive(context, [folder]).studies
    return study_id


def make_champion(context: Context, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let it rank as it could before files were tried; its digest."""
    with monkeypatch.context() as patch, session_scope(context.engine) as session:
        patch.setattr(promotion, "prove", lambda *_, **__: None)
        row = context.register(session, path)
        promotion.promote(context, session, row, reason="a test", override="a test")
        return row.digest


def states(context: Context) -> dict[str, tuple[str, str | None]]:
    with read_scope(context.engine) as session:
        return {row.digest: (row.state, row.state_reason) for row in registry.everything(session)}


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1])
def test_a_classifier_gives_probabilities_or_raises(untrained_checkpoint, monkeypatch, value):
    classifier = Classifier(load_checkpoint(untrained_checkpoint), device=torch.device("cpu"), batch_size=2)
    wrong = np.full((2, 11), 0.5, dtype=np.float32)
    wrong[1, 3] = value
    monkeypatch.setattr(Calibration, "probabilities", lambda *_: wrong)
    with pytest.raises(UnsoundCheckpoint, match="no probabilities"):
        classifier.predict(np.zeros((2, 64, 64), dtype=np.uint8))


def test_no_override_promotes_it(context, unsound):
    before = context.live().digest
    with session_scope(context.engine) as session:
        row = context.register(session, unsound)
        with pytest.raises(UnsoundCheckpoint):
            promotion.promote(context, session, row, reason="a test", override="all the same")
    assert context.live().digest == before


def test_doctor_tells_of_a_champion_that_cannot_score(context, unsound, monkeypatch):
    make_champion(context, unsound, monkeypatch)
    (found,) = [check for check in examine(context) if check.name == "checkpoint"]
    assert not found.ok
    assert "no probabilities" in found.text


@pytest.mark.parametrize("at_work", [False, True])
def test_a_worker_takes_it_back_and_scores_by_the_one_before(context, unsound, study, monkeypatch, at_work):
    good = context.live()
    service = Service(context, metrics=WorkMetrics())
    if at_work:
        service.scorer()
    bad = make_champion(context, unsound, monkeypatch)
    service.score(study)
    service.close()
    assert context.live().digest == good.digest
    state, reason = states(context)[bad]
    assert state == "refused"
    assert "no probabilities" in present(reason)
    with read_scope(context.engine) as session:
        assert session.execute(select(Study.state, Study.attempts)).one() == ("scored", 1)
        assert session.scalars(select(FilmScore.checkpoint_id)).all() == [good.checkpoint_id]


def test_a_second_worker_takes_nothing_back_again(context, unsound, monkeypatch):
    good = context.live().digest
    bad = make_champion(context, unsound, monkeypatch)
    for _ in range(2):
        promotion.take_back(context, UnsoundCheckpoint("a test", digest=bad))
    assert context.live().digest == good


def test_one_that_cannot_score_either_is_passed_over(context, unsound, tmp_path, monkeypatch):
    good = context.live().digest
    make_champion(context, save_unsound(tmp_path / "larger.safetensors", size=96), monkeypatch)
    bad = make_champion(context, unsound, monkeypatch)
    promotion.take_back(context, UnsoundCheckpoint("a test", digest=bad))
    assert context.live().digest == good


def test_without_another_the_worker_ends_and_the_study_waits(context, unsound, study, monkeypatch):
    good = context.live().digest
    make_champion(context, unsound, monkeypatch)
    with session_scope(context.engine) as session:
        first = registry.by_digest(session, good)
        registry.set_state(session, first, "refused", by="a test")
    stopped: list[int] = []
    really = os.kill  # decoders are still to be ended by it

    def kill(pid: int, signal_number: int) -> None:
        stopped.append(signal_number) if pid == os.getpid() else really(pid, signal_number)

    monkeypatch.setattr(os, "kill", kill)
    service = Service(context, metrics=WorkMetrics())
    with pytest.raises(promotion.NoSoundCheckpoint):
        service.score(study)
    service.close()
    assert stopped
    assert service.failure is not None
    refusal = refusal_of(service.failure)
    assert refusal is not None
    assert refusal[1] == 3
    assert "nightread models add" in refusal[0]
    with read_scope(context.engine) as session:
        assert session.execute(select(Study.state, Study.attempts)).one() == ("waiting", 0)
        assert session.scalars(select(FilmScore.id)).all() == []
