"""A last layer that is solved and not learned: the ridge regression's, and the same however the films come."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from training import last_layer
from training.augmentation import slightly_changed
from training.checkpoint import build, load_checkpoint
from training.crossfit import predict_logits
from training.fit import Films, fit, launch, make_learner
from training.imaging.preprocessing import Preprocessing
from training.losses import targets
from training.manifest import UNKNOWN
from training.networks import input_of
from training.prepared import Prepared
from training.settings import Settings, UnusableSettings

FILMS, INPUTS, EPS = 300, 40, 1e-5
SETTINGS = Settings(
    network="mobilenet_grid",
    start="chance",
    last_layer="ridge",
    ridge_penalty=0.1,
    epochs=1,
    batch_size=16,
    accelerator="cpu",
)


@pytest.fixture
def inputs() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(FILMS, INPUTS)) * rng.uniform(0.1, 3, INPUTS) + rng.normal(size=INPUTS) * 5
    return values.astype(np.float32)


@pytest.fixture
def labels(inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
    odds = inputs[:, :2] - inputs[:, :2].mean(axis=0)
    return (np.random.default_rng(1).random((FILMS, 2)) < 1 / (1 + np.exp(-odds))).astype(np.uint8)


def summed(inputs: NDArray[np.float32], labels: NDArray[np.uint8], *, films_each: int) -> last_layer.Sums:
    sums = last_layer.no_films(inputs=INPUTS, findings=2)
    for start in range(0, FILMS, films_each):
        here = slice(start, start + films_each)
        last_layer.add(sums, torch.from_numpy(inputs[here]), targets(labels[here]))
    return sums


def test_the_weights_are_the_librarys_ridge_in_log_odds(inputs: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    penalty = torch.full((INPUTS,), 20.0)
    mean, variance, weight, bias = last_layer.solve(summed(inputs, labels, films_each=32), penalty=penalty, eps=EPS)
    np.testing.assert_allclose(mean, inputs.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(variance, inputs.var(axis=0), rtol=1e-3)
    standardised = (inputs - inputs.mean(axis=0)) / np.sqrt(inputs.var(axis=0) + EPS)
    for finding, truth in enumerate(labels.T):
        share = (truth.sum() + 0.5) / (FILMS + 1)
        ridge = Ridge(alpha=20).fit(standardised, truth)
        np.testing.assert_allclose(weight[finding], ridge.coef_ / (share * (1 - share)), atol=1e-4)
        assert float(bias[finding]) == pytest.approx(np.log(share / (1 - share)))


def test_a_films_unknown_label_has_no_part_in_its_finding(
    inputs: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    """What is unknown of one finding changes nothing for the other, and is neither a yes nor a no."""
    penalty = torch.full((INPUTS,), 20.0)
    partly = labels.copy()
    partly[::3, 0] = UNKNOWN
    whole, known = (
        last_layer.solve(summed(inputs, each, films_each=50), penalty=penalty, eps=EPS) for each in (labels, partly)
    )
    assert torch.equal(whole[2][1], known[2][1])
    share = (labels[partly[:, 0] != UNKNOWN, 0].sum() + 0.5) / (FILMS - 100 + 1)
    assert float(known[3][0]) == pytest.approx(np.log(share / (1 - share)))
    assert float(torch.corrcoef(torch.stack([whole[2][0], known[2][0]]))[0, 1]) > 0.8


def test_the_order_of_the_films_changes_nothing(inputs: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    penalty = torch.full((INPUTS,), 20.0)
    shuffled = np.random.default_rng(2).permutation(FILMS)
    sums = summed(inputs, labels, films_each=32), summed(inputs[shuffled], labels[shuffled], films_each=7)
    for one, other in zip(*(last_layer.solve(each, penalty=penalty, eps=EPS) for each in sums), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def bright_films() -> Prepared:
    """Films with Mass are brighter, half of them kept for validation."""
    rng = np.random.default_rng(3)
    mass = (rng.random(96) < 0.5).astype(np.uint8)
    images = rng.integers(60, 120, (96, 64, 64)) + 70 * mass[:, None, None]
    manifest = pd.DataFrame({"image": [f"{k}.png" for k in range(96)], "patient_id": [str(k) for k in range(96)]})
    manifest = manifest.assign(age_years=50.0, sex="F", view_position="PA", source="", Mass=mass)
    manifest["split"] = np.repeat(["train", "validation"], 48)
    return Prepared(manifest, images.astype(np.uint8), Preprocessing(size=64))


def test_a_fit_solves_the_last_layer_and_leaves_the_others_as_they_started(tmp_path: Path) -> None:
    films = bright_films()
    path = fit(films, SETTINGS, tmp_path / "one", progress=False)
    checkpoint = load_checkpoint(path, findings=None)
    probabilities = checkpoint.calibration.probabilities(predict_logits(checkpoint, films, split="validation"))
    truth = films.manifest.loc[films.manifest["split"] == "validation", "Mass"]
    assert roc_auc_score(truth, probabilities[:, 0]) > 0.95
    assert checkpoint.calibration.shift == (0.0,), "solved log odds carry no loss's shift"
    steps = pd.read_csv(tmp_path / "one" / "metrics.csv")
    assert steps["train_loss"].iloc[-1] < 0.65

    start = starting_weights(films, tmp_path)
    blocks = {name: value for name, value in checkpoint.state.items() if name.startswith("features.")}
    assert all(torch.equal(value, start[name].to(value.dtype)) for name, value in blocks.items())


def starting_weights(films: Prepared, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that the seed starts with."""
    fabric = launch(SETTINGS, folder / "start")
    made = make_learner(
        fabric,
        SETTINGS,
        Films.of(films, "train"),
        findings=films.findings,
        preprocessing=input_of("mobilenet_grid", size=64),
    )
    return dict(made.network.state_dict())


