import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from training.checkpoint import Calibration, Header, build, load_checkpoint, read_header, save_checkpoint
from training.fit import (
    Diverged,
    Films,
    Learner,
    OtherRun,
    figures_on_validation,
    fit,
    freeze,
    from_checkpoint,
    launch,
    make_learner,
    predict,
    rate_at,
    train_epoch,
    training_batches,
)
from training.grids import GridLayer
from training.imaging.preprocessing import Preprocessing
from training.losses import make_loss, shift_of
from training.manifest import UNKNOWN
from training.networks import WrongWeights, input_of, make_network
from training.prepared import Prepared
from training.settings import Settings, UnusableSettings

pytestmark = pytest.mark.slow  # trains networks

SETTINGS = Settings(start="chance", epochs=3, batch_size=6, accelerator="cpu", warmup_steps=2)


def films_of(*, size: int = 32, films: int = 36) -> Prepared:
    """Images of noise, brighter where there is Mass; the same at every call."""
    rng = np.random.default_rng(0)
    labels = (rng.random((films, 2)) < 0.4).astype(np.uint8)
    images = rng.integers(0, 128, (films, size, size), dtype=np.uint8) + labels[:, :1, None] * np.uint8(90)
    manifest = pd.DataFrame(
        {"image": [f"{k}.png" for k in range(films)], "patient_id": [str(k // 2) for k in range(films)]}
    )
    manifest["split"] = np.repeat(["train", "validation"], [films * 2 // 3, films - films * 2 // 3])
    return Prepared(manifest.assign(Mass=labels[:, 0], Edema=labels[:, 1]), images, Preprocessing(size=size))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    fit(films_of(), SETTINGS, folder, progress=False)
    return folder


def test_a_run_leaves_its_settings_lists_figures_and_checkpoint(undisturbed: Path) -> None:
    names = {path.name.split(".")[0] for path in undisturbed.iterdir()}
    assert names == {"run", "train", "validation", "test", "metrics", "checkpoint", "resume", "events"}
    assert len((undisturbed / "train.txt").read_text().split()) == 24
    figures = pd.read_csv(undisturbed / "metrics.csv")
    assert figures["epoch"].tolist() == [1, 2, 3]
    assert {"train_loss", "validation/loss", "validation/auroc/macro", "validation/exact_match/all"} <= set(figures)
    checkpoint = load_checkpoint(undisturbed / "checkpoint.safetensors", findings=("Mass", "Edema"))
    best = figures["validation/auroc/macro"].to_numpy().argmax() + 1
    assert checkpoint.training["epoch"] == best
    assert checkpoint.training["films"] == {"train": 24, "validation": 12, "test": 0}
    assert checkpoint.calibration.shift != (0.0, 0.0)


def test_the_same_run_twice_gives_the_same_digest(undisturbed: Path, tmp_path: Path) -> None:
    again = fit(films_of(), SETTINGS, tmp_path, progress=False)
    assert again.read_bytes() == (undisturbed / "checkpoint.safetensors").read_bytes()


def test_another_seed_gives_another_network(undisturbed: Path, tmp_path: Path) -> None:
    again = fit(films_of(), replace(SETTINGS, seed=1, epochs=1), tmp_path, progress=False)
    assert again.read_bytes() != (undisturbed / "checkpoint.safetensors").read_bytes()


KILLED_IN_EPOCH_2 = """
import os, signal, sys
from pathlib import Path
import torch
import training.fit
from tests.unit.test_fit import SETTINGS, films_of
torch.set_num_threads(int(sys.argv[2]))
rate_at = training.fit.rate_at
def killing(step, learner):
    if step == learner.steps_per_epoch + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate_at(step, learner)
training.fit.rate_at = killing
training.fit.fit(films_of(), SETTINGS, Path(sys.argv[1]), progress=False)
"""


def test_a_run_killed_in_its_second_epoch_ends_like_one_that_was_not(undisturbed: Path, tmp_path: Path) -> None:
    root, threads = Path(__file__).parents[2], str(torch.get_num_threads())
    child = [sys.executable, "-c", KILLED_IN_EPOCH_2, str(tmp_path), threads]
    assert subprocess.run(child, cwd=root, check=False).returncode == -signal.SIGKILL
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 1
    fit(films_of(), SETTINGS, tmp_path, progress=False)
    for name in ("metrics.csv", "checkpoint.safetensors"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_finished_run_has_nothing_left_to_do(undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("*.*") if "events" not in path.name}
    fit(films_of(), SETTINGS, undisturbed, progress=False)
    changed = {path.name for path, then in before.items() if path.stat().st_mtime_ns != then}
    assert changed <= {"run.json", "train.txt", "validation.txt", "test.txt"}


def test_a_folder_of_another_run_is_refused(undisturbed: Path) -> None:
    with pytest.raises(OtherRun):
        fit(films_of(), replace(SETTINGS, learning_rate=1.0), undisturbed, progress=False)
    with pytest.raises(OtherRun):
        fit(films_of(films=30), SETTINGS, undisturbed, progress=False)
    assert json.loads((undisturbed / "run.json").read_text())["learning_rate"] == SETTINGS.learning_rate


def test_what_is_refused_leaves_no_folder_that_refuses_the_right_command(tmp_path: Path) -> None:
    with pytest.raises(UnusableSettings):
        fit(films_of(), replace(SETTINGS, frozen_blocks=999), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(Diverged):
        fit(films_of(), replace(SETTINGS, learning_rate=1e9), tmp_path / "run", progress=False)
    assert fit(films_of(), replace(SETTINGS, epochs=1), tmp_path / "run", progress=False).exists()


def test_a_finished_run_goes_on_when_more_epochs_are_asked_for_and_never_goes_back(tmp_path: Path) -> None:
    fit(films_of(), replace(SETTINGS, epochs=1), tmp_path, progress=False)
    path = fit(films_of(), replace(SETTINGS, epochs=2), tmp_path, progress=False)
    assert pd.read_csv(tmp_path / "metrics.csv")["epoch"].tolist() == [1, 2]
    assert read_header(path).training["settings"]["epochs"] in (1, 2)
    assert json.loads((tmp_path / "run.json").read_text())["epochs"] == 2
    with pytest.raises(OtherRun):
        fit(films_of(), replace(SETTINGS, epochs=1), tmp_path, progress=False)


@pytest.mark.filterwarnings("error:overflow")
def test_logits_beyond_all_bounds_give_no_warning() -> None:
    films = Films.of(films_of(), "validation")
    logits = np.full(films.labels.shape, -1000.0, dtype=np.float32)
    loss = make_loss("bce", frequency=torch.full((films.labels.shape[1],), 0.5))
    assert figures_on_validation(logits, films, loss, findings=("Mass", "Edema"))["validation/auroc/macro"] == 0.5


def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    # Enough films and steps to learn it with any number of threads, which decides the order of the sums.
    settings = replace(SETTINGS, network="shufflenet_v2_x0_5", loss="bce", augment=False, epochs=8, learning_rate=5e-3)
    fit(films_of(films=90), settings, tmp_path, progress=False)
    assert pd.read_csv(tmp_path / "metrics.csv")["validation/auroc/Mass"].max() > 0.9


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=0.0, weight_decay=0.0, epochs=9, patience_epochs=1, frozen_blocks=19)
    fit(films_of(), settings, tmp_path, progress=False)
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 2


def test_without_validation_the_last_epoch_counts_and_only_the_shift_is_known(tmp_path: Path) -> None:
    prepared = films_of()
    prepared = replace(prepared, manifest=prepared.manifest.assign(split="train"))
    path = fit(prepared, replace(SETTINGS, epochs=2), tmp_path, progress=False)
    checkpoint = load_checkpoint(path, findings=None)
    assert checkpoint.training["epoch"] == 2
    assert checkpoint.calibration.slope == (1.0, 1.0)
    assert checkpoint.thresholds == {}


def test_a_loss_that_leaves_the_numbers_is_told(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="lower learning rate"):
        fit(films_of(), replace(SETTINGS, learning_rate=1e30, warmup_steps=0), tmp_path, progress=False)


def learner_of(settings: Settings, folder: Path, prepared: Prepared):
    preprocessing = input_of(settings.network, size=prepared.preprocessing.size)
    films = Films.of(prepared, "train")
    return make_learner(
        launch(settings, folder), settings, films, findings=prepared.findings, preprocessing=preprocessing
    )


def shown(learner: Learner, films: Films, *, epochs: int) -> list[NDArray[np.uint8]]:
    """The films in the order in which a training sees them."""
    batches = (batch for epoch in range(epochs) for batch, _ in training_batches(learner, films, epoch=epoch))
    return [image.numpy() for batch in batches for image in batch]


def test_every_film_comes_once_before_any_comes_twice(tmp_path: Path) -> None:
    prepared = films_of()
    learner = learner_of(replace(SETTINGS, augment=False, steps_per_epoch=3), tmp_path, prepared)
    films = Films.of(prepared, "train")
    seen = shown(learner, films, epochs=4)
    assert len(seen) == 72
    for one_pass in (seen[:24], seen[24:48], seen[48:]):
        assert sorted(image.tobytes() for image in one_pass) == sorted(image.tobytes() for image in films.images[:24])
    assert [image.tobytes() for image in seen[:24]] != [image.tobytes() for image in seen[24:48]]


def test_mirrored_films_come_once_each_way_in_two_passes_half_of_them_in_each(tmp_path: Path) -> None:
    prepared = films_of()
    learner = learner_of(replace(SETTINGS, augment=False, mirror=True, steps_per_epoch=3), tmp_path, prepared)
    films = Films.of(prepared, "train")
    seen = shown(learner, films, epochs=3)
    plain = {image.tobytes() for image in films.images[:24]}
    mirrored = {np.ascontiguousarray(image[:, ::-1]).tobytes() for image in films.images[:24]}
    assert not plain & mirrored
    assert {image.tobytes() for image in seen[:48]} == plain | mirrored, "every film, both ways"
    assert sum(image.tobytes() in mirrored for image in seen[:24]) == 12


def test_labels_stay_with_their_films(tmp_path: Path) -> None:
    prepared = films_of()
    learner = learner_of(replace(SETTINGS, augment=False), tmp_path, prepared)
    for images, labels in training_batches(learner, Films.of(prepared, "train"), epoch=0):
        assert ((images.float().mean(dim=(1, 2)) > 100).float() == labels[:, 0]).all()


def test_places_with_gaps_are_followed(tmp_path: Path) -> None:
    prepared = films_of()
    prepared = replace(prepared, manifest=prepared.manifest.drop(index=[0, 7, 8]))
    films = Films.of(prepared, "train")
    assert torch.equal(films.read(np.array([0, 6])), torch.from_numpy(prepared.images[[1, 9]]))
    assert films.labels[6].tolist() == list(prepared.manifest.loc[9, ["Mass", "Edema"]])


def test_the_rate_rises_then_falls_to_nothing(tmp_path: Path) -> None:
    learner = learner_of(
        replace(SETTINGS, learning_rate=1.0, epochs=10, steps_per_epoch=10, warmup_steps=5), tmp_path, films_of()
    )
    rates = [rate_at(step, learner) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 0.001
    constant = replace(learner, settings=replace(learner.settings, schedule="constant"))
    assert rate_at(99, constant) == 1.0


def test_frozen_blocks_and_their_batch_norms_stand_still(tmp_path: Path) -> None:
    prepared = films_of()
    learner = learner_of(replace(SETTINGS, frozen_blocks=4), tmp_path, prepared)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    train_epoch(learner, Films.of(prepared, "train"), epoch=0)
    after = learner.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(tuple(f"features.{block}." for block in range(4))) for name in changed)
    assert "features.4.conv.0.1.running_mean" in changed
    assert "classifier.1.weight" in changed


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_grid", "mobilenet_lungs"])
def test_every_mobilenet_has_blocks_to_freeze(name: str) -> None:
    network = make_network(name)
    freeze(network, blocks=4)
    learning = {part for part, parameter in network.named_parameters() if parameter.requires_grad}
    assert not any(part.startswith(tuple(f"features.{block}." for block in range(4))) for part in learning)
    assert "features.4.conv.0.0.weight" in learning


def test_a_network_without_such_blocks_cannot_be_frozen() -> None:
    with pytest.raises(UnusableSettings):
        freeze(make_network("resnet18"), blocks=3)


def test_predictions_come_in_the_films_order_whatever_the_batch(tmp_path: Path) -> None:
    prepared = films_of()
    learner = learner_of(SETTINGS, tmp_path, prepared)
    films = Films.of(prepared, "validation")
    whole, pieces = (
        predict(learner.network, films, learner.preprocessing, batch_size=size, fabric=learner.fabric)
        for size in (64, 5)
    )
    assert whole.shape == (12, 2)
    assert np.allclose(whole, pieces, atol=1e-5)


def test_reading_ahead_hides_a_slow_disk(tmp_path: Path) -> None:
    """While a step is at work on a batch, the next one is read already."""
    prepared = films_of()
    learner = learner_of(replace(SETTINGS, augment=False, steps_per_epoch=10), tmp_path, prepared)
    reads = threading.Semaphore(0)

    class Disk(np.ndarray):
        def __getitem__(self, which):
            reads.release()
            return np.asarray(self).__getitem__(which)

    films = Films.of(prepared, "train")._replace(images=prepared.images.view(Disk))
    batches = training_batches(learner, films, epoch=0)
    next(batches)
    assert reads.acquire(timeout=30)  # the first batch's own
    for _ in range(9):
        assert reads.acquire(timeout=30), "nothing is read before it is asked for"
        next(batches)
    assert list(batches) == []


def test_only_what_starts_from_a_stable_split_can_claim_one(tmp_path: Path) -> None:
    """Weights that may have learned from a test patient are handed on with the checkpoint, whoever trains next."""
    settings, films = replace(SETTINGS, epochs=1), films_of()

    def trained(name: str, *, split: str, start: Path | None = None) -> tuple[Path, str]:
        asked = settings if start is None else replace(settings, start=str(start))
        path = fit(films, asked, tmp_path / name, progress=False, split=split)
        return path, load_checkpoint(path, findings=None).training["split"]

    stable, own = trained("stable", split="stable")
    other, drawn = trained("other", split="patient")
    assert (own, drawn) == ("stable", "patient")
    assert trained("child", split="stable", start=stable)[1] == "stable"
    child, claimed = trained("stepchild", split="stable", start=other)
    assert claimed == "stable, but not of what it starts from"
    assert trained("grandchild", split="stable", start=child)[1] == claimed


def test_a_checkpoint_says_what_its_start_learned_from(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    paths = [fit(films_of(films=24), settings, tmp_path / "0", progress=False)]
    for generation in ("1", "2"):
        begun = replace(settings, start=str(paths[-1]))
        paths.append(fit(films_of(), begun, tmp_path / generation, progress=False))
    first, second, third = (load_checkpoint(path, findings=None).training for path in paths)
    assert "start" not in first
    assert second["start"] == {name: first[name] for name in ("settings", "films", "patients", "positives")}
    assert third["start"]["start"] == second["start"]


def test_a_purpose_is_in_the_header_and_goes_on_in_what_starts_from_it(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    made = fit(films_of(), replace(settings, purpose="demo, learned from drawings"), tmp_path / "0", progress=False)
    then = fit(films_of(), replace(settings, start=str(made)), tmp_path / "1", progress=False)
    assert [read_header(path).purpose for path in (made, then)] == ["demo, learned from drawings"] * 2
    assert read_header(fit(films_of(), settings, tmp_path / "2", progress=False)).purpose == ""


def with_unknown(prepared: Prepared) -> Prepared:
    """Mass unknown on every third film, Edema on all of training's first batch."""
    edema = prepared.manifest["Edema"].mask(prepared.manifest.index < 6, UNKNOWN)
    mass = prepared.manifest["Mass"].mask(prepared.manifest.index % 3 == 0, UNKNOWN)
    return replace(prepared, manifest=prepared.manifest.assign(Mass=mass.astype("uint8"), Edema=edema.astype("uint8")))


def test_films_of_which_some_findings_are_unknown_are_learned_from(tmp_path: Path) -> None:
    prepared = with_unknown(films_of())
    path = fit(prepared, replace(SETTINGS, epochs=1), tmp_path, progress=False, split="stable")
    training = load_checkpoint(path, findings=None).training
    assert training["split"] == "stable"
    assert training["films"]["train"] == 24
    assert training["known"]["train"] == {"Mass": 16, "Edema": 18}
    train = prepared.manifest[prepared.manifest["split"] == "train"]
    assert training["positives"]["train"] == {name: int((train[name] == 1).sum()) for name in ("Mass", "Edema")}
    figures = pd.read_csv(tmp_path / "metrics.csv").iloc[0]
    known = prepared.manifest[(prepared.manifest["split"] == "validation") & (prepared.manifest["Mass"] != UNKNOWN)]
    assert figures["validation/prevalence/Mass"] == pytest.approx(known["Mass"].mean())
    assert np.isfinite(figures["validation/loss"])


def test_an_unknown_label_teaches_nothing(tmp_path: Path) -> None:
    """The loss's weights come from the known labels, and its gradient is that of the known labels."""
    prepared = with_unknown(films_of())
    learner = learner_of(replace(SETTINGS, augment=False), tmp_path, prepared)
    train = prepared.manifest[prepared.manifest["split"] == "train"]
    frequency = [train.loc[train[name] != UNKNOWN, name].mean() for name in ("Mass", "Edema")]
    expected = make_loss("wbce_normalised", frequency=torch.tensor(frequency).float())
    assert shift_of(learner.loss, findings=2) == pytest.approx(shift_of(expected, findings=2))
    for _, labels in training_batches(learner, Films.of(prepared, "train"), epoch=0):
        logits = torch.zeros(len(labels), 2, requires_grad=True)
        learner.loss(logits, labels).backward()
        assert logits.grad is not None
        assert ((logits.grad == 0) == labels.isnan()).all()


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says something: a bias, a shift and a calibration of its own."""
    torch.manual_seed(3)
    network = make_network("mobilenet", findings=2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all it sees, so that a few films are enough for logits that differ
    with torch.no_grad():
        for _ in range(8):
            network(torch.randn(16, 3, 32, 32))
    calibration = Calibration(shift=(2.0, -0.5), slope=(0.7, 1.3), intercept=(-3.0, 0.4))
    header = Header(network="mobilenet", findings=("Mass", "Edema"), calibration=calibration)
    path = tmp_path_factory.mktemp("champion") / "champion.safetensors"
    save_checkpoint(path, header, state=network.state_dict(), half=True)
    return path


def test_a_run_starts_where_its_checkpoint_ended(champion: Path, tmp_path: Path) -> None:
    """Every weight is the checkpoint's, and the logits are its calibrated log odds plus the new loss's shift."""
    prepared = films_of()
    learner = learner_of(replace(SETTINGS, start=str(champion)), tmp_path, prepared)
    start = load_checkpoint(champion, findings=None)
    own = learner.network.state_dict()
    last = {"classifier.1.weight", "classifier.1.bias"}
    assert all(
        torch.equal(own[name], tensor.to(own[name].dtype)) for name, tensor in start.state.items() if name not in last
    )
    films = Films.of(prepared, "validation")
    before, after = (
        predict(network, films, learner.preprocessing, batch_size=8, fabric=learner.fabric)
        for network in (build(start), learner.network)
    )
    shift = shift_of(learner.loss, findings=2)
    assert shift[0] > 0.1
    unmoved = Calibration(shift=shift, slope=(1.0, 1.0), intercept=(0.0, 0.0))
    np.testing.assert_allclose(unmoved.probabilities(after), start.calibration.probabilities(before), atol=1e-5)


def test_a_start_is_where_the_new_loss_wants_it(champion: Path) -> None:
    """Of all constants that could be added to the start's logits, none makes the loss of calibrated films smaller."""
    rng = np.random.default_rng(1)
    images = torch.tensor(rng.normal(size=(60, 3, 32, 32)), dtype=torch.float32)
    start = load_checkpoint(champion, findings=None)
    with torch.inference_mode():
        odds = start.calibration.probabilities(build(start)(images).numpy())
    frequency = torch.tensor(odds.mean(axis=0))
    for name in ("bce", "wbce_normalised"):
        loss = make_loss(name, frequency=frequency)
        shift = shift_of(loss, findings=2)
        network = from_checkpoint(champion, network="mobilenet", findings=("Mass", "Edema"), shift=shift).eval()
        added = torch.zeros(2, requires_grad=True)
        # Labels as the checkpoint says they are: every film is a positive with its probability.
        loss.of_pairs(network(images).detach() + added, torch.tensor(odds)).mean(dim=0).sum().backward()
        assert added.grad is not None
        assert added.grad.abs().max() < 0.02
        assert network(images).std(dim=0).min() > 0.1


def test_a_grid_starts_from_a_mobilenets_checkpoint_with_nothing_said_yet(champion: Path) -> None:
    start = load_checkpoint(champion, findings=None)
    network = from_checkpoint(champion, network="mobilenet_grid", findings=("Mass", "Edema"), shift=(1.0, 2.0)).eval()
    blocks = {name: value for name, value in network.state_dict().items() if name.startswith("features.")}
    assert all(torch.equal(value, start.state[name].to(value.dtype)) for name, value in blocks.items())
    assert torch.equal(network(torch.randn(2, 3, 64, 64)), torch.zeros(2, 2))


@pytest.mark.parametrize("name", ["mobilenet_grid", "mobilenet_lungs"])
def test_a_grid_that_starts_from_its_like_takes_over_what_its_calibration_says(name: str, tmp_path: Path) -> None:
    network = make_network(name, findings=2)
    for layer in (part for part in network.modules() if isinstance(part, GridLayer)):
        torch.nn.init.normal_(layer.evidence.weight)
    calibration = Calibration(shift=(2.0, -0.5), slope=(0.7, 1.3), intercept=(-3.0, 0.4))
    header = Header(network=name, findings=("Mass", "Edema"), calibration=calibration)
    path = tmp_path / "grid.safetensors"
    save_checkpoint(path, header, state=network.state_dict())
    images, shift = torch.randn(3, 3, 64, 64), (1.0, 2.0)
    with torch.inference_mode():
        before = build(load_checkpoint(path, findings=None))(images).numpy()
        after = from_checkpoint(path, network=name, findings=("Mass", "Edema"), shift=shift).eval()(images)
    unmoved = Calibration(shift=shift, slope=(1.0, 1.0), intercept=(0.0, 0.0))
    np.testing.assert_allclose(unmoved.probabilities(after.numpy()), calibration.probabilities(before), atol=1e-5)


def test_a_run_from_a_checkpoint_is_the_same_when_it_was_killed(champion: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, start=str(champion), epochs=1)
    one, other = (fit(films_of(), settings, tmp_path / name, progress=False) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert load_checkpoint(one, findings=None).training["settings"]["start"] == "champion.safetensors"


@pytest.mark.parametrize(
    ("settings", "findings", "message"),
    [
        ({"network": "shufflenet_v2_x0_5"}, ["Mass", "Edema"], "is a mobilenet and cannot be the start"),
        ({}, ["Mass", "Hernia"], "scores Mass, Edema; the films say Mass, Hernia"),
    ],
)
def test_a_checkpoint_of_something_else_is_no_start(
    champion: Path, tmp_path: Path, settings: dict[str, Any], findings: list[str], message: str
) -> None:
    prepared = films_of()
    renamed = prepared.manifest.rename(columns=dict(zip(["Mass", "Edema"], findings, strict=True)))
    with pytest.raises(WrongWeights, match=message):
        learner_of(replace(SETTINGS, start=str(champion), **settings), tmp_path, replace(prepared, manifest=renamed))
