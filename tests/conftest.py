"""Fixtures every test may use."""

from pathlib import Path

import pytest

from worker.settings import Settings

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real films beside the checkout; tests that need it skip in a fresh clone without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real films are not beside this checkout (../shared/data)")
    return SHARED


@pytest.fixture(scope="session")
def untrained_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with random weights: quick, and every probability is different."""
    from tests.support.untrained import save_untrained  # torch, which most tests do without

    return save_untrained(tmp_path_factory.mktemp("checkpoint") / "untrained.safetensors")


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory, untrained_checkpoint: Path) -> Settings:
    """Settings of an embedded context in a folder of its own."""
    folder = tmp_path_factory.mktemp("context")
    return Settings(
        database_url=f"sqlite:///{folder / 'nightread.db'}",
        state_folder=folder,
        checkpoint=untrained_checkpoint,
        decoders=1,
        batch_size=4,
        device="cpu",
    )
