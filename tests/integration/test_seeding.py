"""What a new database needs before anything ranks: written once, and never by looking."""

import os
from pathlib import Path

import pytest
from sqlalchemy import func, select

from db import registry
from db.models import Audit, Checkpoint, PolicyRow
from db.session import read_scope, session_scope
from tests.support.contexts import MakeContext, site_settings, with_settings
from tests.support.side_by_side import at_once
from training.checkpoint import SHIPPED
from worker.context import Context, NothingSeeded


@pytest.fixture
def bare(database_url: str, tmp_path: Path, untrained_checkpoint: Path) -> Context:
    """A context on a database with the schema and nothing in it."""
    return Context(site_settings(tmp_path, database_url=database_url, checkpoint=untrained_checkpoint))


def rows(context: Context) -> list[int]:
    """How many checkpoints, policies and audited changes the database holds."""
    tables = (Checkpoint, PolicyRow, Audit)
    with read_scope(context.engine) as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def test_looking_at_a_new_database_writes_nothing_and_says_what_to_do(bare: Context) -> None:
    for context in (bare, with_settings(bare, checkpoint=None)):
        with pytest.raises(NothingSeeded, match="nightread db upgrade"):
            context.live()
    assert rows(bare) == [0, 0, 0]


def test_a_database_is_seeded_once_however_often_and_by_whomever_it_is_asked(bare: Context) -> None:
    def seed() -> None:
        context = Context(bare.settings)
        context.seed()
        context.engine.dispose()

    at_once(seed, seed, seed)
    bare.seed()
    assert rows(bare) == [1, 1, 3]  # audited: the champion, the policy made, the policy activated
    assert bare.live().policy.version == 1


def test_a_checkpoint_that_the_settings_name_is_registered_beside_the_champion(embedded: Context, other: Path) -> None:
    champion, naming = embedded.live(), with_settings(embedded, checkpoint=other)
    with pytest.raises(NothingSeeded, match="NIGHTREAD_CHECKPOINT"):
        naming.live()
    naming.seed()
    assert naming.live().digest != champion.digest
    assert embedded.live().digest == champion.digest


def test_where_nothing_can_be_kept_the_shipped_file_serves_until_a_worker_keeps_a_copy(
    make_context: MakeContext, tmp_path: Path
) -> None:
    context = make_context(checkpoint=None)
    (tmp_path / "file").touch()  # under which no folder can be made, not even by root
    migration = with_settings(context, state_folder=tmp_path / "file")
    migration.seed()
    assert migration.live().path == SHIPPED
    context.seed()
    assert context.live().path.parent == context.state_folder / "checkpoints"


def test_a_checkpoint_that_cannot_be_kept_is_not_registered(embedded: Context, other: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    context = with_settings(embedded, state_folder=tmp_path / "file")
    with pytest.raises(OSError, match="Not a directory"), session_scope(context.engine) as session:
        context.register(session, other)
    with read_scope(context.engine) as session:
        assert len(registry.everything(session)) == 1


def test_what_a_kill_left_of_a_checkpoint_is_removed_at_the_next_start(embedded: Context) -> None:
    part = embedded.state_folder / "checkpoints" / ".digest.safetensors.7.part"
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    embedded.seed()
    assert not part.exists()
