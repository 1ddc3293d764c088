"""Commands that must start quickly import little."""

import subprocess
import sys

import pytest
from alembic.script import ScriptDirectory

from db import schema
from tests.support.contexts import bring_schema
from worker.settings import Settings

pytestmark = pytest.mark.slow  # starts the command in processes of its own

HEAVY = {
    "torch", "torchvision", "celery", "pandas", "lightning", "matplotlib", "imagecodecs", "pebble", "pydicom", "numpy",
    "alembic", "jinja2", "pynetdicom", "structlog", "sqlalchemy.orm",
}  # fmt: skip
DATABASE = {"sqlalchemy"}
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
    code = IMPORTED.format(arguments=arguments, heavy=HEAVY | DATABASE)
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(ended.stderr.split("IMPORTED")[1].split())


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    bring_schema(settings.database_url)
    return {"NIGHTREAD_DATABASE_URL": settings.database_url, "NIGHTREAD_CHECKPOINT": str(settings.checkpoint)}


@pytest.mark.parametrize("arguments", [("worklist",), ("worklist", "--json"), ("worklist", "--csv")])
def test_reading_the_list_waits_for_no_network_no_queue_and_no_orm(arguments, environment):
    assert not heavy_modules_of(*arguments, environment=environment) & HEAVY


@pytest.mark.parametrize("arguments", [("status",), ("runs",)])
def test_looking_at_a_run_waits_for_no_network_and_no_queue(arguments, environment):
    assert not heavy_modules_of(*arguments, environment=environment) & HEAVY - {"structlog", "sqlalchemy.orm"}


def test_a_decoder_waits_for_no_log_no_database_and_no_network():
    unneeded = {"structlog", "rich", "sqlalchemy", "pydantic", "torch", "celery"}
    code = f"import sys, worker.scoring.decoding; print(*sorted({unneeded!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_pages_load_no_network_before_a_heat_map_is_wanted():
    code = "import sys, worker.report.page, worker.web.images; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"]


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("train", "--help"), ("models", "-h")])
def test_help_waits_for_no_database(arguments, environment):
    assert not heavy_modules_of(*arguments, environment=environment) & (HEAVY | DATABASE)


def test_the_installed_script_which_a_spawned_decoder_runs_again_imports_nothing_of_ours_but_itself():
    code = "import sys, worker.cli.main; print(*sorted(name for name in sys.modules if name.startswith('worker')))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["worker", "worker.cli", "worker.cli.main"]


def test_the_schema_that_is_needed_is_the_one_that_alembic_would_make():
    assert schema.head_revision() == ScriptDirectory.from_config(schema.alembic_config()).get_current_head()


def test_what_a_command_writes_is_for_its_user_alone(environment, tmp_path):
    database = tmp_path / "new" / "n.db"
    words = [sys.executable, "-m", "worker.cli", "db", "upgrade"]
    subprocess.run(words, env=environment | {"NIGHTREAD_DATABASE_URL": f"sqlite:///{database}"}, check=True)
    assert database.stat().st_mode & 0o777 == 0o600


def test_torchvision_comes_without_torchs_compiler_which_can_still_be_had():
    code = """
import sys
import training.networks
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
import torch._dynamo
assert torch.compile(lambda number: number + 1, backend="eager")(torch.zeros(1)).item() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
