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
    import torch

    from training.checkpoint import Header, save_checkpoint
    from training.findings import FINDINGS
    from training.networks import make_network
    from training.preprocessing import Preprocessing

    torch.manual_seed(0)
    header = Header(
        network="mobilenet",
        preprocessing=Preprocessing(size=64),
        thresholds={finding: {"flag_10": 0.5, "sensitivity_90": 0.4} for finding in FINDINGS},
    )
    path = tmp_path_factory.mktemp("checkpoint") / "untrained.safetensors"
    save_checkpoint(path, header, state=make_network("mobilenet").state_dict(), half=True)
    return path


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory, untrained_checkpoint: Path) -> Settings:
    """Settings of an embedded house in a folder of its own."""
    return Settings(
        database_url=f"sqlite:///{tmp_path_factory.mktemp('house') / 'nightread.db'}",
        checkpoint=untrained_checkpoint,
        decoders=1,
        batch_size=4,
        device="cpu",
    )
