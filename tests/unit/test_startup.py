"""Commands that must start quickly import little."""

import subprocess
import sys

import pytest

from worker.settings import Settings

pytestmark = pytest.mark.slow  # starts the command in processes of its own

HEAVY = {"torch", "torchvision", "celery", "pandas", "lightning", "matplotlib", "imagecodecs", "pebble"}
IMPORTED = """
import sys
from worker.cli.main import main
sys.argv = ["nightread", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("IMPORTED", *sorted({heavy!r} & set(sys.modules)), file=sys.stderr)
"""


def heavy_modules_of(*arguments: str, environment: dict[str, str]) -> set[str]:
    code = IMPORTED.format(arguments=arguments, heavy=HEAVY)
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(ended.stderr.split("IMPORTED")[1].split())


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    return {"NIGHTREAD_DATABASE_URL": settings.database_url, "NIGHTREAD_CHECKPOINT": str(settings.checkpoint)}


@pytest.mark.parametrize("arguments", [("--help",), ("worklist",), ("status",)])
def test_reading_the_list_waits_for_no_network_and_no_queue(arguments, environment):
    assert not heavy_modules_of(*arguments, environment=environment) & HEAVY
