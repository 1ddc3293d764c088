from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.calibration import reference
from training.checkpoint import load_checkpoint
from training.crossfit import calibrated_out_of_fold, centred, cross_fit, deal, predict_logits
from training.imaging.preprocessing import Preprocessing
from training.manifest import UNKNOWN
from training.prepared import Prepared
from training.settings import Settings

pytestmark = pytest.mark.slow  # trains networks

SETTINGS = Settings(
    network="shufflenet_v2_x0_5", start="chance", epochs=1, steps_per_epoch=2, batch_size=8, accelerator="cpu"
)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 2)) < 0.4).astype(np.uint8)
    manifest = pd.DataFrame({"image": [f"{k}.png" for k in range(40)], "patient_id": [str(k // 3) for k in range(40)]})
    manifest = manifest.assign(split="", Mass=labels[:, 0], Edema=labels[:, 1])
    return Prepared(manifest, rng.integers(0, 256, (40, 32, 32), dtype=np.uint8), Preprocessing(size=32))


@pytest.fixture(scope="module")
def folder(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crossfit")
    cross_fit(prepared, SETTINGS, folder, folds=2, progress=False)
    return folder


def test_a_patients_films_are_dealt_to_one_fold(prepared: Prepared) -> None:
    fold = pd.Series(deal(prepared.manifest, folds=3, seed=1), index=prepared.manifest["patient_id"])
    assert (fold.groupby(level=0).nunique() == 1).all()
    assert set(fold) == {0, 1, 2}


def test_every_film_is_judged_by_a_network_that_never_saw_its_patient(prepared: Prepared, folder: Path) -> None:
    judged = pd.read_csv(folder / "out_of_fold.csv")
    assert judged["image"].tolist() == prepared.manifest["image"].tolist()
    for number in (0, 1):
        trained = set((folder / f"fold-{number}" / "train.txt").read_text().split())
        patients = prepared.manifest.set_index("image")["patient_id"]
        asked = judged.loc[judged["fold"] == number, "image"]
        assert set(patients[list(trained)]).isdisjoint(patients[asked])
        assert len(trained) + len(asked) == 40


def test_what_ships_learned_from_all_films_and_is_calibrated_by_the_folds(prepared: Prepared, folder: Path) -> None:
    shipped = load_checkpoint(folder / "checkpoint.safetensors", findings=("Mass", "Edema"))
    whole = load_checkpoint(folder / "whole" / "checkpoint.safetensors", findings=None)
    assert shipped.training["films"]["train"] == 40
    assert shipped.training["folds"] == 2
    assert all(np.array_equal(shipped.state[name], whole.state[name]) for name in whole.state)
    assert shipped.calibration.shift != whole.calibration.shift  # centred
    assert set(shipped.thresholds["Mass"]) == {"sensitivity_90", "flag_10"}
    assert shipped.reference["films"] == 40
    logits = predict_logits(shipped, prepared, accelerator="cpu")  # drift is judged by this network's own outputs
    own = reference(shipped.calibration.probabilities(logits), findings=shipped.findings)
    for finding, quantiles in shipped.reference["probabilities"].items():
        assert quantiles == pytest.approx(own["probabilities"][finding], abs=2e-3)  # half precision in the file


def test_started_again_it_changes_nothing(prepared: Prepared, folder: Path) -> None:
    before = (folder / "checkpoint.safetensors").read_bytes()
    cross_fit(prepared, SETTINGS, folder, folds=2, progress=False)
    assert (folder / "checkpoint.safetensors").read_bytes() == before


def test_calibration_is_fitted_on_the_other_folds_alone_but_for_the_prevalence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 1))
    labels = (rng.random((200, 1)) < 0.3).astype(np.uint8)
    fold = np.arange(200) % 2
    before = calibrated_out_of_fold(logits, labels, fold=fold)
    shuffled = labels.copy()
    shuffled[fold == 0] = rng.permutation(labels[fold == 0])
    after = calibrated_out_of_fold(logits, shuffled, fold=fold)
    assert np.array_equal(before[fold == 0], after[fold == 0])
    assert not np.allclose(before[fold == 1], after[fold == 1])


def test_networks_are_centred_without_a_look_at_their_own_unseen_films() -> None:
    rng = np.random.default_rng(0)
    fold = np.repeat([0, 1, 2], 400)
    middle = np.array([0.0, 3.0, -2.0, 1.0])  # of three folds' networks and the whole's
    outputs = rng.normal(size=(4, 1200, 2)) + middle[:, None, None]
    outputs[3] += 0.5  # a network is surer of films that it learned from
    for k in range(3):
        outputs[k][fold != k] += 0.5
    logits, centre = centred(outputs, fold=fold)
    for k in range(3):
        assert np.abs(logits[fold == k].mean(axis=0)).max() < 0.25
    assert np.abs(centre - 1.0).max() < 0.15
    moved = outputs.copy()
    moved[0][fold == 0] += 7.0  # outputs on unseen films move them and nothing else of this network
    assert np.allclose(centred(moved, fold=fold)[0][fold == 0] - logits[fold == 0], 7.0)


def test_a_checkpoint_is_asked_about_one_part_of_the_split(prepared: Prepared, folder: Path) -> None:
    split = np.where(np.arange(40) < 7, "test", "train")
    part = replace(prepared, manifest=prepared.manifest.assign(split=split))
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors", findings=None)
    assert predict_logits(checkpoint, part, split="test", accelerator="cpu").shape == (7, 2)


def test_what_the_folds_say_is_calibrated_by_the_known_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 1))
    labels = (rng.random((400, 1)) < 0.3).astype(np.uint8)
    fold, known = np.arange(400) % 2, np.arange(400) % 4 < 2
    partly = np.where(known[:, None], labels, np.uint8(UNKNOWN))
    alone = calibrated_out_of_fold(logits[known], labels[known], fold=fold[known])
    np.testing.assert_array_equal(calibrated_out_of_fold(logits, partly, fold=fold)[known], alone)
