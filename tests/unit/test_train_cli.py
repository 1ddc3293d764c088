"""`nightread train` at the command line: the files that its commands write, and their answers to wrong usage."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.checkpoint import Header, load_checkpoint, save_checkpoint
from training.cli import app
from training.imaging.preprocessing import Preprocessing
from training.networks import make_network
from training.prepared import open_prepared

pytestmark = pytest.mark.slow  # trains networks

QUICK = ["--network", "shufflenet_v2_x0_5", "--start", "chance", "--epochs", "1", "--steps-per-epoch", "1"]
QUICK += ["--batch-size", "8", "--accelerator", "cpu"]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def output_of(*words: object) -> str:
    """The output of a command that succeeds."""
    code, output = run(*words)
    assert code == 0, output
    return output


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Eight PNGs of four patients beside their table."""
    rows = ["path,patient_id,view,Mass,Effusion"]
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{number // 2},{'' if number == 7 else 'PA'},{number % 2},0")
    (tmp_path / "films.csv").write_text("\n".join(rows))
    return tmp_path


def test_prepare_tells_how_many_films_are_ready(films: Path) -> None:
    (films / "3.png").write_bytes(b"broken")
    code, output = run(
        "prepare", films / "out", "--table", films / "films.csv", "--images", films, "--size", 32, "--size", 64
    )
    assert code == 0
    assert "7 frontal films: 6 ready, 1 not_dicom" in output
    assert "bad_files.csv" in output.replace("\n", "")
    assert "left out: 1 no view" in output.replace("\n", "")
    assert open_prepared(films / "out", size=64).images.shape == (7, 64, 64)


def test_kaggles_download_is_prepared_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(handle: str, *, output_dir: str) -> str:
        assert handle == "nih-chest-xrays/data"
        (tmp_path / "kaggle" / "images_001" / "images").mkdir(parents=True)
        film = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(film).save(tmp_path / "kaggle" / "images_001" / "images" / "00000001_000.png")
        (tmp_path / "kaggle" / "train_val_list.txt").write_text("00000001_000.png")
        (tmp_path / "kaggle" / "test_list.txt").write_text("")
        (tmp_path / "kaggle" / "Data_Entry_2017.csv").write_text(
            "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
            "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
            "00000001_000.png,Nodule,0,1,58,M,PA,2682,2749,0.143,0.143,\n"
        )
        return output_dir

    monkeypatch.setattr("kagglehub.dataset_download", download)
    code, output = run("prepare", tmp_path / "out", "--kaggle", tmp_path / "kaggle")
    assert code == 0, output
    film = open_prepared(tmp_path / "out").manifest.loc[0]
    assert (film["Mass"], film["split"], film["age_years"]) == (1, "train_val", 58)


def test_films_of_unknown_view_are_kept_on_request(films: Path) -> None:
    output = run("prepare", films / "out", "--table", films / "films.csv", "--images", films, "--keep-unknown-view")[1]
    assert "8 frontal films: 8 ready" in output


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((), "--table and --images"),
        (("--table", "films.csv", "--images", "nowhere"), "no images at"),
        (("--table", "nowhere.csv", "--images", "."), "No such file: nowhere.csv"),
        (("--table", "other.csv", "--images", "."), "no column for patient_id"),
    ],
)
def test_wrong_usage_is_answered_in_a_sentence(
    films: Path, words: tuple[str, ...], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(films)
    (films / "other.csv").write_text("path,view,Mass\n0.png,PA,0\n")
    code, output = run("prepare", "out", *words)
    assert code == 2
    assert answer in " ".join(output.replace("│", " ").split())


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\xff", b"", b'a,b\n"1', b"a,b\n1,2\n1,2,3\n"])
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_table_that_is_no_csv_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    code, output = run("prepare", tmp_path / "out", "--table", tmp_path / name, "--images", tmp_path)
    assert code == 2
    assert name in output.replace("│", "").replace(" ", "").replace("\n", "")


def test_a_table_whose_films_are_all_missing_is_refused(films: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code, output = run("prepare", films / "out", "--table", films / "films.csv", "--images", elsewhere)
    assert code == 2
    assert "7 missing" in output


def test_plot_draws_a_run_under_way_and_its_labels(films: Path) -> None:
    run("prepare", films / "out", "--table", films / "films.csv", "--images", films, "--size", 32)
    here = films / "run"
    here.mkdir()
    assert "nothing to draw" in run("plot", here)[1]
    names = "binary_accuracy/all", "exact_match/all", "auroc/macro", "false_negatives/all", "false_negative_rate/Mass"
    figures: dict[str, list[float]] = {"epoch": [1, 2], "train_loss": [2, 1], "validation/loss": [2, 1]}
    figures |= {f"validation/{name}": [0.5, 0.6] for name in names}
    pd.DataFrame(figures).to_csv(here / "metrics.csv", index=False)
    (here / "train.txt").write_text("0.png\n1.png\n")
    (here / "validation.txt").write_text("2.png\n")
    (here / "test.txt").write_text("")
    code, output = run("plot", here, "--films", films / "out")
    assert code == 0
    drawn = ["false_negatives.png", "labels.png", "training_curves.png"]
    assert sorted(path.name for path in here.glob("*.png")) == drawn
    assert all(name in output.replace("\n", "") for name in drawn)


def test_explain_writes_heat_maps_and_the_filters_of_a_layer(films: Path) -> None:
    header = Header(network="mobilenet", preprocessing=Preprocessing(size=64))
    save_checkpoint(films / "net.safetensors", header, state=make_network("mobilenet").state_dict())
    code, output = run("explain", films / "net.safetensors", films / "0.png", films / "seen", "--layer", "features.0")
    assert code == 0, output
    written = sorted(path.relative_to(films / "seen").as_posix() for path in (films / "seen").rglob("*.png"))
    assert written == ["heatmaps.png", "layers/features.0.png"]
    (predicted,) = pd.read_csv(films / "seen" / "predictions.csv").to_dict("records")
    assert predicted["image"] == "0.png"
    assert f"Pneumothorax         {predicted['Pneumothorax']:.3f}" in output
    assert run("explain", films / "net.safetensors", films / "films.csv", films / "seen")[0] == 2
    assert run("explain", films / "films.csv", films / "0.png", films / "seen")[0] == 2


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
    (folder / "prepared.json").write_text(json.dumps({"films": 60, "sizes": [32], "preprocessing": "squash_inner"}))
    return folder


def test_fit_leaves_a_checkpoint_that_evaluate_judges(folder: Path, tmp_path: Path) -> None:
    output = output_of("fit", folder, tmp_path / "run", *QUICK)
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert load_checkpoint(path, findings=None).digest in output
    assert (tmp_path / "run" / "training_curves.png").exists()

    output = output_of("evaluate", path, folder, tmp_path / "judged", "--lists", tmp_path / "run")
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
    predicted = pd.read_csv(tmp_path / "judged" / "predictions.csv")
    assert predicted["image"].tolist() == (tmp_path / "run" / "test.txt").read_text().split()
    assert f"Edema                {predicted['Edema'].iloc[0]:.3f}" in output


def test_a_sweep_compares_rates(folder: Path, tmp_path: Path) -> None:
    output = output_of("sweep", folder, tmp_path, "--rate", "0.01", "--rate", "1e-30", *QUICK)
    assert "macro_auroc" in output
    assert pd.read_csv(tmp_path / "sweep.csv")["learning_rate"].tolist() == [0.01, 1e-30]
    assert (tmp_path / "learning_rates.png").exists()
    assert (tmp_path / "rate-0.01" / "checkpoint.safetensors").exists()


def test_a_crossfit_judges_the_recipe_beside_its_baselines(folder: Path, tmp_path: Path) -> None:
    output = output_of("crossfit", folder, tmp_path, "--folds", "2", *QUICK)
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
def test_what_the_user_can_put_right_ends_with_exit_code_two(folder: Path, tmp_path: Path, wrong: list[str]) -> None:
    code, output = run("fit", folder, tmp_path, *QUICK, *wrong)
    assert code == 2
    assert "Traceback" not in output


def test_every_setting_is_an_option_with_its_default() -> None:
    output = output_of("fit", "--help")
    for option in ("--learning-rate", "--loss", "--frozen-blocks", "--strategy", "--undersample", "--no-augment"):
        assert option in output
