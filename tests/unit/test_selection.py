from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training.imaging.preprocessing import Preprocessing
from training.prepared import NotPrepared, Prepared, combine
from training.sampling import LeakageWarning, save_lists
from training.selection import select
from training.settings import Selection, Settings, UnusableSettings


@pytest.fixture
def prepared() -> Prepared:
    rng = np.random.default_rng(0)
    manifest = pd.DataFrame(
        {"image": [f"{k}.png" for k in range(200)], "patient_id": [str(k // 2) for k in range(200)]}
    )
    manifest = manifest.assign(split=np.repeat(["train_val", "test"], 100))
    manifest["Mass"] = (rng.random(200) < 0.4).astype(np.uint8)
    manifest["Hernia"] = (rng.random(200) < 0.05).astype(np.uint8)
    return Prepared(manifest, np.zeros((200, 32, 32), dtype=np.uint8), Preprocessing(size=32))


def shares(prepared: Prepared) -> dict[Any, int]:
    return prepared.manifest["split"].value_counts().to_dict()


def test_films_that_a_selection_does_not_use_are_counted_with_the_reason(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"{k}.png\n" for k in range(150)))
    for name in ("validation", "test"):
        (tmp_path / f"{name}.txt").write_text("")
    told: dict[str, int] = {}
    selection = Selection(lists=tmp_path, undersample=True)
    chosen = select(prepared, selection, seed=1, on_left_out=lambda count, reason: told.update({reason: count}))
    learned = shares(chosen)["train"]
    assert 0 < learned < 100
    assert told == {"in none of the split's lists": 50, "by undersampling": 150 - learned}


def test_patients_are_split_as_asked_and_alike_for_the_same_seed(prepared: Prepared) -> None:
    selection = Selection(shares=(0.5, 0.2, 0.3))
    chosen = select(prepared, selection, seed=1)
    assert shares(chosen) == {"train": 100, "validation": 40, "test": 60}
    assert chosen.manifest.groupby("patient_id")["split"].nunique().max() == 1
    assert chosen.manifest.equals(select(prepared, selection, seed=1).manifest)
    assert not chosen.manifest.equals(select(prepared, selection, seed=2).manifest)


def test_nihs_own_test_films_stay_the_test(prepared: Prepared) -> None:
    chosen = select(prepared, Selection(split="official"), seed=1)
    assert chosen.manifest.index[chosen.manifest["split"] == "test"].tolist() == list(range(100, 200))


def test_a_stable_split_is_the_same_for_every_seed(prepared: Prepared) -> None:
    one, other = (select(prepared, Selection(split="stable"), seed=seed).manifest for seed in (1, 2))
    assert one.equals(other)
    assert set(one["split"]) == {"train", "validation", "test"}


def test_a_split_by_image_warns_of_leakage(prepared: Prepared) -> None:
    with pytest.warns(LeakageWarning):
        select(prepared, Selection(split="image"), seed=1)


def test_the_lists_of_another_run_are_followed(prepared: Prepared, tmp_path: Path) -> None:
    chosen = select(prepared, Selection(), seed=5)
    save_lists(chosen.manifest, tmp_path)
    again = select(prepared, Selection(lists=tmp_path), seed=99)
    assert again.manifest["split"].tolist() == chosen.manifest["split"].tolist()


def test_patients_of_another_set_are_left_out(prepared: Prepared, tmp_path: Path) -> None:
    described = prepared.manifest.assign(age_years=50.0, sex="F", view_position="PA", source="")
    judges = described[described["patient_id"].isin(("3", "70"))].iloc[1:]  # three films of the two patients
    combine([replace(prepared, manifest=judges)], tmp_path)
    chosen = select(prepared, Selection(apart_from=tmp_path), seed=1)
    left_out = prepared.manifest.loc[~prepared.manifest.index.isin(chosen.manifest.index)]
    assert left_out.index.tolist() == [6, 7, 140, 141]
    with pytest.raises(NotPrepared):
        select(prepared, Selection(apart_from=tmp_path / "nothing"), seed=1)


def test_findings_can_be_chosen(prepared: Prepared) -> None:
    assert select(prepared, Selection(findings=["Hernia"]), seed=1).findings == ("Hernia",)
    with pytest.raises(UnusableSettings, match="Edema"):
        select(prepared, Selection(findings=["Edema"]), seed=1)


def test_only_training_films_are_thinned_or_repeated(prepared: Prepared) -> None:
    whole = select(prepared, Selection(), seed=1)
    for selection in (Selection(undersample=True), Selection(oversample_below=0.3)):
        chosen = select(prepared, selection, seed=1)
        assert shares(chosen)["train"] != shares(whole)["train"]
        assert shares(chosen)["test"] == shares(whole)["test"]


@pytest.mark.parametrize("make", [lambda: Settings(schedule="step"), lambda: select_by("month")])
def test_a_word_that_means_nothing_is_refused(make) -> None:
    with pytest.raises(UnusableSettings):
        make()


def select_by(split: str) -> Prepared:
    empty = pd.DataFrame({"image": ["a"], "patient_id": ["1"], "split": [""], "Mass": np.ones(1, np.uint8)})
    return select(
        Prepared(empty, np.zeros((1, 32, 32), np.uint8), Preprocessing(size=32)), Selection(split=split), seed=0
    )


def test_settings_are_described_for_the_commands() -> None:
    from dataclasses import fields

    assert all(field.metadata["help"] for kind in (Settings, Selection) for field in fields(kind))
    assert replace(Settings(), learning_rate=0.01).learning_rate == 0.01
