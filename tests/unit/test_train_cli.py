"""prepare, plot and explain from the command line: what they write, and what they answer to wrong usage."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.checkpoint import Header, save_checkpoint
from training.cli import app
from training.imaging.preprocessing import Preprocessing
from training.networks import make_network
from training.prepared import open_prepared

pytestmark = pytest.mark.slow  # trains networks


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


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
    code, told = run(
        "prepare", films / "out", "--table", films / "films.csv", "--images", films, "--size", 32, "--size", 64
    )
    assert code == 0
    assert "7 frontal films: 6 ready, 1 not_dicom" in told
    assert "bad_files.csv" in told.replace("\n", "")
    assert "left out: 1 no view" in told.replace("\n", "")
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
    code, told = run("prepare", tmp_path / "out", "--kaggle", tmp_path / "kaggle")
    assert code == 0, told
    film = open_prepared(tmp_path / "out").manifest.loc[0]
    assert (film["Mass"], film["split"], film["age_years"]) == (1, "train_val", 58)


def test_films_of_unknown_view_are_kept_on_request(films: Path) -> None:
    told = run("prepare", films / "out", "--table", films / "films.csv", "--images", films, "--keep-unknown-view")[1]
    assert "8 frontal films: 8 ready" in told


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
    code, told = run("prepare", "out", *words)
    assert code == 2
    assert answer in " ".join(told.replace("│", " ").split())


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\xff", b"", b'a,b\n"1', b"a,b\n1,2\n1,2,3\n"])
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_table_that_is_no_csv_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    code, told = run("prepare", tmp_path / "out", "--table", tmp_path / name, "--images", tmp_path)
    assert code == 2
    assert name in told.replace("│", "").replace(" ", "").replace("\n", "")


def test_a_table_whose_films_are_all_missing_is_refused(films: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code, told = run("prepare", films / "out", "--table", films / "films.csv", "--images", elsewhere)
    assert code == 2
    assert "7 missing" in told


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
    code, told = run("plot", here, "--films", films / "out")
    assert code == 0
    drawn = ["false_negatives.png", "labels.png", "training_curves.png"]
    assert sorted(path.name for path in here.glob("*.png")) == drawn
    assert all(name in told.replace("\n", "") for name in drawn)


def test_explain_writes_heat_maps_and_the_filters_of_a_layer(films: Path) -> None:
    header = Header(network="mobilenet", preprocessing=Preprocessing(size=64))
    save_checkpoint(films / "net.safetensors", header, state=make_network("mobilenet").state_dict())
    code, told = run("explain", films / "net.safetensors", films / "0.png", films / "seen", "--layer", "features.0")
    assert code == 0, told
    written = sorted(path.relative_to(films / "seen").as_posix() for path in (films / "seen").rglob("*.png"))
    assert written == ["heatmaps.png", "layers/features.0.png"]
    (predicted,) = pd.read_csv(films / "seen" / "predictions.csv").to_dict("records")
    assert predicted["image"] == "0.png"
    assert f"Pneumothorax         {predicted['Pneumothorax']:.3f}" in told
    assert run("explain", films / "net.safetensors", films / "films.csv", films / "seen")[0] == 2
    assert run("explain", films / "films.csv", films / "0.png", films / "seen")[0] == 2
