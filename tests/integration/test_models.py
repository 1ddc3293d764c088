"""Promotion and the way back, on both databases."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from db import registry
from db.models import PolicyFindingRow, StudyPriority
from db.policies import active
from db.session import read_scope, session_scope
from tests.support.dicom_files import make_film
from tests.support.values import present
from training.checkpoint import SHIPPED, CheckpointError, Header, WrongPurpose, build, load_checkpoint, save_checkpoint
from training.findings import FINDINGS
from worker.checkpoints import promotion
from worker.context import Context
from worker.intake.receive import receive
from worker.monitoring.prometheus import WorkMetrics
from worker.queue.tasks import Service
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer


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
            PolicyFindingRow.policy_id == present(active(session)).id, PolicyFindingRow.finding == "Pneumothorax"
        )
        assert session.scalar(row) == pytest.approx(0.7)


@pytest.fixture
def for_a_demo(challenger: Path) -> Path:
    """The challenger, made for drawings only."""
    old = load_checkpoint(challenger)
    header = replace(old.header, purpose="demo, learned from drawings")
    save_checkpoint(challenger, header, state=build(old).state_dict())
    return challenger


def test_a_checkpoint_for_a_demo_is_not_promoted_without_an_override(context, for_a_demo):
    old, digest = context.live().digest, register(context, for_a_demo)
    refused = pytest.raises(promotion.NotPromoted, match="only purpose: demo, learned from drawings")
    with refused, session_scope(context.engine) as session:
        promotion.promote(context, session, registry.by_digest(session, digest), reason="a test")
    assert context.live().digest == old


def test_a_checkpoint_for_a_demo_that_ranks_by_an_override_is_warned_of_at_each_start(context, for_a_demo):
    promote(context, register(context, for_a_demo))
    with capture_logs() as logged, open_scorer(context):
        pass
    (warning,) = [each for each in logged if each["event"] == "checkpoint_not_for_real_films"]
    assert (warning["log_level"], warning["purpose"]) == ("warning", "demo, learned from drawings")


@pytest.mark.parametrize("seeded", [False, True], ids=["a new database", "one with a champion"])
def test_a_checkpoint_for_a_demo_that_the_settings_name_ranks_nothing(make_context, for_a_demo, seeded):
    context = make_context(checkpoint=None)
    if seeded:
        context.seed()
    naming = Context(context.settings.changed(checkpoint=for_a_demo))
    for refused in (naming.seed, naming.live):
        with pytest.raises(WrongPurpose, match="must not rank these films"):
            refused()
    demo = Context(naming.settings, purpose="demo, learned from drawings")
    demo.seed()
    assert demo.live().header.purpose == "demo, learned from drawings"
    with pytest.raises(WrongPurpose, match="only purpose: real films"):
        Context(context.settings.changed(checkpoint=SHIPPED), purpose="demo, learned from drawings").live()


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


def test_what_is_in_flight_is_finished_under_the_old_checkpoint(context, tmp_path):
    for i in range(3):
        make_film(tmp_path / f"{i}.dcm")
    receive(context, [tmp_path])
    claims = iter([True])
    with open_scorer(context) as scorer:
        tally = score_waiting(scorer, kind="night", may_claim=lambda: next(claims, False))
    assert tally.scored == 3