def test_a_second_pass_adds_to_the_sums_of_the_first_also_after_a_kill(tmp_path: Path) -> None:
    prepared = bright_films()
    films = replace(prepared, manifest=prepared.manifest.assign(split="train"))  # so that the last epoch counts
    twice = replace(SETTINGS, epochs=2)
    fit(films, SETTINGS, tmp_path / "one", progress=False)
    resumed, whole = (load_checkpoint(fit(films, twice, tmp_path / run, progress=False), findings=None)
                      for run in ("one", "other"))  # fmt: skip
    once = load_checkpoint(fit(films, SETTINGS, tmp_path / "once", progress=False), findings=None)
    weights = [each.state["evidence.weight"] for each in (resumed, whole, once)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_changes_count_as_films_moved_by_them_and_against_them(
    inputs: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    changes = torch.from_numpy(np.random.default_rng(2).normal(size=inputs.shape).astype(np.float32))
    sums = summed(inputs, labels, films_each=100)
    last_layer.add_changes(sums, changes, weight=0.25)
    moved = last_layer.no_films(inputs=INPUTS, findings=2)
    for change in (changes / 2, -changes / 2):
        last_layer.add(moved, torch.from_numpy(inputs) + change, targets(labels))
    once = last_layer.solve(sums, penalty=torch.full((INPUTS,), 3.0), eps=EPS)
    twice = last_layer.solve(moved, penalty=torch.full((INPUTS,), 6.0), eps=EPS)  # of twice the films
    assert all(torch.allclose(one, other, rtol=1e-2, atol=1e-3) for one, other in zip(once, twice, strict=True))
    plain = last_layer.solve(summed(inputs, labels, films_each=100), penalty=torch.full((INPUTS,), 3.0), eps=EPS)
    assert not torch.allclose(once[2], plain[2], rtol=1e-2, atol=1e-3)


def test_a_steady_layer_says_less_of_what_slight_changes_change(tmp_path: Path) -> None:
    films = bright_films()
    shown = Films.of(films, "validation").read(np.arange(48))
    changed = slightly_changed(shown, drawn=torch.Generator().manual_seed(0))
    moved = []
    for steady in (0.0, 3000.0):
        path = fit(films, replace(SETTINGS, steady=steady), tmp_path / str(steady), progress=False)
        checkpoint = load_checkpoint(path, findings=None)
        network = build(checkpoint).eval()
        with torch.inference_mode():
            before, after = (network(checkpoint.preprocessing.tensor(images)) for images in (shown, changed))
        moved.append(float((after - before).std() / before.std()))
    assert moved[1] < 0.7 * moved[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "mobilenet"}, "networks mobilenet_grid and mobilenet_lungs"),
        ({"devices": 2}, "on one device"),
        ({"last_layer": "lasso"}, "gradient or ridge"),
        ({"ridge_penalty": 0.0}, "above 0"),
        ({"steady": -1.0}, "0 or more"),
        ({"steady": 1.0, "last_layer": "gradient"}, "only for a solved last layer"),
    ],
)
def test_what_cannot_be_solved_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableSettings, match=message):
        replace(SETTINGS, **wrong)
