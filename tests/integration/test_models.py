"""Promotion and the way back, on both databases."""

from pathlib import Path

import pytest
from sqlalchemy import select

from db import registry
from db.models import PolicyFindingRow, StudyPriority
from db.policies import active
from db.session import read_scope, session_scope
from tests.support.dicom_files import make_film
from training.checkpoint import CheckpointError, Header, build, load_checkpoint, save_checkpoint
from training.findings import FINDINGS
from worker.checkpoints import promotion
from worker.context import Context
from worker.intake.receive import receive
from worker.monitoring.prometheus import WorkMetrics
from worker.queue.tasks import Service
from worker.scoring.pipeline import open_scorer, score_waiting


@pytest.fixture
def challenger(tmp_path: Path, untrained_checkpoint: Path) -> Path:
    """The same network under another digest, with other thresholds."""
    old = load_checkpoint(untrained_checkpoint)
    header = Header(old.network, preprocessing=old.preprocessing, thresholds={f: {"flag_10": 0.7} for f in FINDINGS})
    path = tmp_path / "challenger.safetensors"
    save_checkpoint(path, header, state=build(old).state_dict())
    return path


def register(context: Context, path: Path) -> str:
    with session_scope(context.engine) as session:
        return context.register(session, path).digest


def promote(context: Context, digest: str) -> None:
    with session_scope(context.engine) as session:
        promotion.promote(context, session, registry.by_digest(session, digest), reason="a test", override="a test")


def test_a_promoted_checkpoint_ranks_with_its_own_threshold_for_category_a(context, challenger):
    old = context.live()
    digest = register(context, challenger)
    assert context.live().digest == old.digest, "a challenger changes nothing"
    promote(context, digest)
    live = context.live()
    assert live.digest == digest
    assert live.policy.version == old.policy.version + 1
    with read_scope(context.engine) as session:
        row = select(PolicyFindingRow.threshold).where(
            PolicyFindingRow.policy_id == active(session).id, PolicyFindingRow.finding == "Pneumothorax"
        )
        assert session.scalar(row) == pytest.approx(0.7)


def test_rollback_brings_the_old_champion_back(context, challenger):
    old = context.live().digest
    promote(context, register(context, challenger))
    with session_scope(context.engine) as session:
        promotion.rollback(context, session, reason="worse at night")
    assert context.live().digest == old
    assert context.live().policy.version == 3


def test_a_second_rollback_goes_further_back_and_never_to_what_was_taken_back(context, challenger, other):
    first = context.live().digest
    second = register(context, other)
    promote(context, second)
    third = register(context, challenger)
    promote(context, third)
    for before in (second, first):
        with session_scope(context.engine) as session:
            promotion.rollback(context, session, reason="worse at night")
        assert context.live().digest == before
    with pytest.raises(promotion.NotPromoted), session_scope(context.engine) as session:
        promotion.rollback(context, session, reason="worse at night")
    with read_scope(context.engine) as session:
        taken_back = registry.by_digest(session, third)
        assert (taken_back.state, taken_back.state_reason) == ("refused", "taken back: worse at night")


def test_rollback_without_a_former_champion_says_so(context):
    with pytest.raises(promotion.NotPromoted), session_scope(context.engine) as session:
        promotion.rollback(context, session, reason="none")


def test_the_champion_survives_the_loss_of_the_file_it_came_from(context, challenger):
    promote(context, register(context, challenger))
    challenger.unlink()
    assert load_checkpoint(context.live().path, expected_digest=context.live().digest)


def test_a_damaged_file_cannot_be_promoted_and_changes_nothing(context, challenger):
    old = context.live().digest
    digest = register(context, challenger)
    with session_scope(context.engine) as session:
        path = context.file_of(registry.by_digest(session, digest))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        promote(context, digest)
    assert context.live().digest == old


def test_a_service_takes_up_a_new_champion_between_two_studies_without_mixing_them(context, challenger, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    make_film(folder / "a.dcm")
    service = Service(context, metrics=WorkMetrics())
    studies = receive(context, [folder]).studies
    service.score(*studies)
    old = context.live().checkpoint_id
    promote(context, register(context, challenger))
    make_film(folder / "b.dcm")
    service.score(*receive(context, [folder]).studies)
    service.close()
    with read_scope(context.engine) as session:
        by = session.scalars(select(StudyPriority.checkpoint_id).order_by(StudyPriority.study_id)).all()
    assert by == [old, context.live().checkpoint_id]


def test_what_is_in_hand_is_finished_under_the_old_checkpoint(context, tmp_path):
    for i in range(3):
        make_film(tmp_path / f"{i}.dcm")
    receive(context, [tmp_path])
    claims = iter([True])
    with open_scorer(context) as scorer:
        tally = score_waiting(scorer, kind="night", may_claim=lambda: next(claims, False))
    assert tally.scored == 3
