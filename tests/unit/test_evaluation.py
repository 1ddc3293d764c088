from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training.evaluation import added, judge_crossfit
from training.imaging.preprocessing import Preprocessing
from training.manifest import UNKNOWN
from training.prepared import Prepared

pytestmark = pytest.mark.slow  # bootstraps

RNG = np.random.default_rng(0)
FILMS = 600


@pytest.fixture(scope="module")
def films() -> pd.DataFrame:
    """Films whose Mass depends on the view, which anyone may know, and on something that only a look at them tells."""
    view = RNG.choice(["AP", "PA"], FILMS)
    seen = RNG.normal(size=FILMS)
    odds = 3.0 * (view == "AP") + 2.0 * seen - 2.0
    manifest = pd.DataFrame(
        {"image": [f"{k}.png" for k in range(FILMS)], "patient_id": [str(k // 2) for k in range(FILMS)]}
    )
    manifest = manifest.assign(age_years=50.0, sex="F", view_position=view, split="", seen=seen)
    return manifest.assign(Mass=(RNG.random(FILMS) < 1 / (1 + np.exp(-odds))).astype(np.uint8))


def gain(films: pd.DataFrame, network: np.ndarray) -> Any:
    by_view = films.groupby("view_position")["Mass"].transform("mean").to_numpy()
    table = added(films, network[:, None], baseline=by_view[:, None], rng=np.random.default_rng(1), replicates=200)
    assert table["finding"].tolist() == ["Mass", "macro"]
    return table.set_index("finding").loc["Mass"]


def test_a_network_that_sees_something_adds_to_view_age_and_sex(films: pd.DataFrame) -> None:
    row = gain(films, 1 / (1 + np.exp(-2 * films["seen"].to_numpy())))
    assert row["low"] > 0.05
    assert row["without"] < row["both"]


def test_a_network_that_only_knows_the_view_adds_nothing(films: pd.DataFrame) -> None:
    row = gain(films, np.where(films["view_position"] == "AP", 0.8, 0.2))
    assert abs(row["gain"]) < 0.03


def test_noise_adds_nothing(films: pd.DataFrame) -> None:
    assert gain(films, RNG.random(FILMS))["low"] < 0.01


def test_a_crossfits_baselines_never_saw_the_fold_they_speak_of(films: pd.DataFrame, tmp_path: Path) -> None:
    prepared = Prepared(films.drop(columns="seen"), np.zeros((FILMS, 32, 32), dtype=np.uint8), Preprocessing(size=32))
    fold = np.arange(FILMS) // 2 % 3
    table = films[["image"]].assign(fold=fold, Mass=RNG.random(FILMS))
    table.to_csv(tmp_path / "out_of_fold.csv", index=False)
    report = judge_crossfit(prepared, tmp_path, tmp_path / "judged")
    aurocs = report[(report["slice"] == "all") & (report["metric"] == "auroc") & (report["finding"] == "Mass")]
    values = aurocs.set_index("model")["value"]
    assert values["all_zero"] == 0.5
    assert 0.6 < values["view_age_sex"] < 0.9


def test_what_nobody_labelled_neither_adds_nor_takes_away(films: pd.DataFrame, tmp_path: Path) -> None:
    partly = films.assign(Mass=films["Mass"].mask(np.arange(FILMS) % 3 == 0, UNKNOWN).astype("uint8"))
    assert gain(partly, 1 / (1 + np.exp(-2 * films["seen"].to_numpy())))["low"] > 0.05
    images = np.zeros((FILMS, 32, 32), dtype=np.uint8)
    fold = np.arange(FILMS) // 2 % 3
    films[["image"]].assign(fold=fold, Mass=RNG.random(FILMS)).to_csv(tmp_path / "out_of_fold.csv", index=False)
    prepared = Prepared(partly.drop(columns="seen"), images, Preprocessing(size=32))
    report = judge_crossfit(prepared, tmp_path, tmp_path / "judged")
    value = report[(report["slice"] == "all") & (report["finding"] == "Mass") & (report["model"] == "prevalence")]
    assert value.set_index("metric")["value"]["positives"] == (partly["Mass"] == 1).sum()
