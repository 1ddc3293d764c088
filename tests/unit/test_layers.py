"""The import rules of pyproject.toml hold, fail when they are broken on purpose, and leave no module out."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RULES = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS = "worker's packages import downwards only"
SERVING = "serving takes from training what serves, and nothing that learns"
SERVES = {
    "checkpoint",
    "errors",
    "explain",
    "findings",
    "grids",
    "imaging",
    "networks",
    "pointing",
    "torchvision_models",
}  # serving may import these


def contract(name: str) -> dict[str, list[str]]:
    (found,) = (each for each in RULES["contracts"] if each["name"] == name)
    return found


def modules_of(package: str) -> set[str]:
    """The modules and packages directly in a package."""
    folder = REPOSITORY / package
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return packages | {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the rules are about."""
    for package in RULES["root_packages"]:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def broken_contracts(tree: Path) -> tuple[set[str], str]:
    """The contracts that do not hold in this tree, and all that lint-imports prints."""
    program = Path(sys.executable).with_name("lint-imports")
    environment = os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "200"}
    ended = subprocess.run(
        [program, "--no-cache", "--no-logo"], cwd=tree, env=environment, capture_output=True, text=True
    )
    output = ended.stdout + ended.stderr
    broken = {line.split(" BROKEN")[0] for line in output.splitlines() if " BROKEN" in line}
    assert (ended.returncode == 0) == (not broken), output
    return broken, output


def add_import(file: Path, module: str) -> None:
    with file.open("a") as source:
        source.write(f"\nimport {module}\n")


@pytest.mark.slow  # builds the graph of all imports, twice
def test_an_import_upwards_and_one_of_what_learns_break_their_contracts(tree: Path) -> None:
    assert broken_contracts(tree)[0] == set()
    add_import(tree / "worker/ranking/priority.py", "worker.queue.app")
    add_import(tree / "training/networks.py", "training.losses")
    broken, output = broken_contracts(tree)
    assert broken == {LAYERS, SERVING}
    assert "worker.ranking is not allowed to import worker.queue" in output
    assert "worker is not allowed to import training.losses" in output, "nor by way of what it may import"


@pytest.mark.slow
def test_a_package_without_a_layer_breaks_the_contract(tree: Path) -> None:
    (tree / "worker" / "elsewhere").mkdir()
    (tree / "worker" / "elsewhere" / "__init__.py").touch()
    broken, output = broken_contracts(tree)
    assert broken == {LAYERS}
    assert "- worker.elsewhere" in output


def test_every_package_of_worker_has_a_layer() -> None:
    layers = {name for row in contract(LAYERS)["layers"] for name in row.split(" | ")}
    assert layers == modules_of("worker")


def test_serving_may_import_what_serves_and_every_other_module_of_training_is_forbidden() -> None:
    rule = contract(SERVING)
    forbidden = {name.removeprefix("training.") for name in rule["forbidden_modules"] if name.startswith("training.")}
    assert modules_of("training") - forbidden - {"checkpoints"} == SERVES
    exempt = {allowed.split(" -> ")[0] for allowed in rule["ignore_imports"]}
    assert exempt == {"worker.retraining.*", "worker.cli.app"}
    assert "allow_indirect_imports" not in rule
