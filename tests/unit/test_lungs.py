"""The start of a `mobilenet_lungs`: outlines laid from films of the lungs alone over whole ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from training import lungs
from training.checkpoint import Calibration, Header, build, load_checkpoint, save_checkpoint
from training.fit import fit
from training.grids import MobileNetLungs
from training.networks import input_of, make_network
from training.prepared import Prepared
from training.settings import Settings, UnusableSettings

SIZE = 112
FINDINGS = ("Mass", "Edema")


def drawn(*, scale: float = 1.0, down: int = 0, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright chest with two lungs, darkest at their tops and hearts, uint8 (SIZE, SIZE), and where the lungs are."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    film, inside = np.full((SIZE, SIZE), 170.0), np.zeros((SIZE, SIZE), dtype=bool)
    for side in (-1, 1):
        across, along = (x - 0.5 - side * 0.17 * scale) / (0.13 * scale), (y - 0.45 - down / SIZE) / (0.27 * scale)
        lung = across**2 + along**2 < 1
        ribs = 12 * np.cos(6 * np.pi * (along + 0.2 * side * across))
        film[lung] = (70 + 25 * along + 15 * side * across + ribs)[lung]
        inside |= lung
    grain = np.random.default_rng(seed).integers(0, 6, (SIZE, SIZE))
    return (film + grain).astype(np.uint8), inside


def alone(film: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(mask, film, 0).astype(np.uint8)


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def as_input(images: list[NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))[:, None].float() / 255


def prepared(images: list[NDArray[np.uint8]], patients: list[str], *, mass: Sequence[int] = ()) -> Prepared:
    """PA films in memory as a prepared set has them; no film has an Edema."""
    table = pd.DataFrame({"image": [f"{rank}.png" for rank in range(len(images))], "patient_id": patients})
    table = table.assign(view_position="PA", Mass=list(mass) or 0, Edema=0)
    return Prepared(table, np.stack(images), input_of("mobilenet_lungs", size=SIZE))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of a MobileNetV2 that was never trained."""
    torch.manual_seed(0)
    torch.save(make_network("mobilenet_v2", findings=1000).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_dark_places_within_the_lungs_belong_to_them() -> None:
    film, mask = drawn()
    film[50:54, 34:38] = 0  # a hole in one lung, as of a pneumothorax
    found = lungs.lungs_of(alone(film, mask))
    assert found[50:54, 34:38].all()
    assert dice(found, mask) > 0.98
    assert lungs.lungs_of(np.full((20, 20), 9, dtype=np.uint8)).all(), "also where they touch the film's border"


def test_the_lungs_are_found_on_a_film_of_another_size_and_place() -> None:
    small, inside = drawn(scale=0.85, down=-5, seed=1)
    large, true = drawn(scale=1.0, down=4, seed=2)
    masks = torch.from_numpy(inside)[None, None].float()
    assert dice(inside, true) < 0.85  # as they lie they do not fit
    alike, found = lungs.lay_over(as_input([large]), as_input([alone(small, inside)]), masks)
    assert alike[0] > lungs.LEAST_ALIKE
    assert dice(found[0, 0].numpy() > 0.5, true) > 0.93


def test_pairs_are_of_one_patient_and_of_one_view_where_there_is_one() -> None:
    films = pd.DataFrame({"patient_id": [1, 2, 3], "view_position": ["PA", "AP", "PA"]})
    others = pd.DataFrame(
        {"patient_id": [2, 1, 1, 1, 3, *[1] * 5], "view_position": ["PA", "AP", "PA", "PA", "PA", *["PA"] * 5]}
    )
    share = np.array([0.3, 0.3, 0.3, 0.05, 0.9, *[0.3] * 5])  # the fourth and the fifth have failed outlines
    pairs = lungs.pairs_of(films, others, share=share)
    assert pairs.whole.tolist() == [0, 0, 0, 0, 1]
    assert pairs.lungs.tolist() == [2, 5, 6, 7, 0]


def test_a_start_finds_lungs_and_reads_them_and_says_nothing_of_the_whole_film_yet(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lungs, "RIDGE_PENALTY", 0.1)
    rng = np.random.default_rng(3)

    def chest(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        return drawn(scale=rng.uniform(0.8, 1.05), down=int(rng.integers(-6, 7)), seed=seed)

    both = 40  # patients of whom there are a whole film and one of the lungs
    films = prepared([chest(rank)[0] for rank in range(both)], [str(rank) for rank in range(both)])
    of_lungs, mass = [alone(*chest(100 + rank)) for rank in range(both)], [1] * both
    for rank in range(both):  # patients of the lungs alone, half of them with a bright spot
        film, inside = chest(200 + rank)
        if rank % 2:
            film[40:58, 28:46] = 150
        of_lungs.append(alone(film, inside))
        mass.append(rank % 2)
    others = prepared(of_lungs, [str(rank) for rank in range(2 * both)], mass=mass)
    path = tmp_path / "start.safetensors"
    measured = lungs.make_start(films, others, path, weights=weights, seed=1)

    start = load_checkpoint(path, findings=None)
    fitting = start.training["outline"]["pairs"]
    assert start.training["outline"] == {"films": fitting, "pairs": fitting, "dice": round(measured, 4)}
    assert 0.9 * both <= fitting <= both
    assert start.training["positives"] == {"train": {"Mass": both // 2, "Edema": 0}}, "the patients of both judge"
    assert start.training["settings"]["start"] == "weights.pth"
    network = build(start)
    assert isinstance(network, MobileNetLungs)
    shown = [chest(300 + rank) for rank in range(20)]
    for film, _ in shown[::2]:
        film[40:58, 28:46] = 150
    images = start.preprocessing.tensor(np.stack([film for film, _ in shown]))
    with torch.inference_mode():
        inside = adaptive_avg_pool2d((network.outline(images[:, :1]) > 0).float(), SIZE)[:, 0].numpy() > 0.5
        assert np.mean([dice(found, true) for found, (_, true) in zip(inside, shown, strict=True)]) > 0.85
        assert measured > 0.85
        assert torch.equal(network.whole.last_layer(network.pooled(images)), torch.zeros(20, 2))
        logits = network(images)
        assert torch.equal(network.lungs.classifier.bias, torch.zeros(2)), (
            "how frequent a finding is, the whole film says"
        )
        assert logits[::2, 0].min() > logits[1::2, 0].max(), "every film with a spot ranks above every one without"


@pytest.mark.parametrize("last_layer", ["ridge", "gradient"])
def test_what_a_fit_from_a_start_changes(tmp_path: Path, last_layer: str) -> None:
    rng = np.random.default_rng(0)
    mass = rng.integers(0, 2, 48)
    images = (rng.integers(60, 120, (48, 64, 64)) + 70 * mass[:, None, None]).astype(np.uint8)
    films = prepared(list(images), [str(rank) for rank in range(48)], mass=mass.tolist())
    films = replace(films, preprocessing=input_of("mobilenet_lungs", size=64))
    films = replace(films, manifest=films.manifest.assign(split="train"))
    network = MobileNetLungs(findings=2)
    torch.nn.init.zeros_(network.get_parameter("outline.last.weight"))
    torch.nn.init.constant_(network.get_parameter("outline.last.bias"), 9)  # lungs everywhere
    calibration = Calibration((0.0, 0.0), (1.0, 1.0), (0.0, 0.0))
    header = Header(network="mobilenet_lungs", findings=FINDINGS, calibration=calibration,
                    training={"outline": {"films": 3}, "films": {"train": 9}})  # fmt: skip
    save_checkpoint(tmp_path / "start.safetensors", header, state=network.state_dict())
    settings = Settings(network="mobilenet_lungs", start=str(tmp_path / "start.safetensors"), last_layer=last_layer,
                        ridge_penalty=0.1, loss="bce", epochs=1, batch_size=16, accelerator="cpu",
                        augment=False)  # fmt: skip
    fitted = load_checkpoint(fit(films, settings, tmp_path / "run", progress=False), findings=None)
    assert fitted.training["start"] == {"outline": {"films": 3}, "films": {"train": 9}}
    before = network.state_dict()
    changed = {name for name, value in fitted.state.items() if not torch.equal(value, before[name].to(value.dtype))}
    parts = {name.rpartition(".")[0] for name in changed}
    if last_layer == "ridge":  # the layer that is solved, and no other
        assert parts == {"whole.norm", "whole.evidence", "whole.classifier"}
    else:  # as when a site's champion learns on; but how lungs are found, statistics included, stays
        assert {"whole.evidence", "lungs.evidence", "features.0.1"} <= parts
        assert not any(part.startswith("outline") for part in parts)


def test_too_few_patients_in_both_sets_are_refused(tmp_path: Path, weights: Path) -> None:
    film, mask = drawn()
    films, others = prepared([film], ["1"]), prepared([alone(film, mask)], ["1"])
    with pytest.raises(lungs.TooFewPairs, match="only 1 whole films have a film of the same patient's lungs"):
        lungs.make_start(films, others, tmp_path / "start.safetensors", weights=weights, seed=1)
    stranger = replace(films, manifest=films.manifest.assign(patient_id="2"))
    with pytest.raises(lungs.TooFewPairs, match="only 0"):
        lungs.make_start(stranger, others, tmp_path / "start.safetensors", weights=weights, seed=1)
    smaller = replace(others, preprocessing=input_of("mobilenet_lungs", size=64))
    with pytest.raises(UnusableSettings, match="other findings or sizes"):
        lungs.make_start(films, smaller, tmp_path / "start.safetensors", weights=weights, seed=1)
    assert not (tmp_path / "start.safetensors").exists()


def test_a_mobilenet_lungs_needs_a_start_that_knows_where_lungs_are() -> None:
    for start in ("chance", "imagenet", "mobilenet_v2.pth"):
        with pytest.raises(UnusableSettings, match="starts from a checkpoint of `nightread train lungs`"):
            Settings(network="mobilenet_lungs", start=start)
