"""Settings of a training from a file, and the error where a logger or timm is not installed."""

import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from training import cli
from training.loggers import LOGGERS, make_logger
from training.networks import UnknownNetwork, make_network
from training.settings import Selection, Settings, UnusableSettings, read_settings

told: list[tuple[Settings, Selection]] = []
app = typer.Typer()


@app.command()
@cli._options_of(settings=Settings, selection=Selection)
def tell(*, settings: Settings, selection: Selection) -> None:
    """What `train fit` would be asked."""
    told.append((settings, selection))


def asked(file: Path, *words: str) -> str:
    told.clear()
    return " ".join(CliRunner().invoke(app, ["--settings", str(file), *words]).output.replace("│", " ").split())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.toml"


def test_settings_of_a_file_stand_where_the_command_line_says_nothing(file: Path) -> None:
    file.write_text(
        'network = "small"\nbatch-size = 8\nlearning_rate = 1e-3\naugment = false\nepochs = 4\n'
        'shares = [0.5, 0.25, 0.25]\nfindings = ["Mass", "Edema"]\n'
    )
    assert asked(file, "--epochs", "2") == ""
    ((settings, selection),) = told
    assert settings == Settings(network="small", batch_size=8, learning_rate=1e-3, augment=False, epochs=2)
    assert selection == Selection(shares=(0.5, 0.25, 0.25), findings=["Mass", "Edema"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("batchsize = 8", "no setting is called 'batchsize'; there are accelerator, apart_from, augment, batch_size"),
        ("settings_file = 'x'", "no setting is called 'settings_file'"),
        ("epochs = 2.5", "--epochs': Input should be a valid integer"),
        ("epochs = true", "--epochs': Input should be a valid integer"),
        ("augment = 'perhaps'", "Input should be a valid boolean"),
        ("[epochs]\nfew = 1", "'epochs' is a table"),
        ("epochs = ", "recipe.toml is no TOML file"),
        pytest.param("epochs = " + "[" * 20_000, "recipe.toml is no TOML file", id="nested lists"),
        ("schedule = 'steep'", "schedule is cosine or constant, not 'steep'"),
    ],
)
def test_a_setting_that_is_none_is_named(file: Path, content: str, words: str) -> None:
    file.write_text(content)
    assert words in asked(file)
    assert not told


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(UnusableSettings, match="recipe"):
        read_settings(file, known=["epochs"])


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_is_named_with_the_way_to_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in LOGGERS:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnusableSettings, match=f"pip install {name}"):
        make_logger(name, tmp_path)


def test_a_logger_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableSettings, match="'notebook'; there are mlflow, wandb"):
        make_logger("notebook", tmp_path)


def test_a_network_of_timm_names_the_way_to_it_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UnknownNetwork, match="pip install timm"):
        make_network("timm/efficientnet_b0")
