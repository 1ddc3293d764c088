"""Figures of a run for MLflow or Weights & Biases, by Lightning's own loggers, where those are installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from training.settings import UnusableSettings

LOGGERS: Final = ("mlflow", "wandb")  # each also the name of its package


def make_logger(name: str, folder: Path) -> Any:
    """The logger of a run, which is called as its folder. Where figures go, MLflow and W&B read from their own
    environment (MLFLOW_TRACKING_URI, WANDB_MODE, ...). Raises UnusableSettings."""
    if name not in LOGGERS:
        raise UnusableSettings(f"no logger is called {name!r}; there are {', '.join(LOGGERS)}")
    if find_spec(name) is None:
        raise UnusableSettings(f"the logger {name} is not installed: pip install {name}")
    from lightning.pytorch import loggers  # four seconds, and only who asks for it pays

    if name == "mlflow":
        import mlflow  # Lightning's default is a folder, which MLflow has given up; MLflow's own is a database

        return loggers.MLFlowLogger("nightread", run_name=folder.name, tracking_uri=mlflow.get_tracking_uri())
    folder.mkdir(parents=True, exist_ok=True)
    return loggers.WandbLogger(name=folder.name, project="nightread", save_dir=str(folder))
