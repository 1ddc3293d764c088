"""Fixtures every test may use."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.contexts import MakeContext, seeded_context, site_settings
from tests.support.values import present
from worker.context import Context
from worker.settings import Settings

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several processes (`make test`): a file's tests stay in one of them, and the group "servers" begins first.

    That group is of files whose tests start workers and wait for them with a time limit: they run one after
    another, beside the other processes, which have the rest.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if present(item.get_closest_marker("xdist_group")).args == ("servers",):
        return 0
    return 1 if "integration" in item.path.parts else 2


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
    """Settings of an embedded context in a folder of its own, which name the untrained checkpoint."""
    return site_settings(tmp_path_factory.mktemp("context"), checkpoint=untrained_checkpoint)


@pytest.fixture(scope="session")
def make_context(tmp_path_factory: pytest.TempPathFactory, untrained_checkpoint: Path) -> MakeContext:
    """Makes contexts with a champion, each in a folder of its own: `make_context(lease_minutes=0.1)`.

    On SQLite and without a broker, unless `database_url` and `broker_url` name servers. The champion is `checkpoint`,
    by default the untrained one, which the context's settings do not name; None leaves the database empty.
    """

    def make(*, checkpoint: Path | None = untrained_checkpoint, **settings: Any) -> Context:
        folder = tmp_path_factory.mktemp("context")
        return seeded_context(site_settings(folder, **settings), champion=checkpoint)

    return make
