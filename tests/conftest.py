"""Fixtures every test may use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real films beside the checkout; tests that need it skip in a fresh clone without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real films are not beside this checkout (../shared/data)")
    return SHARED
