import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from training.checkpoint import load_checkpoint
from training.cli import app

pytestmark = pytest.mark.slow  # trains networks

QUICK = ["--network", "shufflenet_v2_x0_5", "--start", "chance", "--epochs", "1", "--steps-per-epoch", "1"]
QUICK += ["--batch-size", "8", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty films of noise, prepared at 32 pixels."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    np.save(folder / "images-32.npy", rng.integers(0, 256, (60, 32, 32), dtype=np.uint8))
    manifest = pd.DataFrame({"image": [f"{k}.png" for k in range(60)], "patient_id": [f"p{k // 2}" for k in range(60)]})
    manifest["age_years"] = rng.integers(1, 90, 60)
    manifest["sex"], manifest["view_position"], manifest["split"] = "M", rng.choice(["AP", "PA"], 60), ""
    manifest["source"] = rng.choice(["east", "west"], 60)
    for finding in ("Mass", "Edema"):
        manifest[finding] = (rng.random(60) < 0.4).astype(int)
    manifest.to_csv(folder / "manifest.csv", index_label="row")
    (folder / "prepared.json").write_text(json.dumps({"films": 60, "sizes": [32], "preprocessing": "squash"}))
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_fit_leaves_a_checkpoint_that_evaluate_judges(folder: Path, tmp_path: Path) -> None:
    output = run("fit", folder, tmp_path / "run", *QUICK)
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert load_checkpoint(path, findings=None).digest in output
    assert (tmp_path / "run" / "training_curves.png").exists()

    output = run("evaluate", path, folder, tmp_path / "judged", "--lists", tmp_path / "run")
    assert "view_age_sex" in output
    assert "auroc_within_source" in output
    figures = pd.read_csv(tmp_path / "judged" / "evaluate.csv")
    assert set(figures["model"]) == {"network", "all_zero", "prevalence", "view_age_sex"}
    assert {"all", "view=AP", "view=PA", "source=east"} <= set(figures["slice"])
    added = pd.read_csv(tmp_path / "judged" / "added.csv", index_col="finding")
    assert list(added.index) == ["Mass", "Edema", "macro"]
    assert (added["gain"] - (added["both"] - added["without"])).abs().max() < 1e-9
    assert (tmp_path / "judged" / "reliability.png").exists()
    assert (tmp_path / "judged" / "rankings.png").exists()
    told = pd.read_csv(tmp_path / "judged" / "predictions.csv")
    assert told["image"].tolist() == (tmp_path / "run" / "test.txt").read_text().split()
    assert f"Edema                {told['Edema'].iloc[0]:.3f}" in output


def test_a_sweep_compares_rates(folder: Path, tmp_path: Path) -> None:
    output = run("sweep", folder, tmp_path, "--rate", "0.01", "--rate", "1e-30", *QUICK)
    assert "macro_auroc" in output
    assert pd.read_csv(tmp_path / "sweep.csv")["learning_rate"].tolist() == [0.01, 1e-30]
    assert (tmp_path / "learning_rates.png").exists()
    assert (tmp_path / "rate-0.01" / "checkpoint.safetensors").exists()


def test_a_crossfit_judges_the_recipe_beside_its_baselines(folder: Path, tmp_path: Path) -> None:
    output = run("crossfit", folder, tmp_path, "--folds", "2", *QUICK)
    assert "view_age_sex" in output
    assert {"evaluate.csv", "added.csv", "out_of_fold.csv", "checkpoint.safetensors"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.parametrize(
    "wrong",
    [
        ["--network", "alexnot"],
        ["--loss", "focal"],
        ["--schedule", "step"],
        ["--split", "month"],
        ["--findings", "Hernia"],
        ["--size", "64"],
        ["--frozen-blocks", "3"],
    ],
)
def test_what_the_user_can_put_right_is_told_with_exit_code_two(folder: Path, tmp_path: Path, wrong: list[str]) -> None:
    result = CliRunner().invoke(app, ["fit", str(folder), str(tmp_path), *QUICK, *wrong])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_every_setting_is_an_option_with_its_default() -> None:
    output = run("fit", "--help")
    for option in ("--learning-rate", "--loss", "--frozen-blocks", "--strategy", "--undersample", "--no-augment"):
        assert option in output
