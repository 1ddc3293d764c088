"""Promises of the repository itself: no patient data in it, and commands that exist."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
REFUSALS = [hook for hook in HOOKS if hook["language"] == "fail"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()


def refused(path: str) -> list[str]:
    """The hooks that refuse a commit of this path."""
    return [
        hook["id"]
        for hook in REFUSALS
        if re.search(hook["files"], path) and not re.search(hook.get("exclude", "^$"), path)
    ]


def test_no_film_table_or_foreign_weights_are_committed() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert [path for path in listed.stdout.splitlines() if refused(path)] == []


@pytest.mark.parametrize(
    "path",
    ["a.dcm", "data/B.DCM", "x/DICOMDIR", "resnet.pth", "night.db", "runs/last.ckpt", "worker/demo/other.safetensors"],
)
def test_commit_hook_refuses_films_and_weights(path: str) -> None:
    assert refused(path)


@pytest.mark.parametrize(
    "path", ["db/ledger.py", "training/checkpoints/ours.safetensors", "worker/demo/phantoms.safetensors"]
)
def test_commit_hook_lets_the_project_s_own_files_pass(path: str) -> None:
    assert refused(path) == []


def test_every_hook_runs_a_program_of_the_environment() -> None:
    programs = {hook["entry"].split()[0] for hook in HOOKS if hook["language"] == "system"}
    assert programs == {".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/lint-imports"}


def test_makefile_names_only_scripts_that_exist() -> None:
    modules = re.findall(r"-m (tests[\w.]+)", MAKEFILE)
    assert modules
    assert [module for module in modules if not importlib.util.find_spec(module)] == []


def test_help_describes_every_command() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    targets = set(phony.split())
    described = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([\w-]+) +\S", described, flags=re.MULTILINE)) == targets


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", "workflows/*.yml"),
        ("dependabot", "dependabot.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_files_for_github_keep_to_their_schema(schema: str, pattern: str) -> None:
    paths = list((REPOSITORY / ".github").glob(pattern))
    assert paths
    program = str(Path(sys.executable).parent / "check-jsonschema")
    command = [program, "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_workflows_run_what_everybody_runs_with_pinned_actions_and_no_right_to_write() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert workflow["permissions"] == {"contents": "read"}
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    assert next(step["run"].split()[-1] for step in steps if "run" in step) == ".ci/run"


def test_the_newest_section_of_the_changelog_is_of_this_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    newest, *_older = re.findall(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest == version


def test_every_package_says_that_it_is_typed() -> None:
    assert [
        name for name in ("worker", "training", "db", "migrations") if not (REPOSITORY / name / "py.typed").exists()
    ] == []
