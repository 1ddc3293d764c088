"""Promotion and the way back, on both databases."""

from pathlib import Path

import pytest
from dicom_files import make_film
from sqlalchemy import select

from db import registry
from db.models import PolicyFindingRow, StudyPriority
from db.policies import active
from db.session import read_scope, session_scope
from training.checkpoint import CheckpointError, Header, build, load_checkpoint, save_checkpoint
from training.findings import FINDINGS
from worker import models
from worker.house import House
from worker.intake import receive
from worker.metrics import WorkMetrics
from worker.scoring import open_scorer, score_waiting
from worker.tasks import Service


@pytest.fixture
def challenger(tmp_path: Path, untrained_checkpoint: Path) -> Path:
    """The same network under another digest, with other thresholds."""
    old = load_checkpoint(untrained_checkpoint)
    header = Header(old.network, preprocessing=old.preprocessing, thresholds={f: {"flag_10": 0.7} for f in FINDINGS})
    path = tmp_path / "challenger.safetensors"
    save_checkpoint(path, header, state=build(old).state_dict())
    return path


def register(house: House, path: Path) -> str:
    with session_scope(house.engine) as session:
        return house.register(session, path).digest


def promote(house: House, digest: str) -> None:
    with session_scope(house.engine) as session:
        models.promote(house, session, registry.by_digest(session, digest), reason="a test", override="a test")


def test_a_promoted_checkpoint_ranks_with_its_own_threshold_for_category_a(house, challenger):
    old = house.live()
    digest = register(house, challenger)
    assert house.live().digest == old.digest, "a challenger changes nothing"
    promote(house, digest)
    live = house.live()
    assert live.digest == digest
    assert live.policy.policy.version == old.policy.policy.version + 1
    with read_scope(house.engine) as session:
        row = select(PolicyFindingRow.threshold).where(
            PolicyFindingRow.policy_id == active(session).id, PolicyFindingRow.finding == "Pneumothorax"
        )
        assert session.scalar(row) == pytest.approx(0.7)


def test_rollback_brings_the_old_champion_back(house, challenger):
    old = house.live().digest
    promote(house, register(house, challenger))
    with session_scope(house.engine) as session:
        models.rollback(house, session, reason="worse at night")
    assert house.live().digest == old
    assert house.live().policy.policy.version == 3


def test_a_second_rollback_goes_further_back_and_never_to_what_was_taken_back(house, challenger, other):
    first = house.live().digest
    second = register(house, other)
    promote(house, second)
    third = register(house, challenger)
    promote(house, third)
    for before in (second, first):
        with session_scope(house.engine) as session:
            models.rollback(house, session, reason="worse at night")
        assert house.live().digest == before
    with pytest.raises(models.NotPromoted), session_scope(house.engine) as session:
        models.rollback(house, session, reason="worse at night")
    with read_scope(house.engine) as session:
        taken_back = registry.by_digest(session, third)
        assert (taken_back.state, taken_back.state_reason) == ("refused", "taken back: worse at night")


def test_rollback_without_a_former_champion_says_so(house):
    with pytest.raises(models.NotPromoted), session_scope(house.engine) as session:
        models.rollback(house, session, reason="none")


def test_the_champion_survives_the_loss_of_the_file_it_came_from(house, challenger):
    promote(house, register(house, challenger))
    challenger.unlink()
    assert load_checkpoint(house.live().path, expected_digest=house.live().digest)


def test_a_damaged_file_cannot_be_promoted_and_changes_nothing(house, challenger):
    old = house.live().digest
    digest = register(house, challenger)
    with session_scope(house.engine) as session:
        path = house.file_of(registry.by_digest(session, digest))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        promote(house, digest)
    assert house.live().digest == old


def test_a_service_takes_up_a_new_champion_between_two_studies_without_mixing_them(house, challenger, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    make_film(folder / "a.dcm")
    service = Service(house, metrics=WorkMetrics())
    studies = receive(house, [folder]).studies
    service.score(*studies)
    old = house.live().checkpoint_id
    promote(house, register(house, challenger))
    make_film(folder / "b.dcm")
    service.score(*receive(house, [folder]).studies)
    service.close()
    with read_scope(house.engine) as session:
        by = session.scalars(select(StudyPriority.checkpoint_id).order_by(StudyPriority.study_id)).all()
    assert by == [old, house.live().checkpoint_id]


def test_what_is_in_hand_is_finished_under_the_old_checkpoint(house, tmp_path):
    for i in range(3):
        make_film(tmp_path / f"{i}.dcm")
    receive(house, [tmp_path])
    claims = iter([True])
    with open_scorer(house) as scorer:
        tally = score_waiting(scorer, kind="night", may_claim=lambda: next(claims, False))
    assert tally.scored == 3
