import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from training.checkpoint import (
    SHIPPED,
    Calibration,
    CheckpointError,
    DamagedCheckpoint,
    Header,
    MissingCheckpoint,
    UnknownArchitecture,
    VocabularyMismatch,
    WrongDigest,
    build,
    load_checkpoint,
    read_header,
    save_checkpoint,
)
from training.findings import FINDINGS
from training.imaging.preprocessing import Preprocessing
from training.networks import make_network

HEADER = Header(
    network="mobilenet",
    preprocessing=Preprocessing(size=96),
    calibration=Calibration(shift=tuple(float(i) for i in range(11)), isotonic={2: ((-1.0, 1.0), (0.1, 0.9))}),
    thresholds={"Mass": {"sensitivity_90": 0.1, "flag_10": 0.4}},
    reference={"films": 3, "levels": [0.0, 1.0], "probabilities": {key: [0.1, 0.9] for key in FINDINGS}},
    training={"loss": "wbce"},
    code_commit="abc",
)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return make_network("mobilenet").eval()


@pytest.fixture
def saved(tmp_path: Path, network: torch.nn.Module) -> Path:
    save_checkpoint(tmp_path / "model.safetensors", HEADER, state=network.state_dict())
    return tmp_path / "model.safetensors"


def test_a_checkpoint_comes_back_as_it_was(saved: Path, network: torch.nn.Module) -> None:
    checkpoint = load_checkpoint(saved)
    assert checkpoint.header == HEADER
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(build(checkpoint)(images), network(images))


def test_the_header_is_read_without_weights_and_without_torch(saved: Path) -> None:
    assert read_header(saved) == HEADER
    code = f"""
import pathlib, sys, training.checkpoint
training.checkpoint.read_header(pathlib.Path({str(saved)!r}))
sys.exit('torch' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_digest_is_the_files_and_the_same_every_time(tmp_path: Path, network: torch.nn.Module) -> None:
    digests = {save_checkpoint(tmp_path / "model", HEADER, state=network.state_dict()) for _ in range(5)}
    assert digests == {hashlib.sha256((tmp_path / "model").read_bytes()).hexdigest()}
    assert load_checkpoint(tmp_path / "model", expected_digest=digests.copy().pop()).digest in digests
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_half_precision_keeps_the_file_small_and_the_batch_norms_whole(
    tmp_path: Path, network: torch.nn.Module
) -> None:
    save_checkpoint(tmp_path / "half", HEADER, state=network.state_dict(), half=True)
    assert (tmp_path / "half").stat().st_size < 5e6
    checkpoint = load_checkpoint(tmp_path / "half")
    assert checkpoint.state["features.0.0.weight"].dtype == torch.float16
    assert checkpoint.state["features.0.1.running_var"].dtype == torch.float32
    assert {parameter.dtype for parameter in build(checkpoint).parameters()} == {torch.float32}


def test_another_files_digest_is_refused(saved: Path) -> None:
    with pytest.raises(WrongDigest, match=r"model\.safetensors"):
        load_checkpoint(saved, expected_digest="0" * 64)


def test_a_missing_file_says_so_without_its_folder(tmp_path: Path) -> None:
    for read in (load_checkpoint, read_header):
        with pytest.raises(MissingCheckpoint, match="No such file") as caught:
            read(tmp_path / "none.safetensors")
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000, -1])
def test_a_file_cut_short_is_damaged(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(saved)


QUANTILES = {key: [0.1, 0.9] for key in FINDINGS}


@pytest.mark.parametrize(
    "field",
    [
        {"purpose": 5},
        {"network": ["small"]},
        {"training": [1]},
        {"training": {"films": 3}},
        {"training": {"films": {"train": "many"}}},
        {"training": {"pointing": {"Mass": {"boxes": -1, "hits": 5, "chance": 0.1}}}},
        {"training": {"pointing": {"Mass": {"boxes": 9}}}},
        {"reference": "none"},
        {"reference": {"films": 0, "levels": [0, 1], "probabilities": QUANTILES}},
        {"reference": {"films": 9, "levels": [0, 1], "probabilities": {}}},
        {"reference": {"films": 9, "levels": [0, 1], "probabilities": QUANTILES | {"Mass": [0.9, 0.1]}}},
    ],
    ids=str,
)
def test_a_header_that_a_later_command_would_trip_over_is_refused(
    tmp_path: Path, network: torch.nn.Module, field: dict[str, Any]
) -> None:
    save_checkpoint(tmp_path / "c.safetensors", replace(HEADER, **field), state=network.state_dict())
    with pytest.raises(DamagedCheckpoint):
        read_header(tmp_path / "c.safetensors")


def test_the_bytes_of_what_is_no_checkpoint_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(b"\xff\xfe" + b"CANARY" * 100)
    with pytest.raises(DamagedCheckpoint, match=r"film\.dcm is no") as raised:
        read_header(path)
    assert "CANARY" not in str(raised.value)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save(Trap(), tmp_path / "model.pt")
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "sprung").exists()


def test_safetensors_of_another_project_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other", {"format": "pt"})
    with pytest.raises(DamagedCheckpoint, match="nightread-checkpoint-1"):
        load_checkpoint(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"findings": list(reversed(FINDINGS))}, VocabularyMismatch),
        ({"findings": ["Mass"] * 11}, VocabularyMismatch),
        ({"findings": ["Fracture", *FINDINGS[1:]]}, VocabularyMismatch),
        ({"preprocessing": {"name": "crop"}}, DamagedCheckpoint),
        ({"calibration": {**asdict(Calibration()), "slope": [1.0]}}, DamagedCheckpoint),
        ({"calibration": {**asdict(Calibration()), "slope": ["steep"] * 11}}, DamagedCheckpoint),
        ({"calibration": {**asdict(Calibration()), "isotonic": {"11": [[0], [0]]}}}, DamagedCheckpoint),
        ({"thresholds": {"Mass": {"flag_10": 1.5}}}, DamagedCheckpoint),
        ({"thresholds": {"Fracture": {"flag_10": 0.5}}}, DamagedCheckpoint),
        ({"surprise": 1}, DamagedCheckpoint),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], error: type[CheckpointError]
) -> None:
    raw = saved.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    outer = json.loads(raw[8 : 8 + size])
    (key, inner), *_ = outer["__metadata__"].items()
    outer["__metadata__"][key] = json.dumps(json.loads(inner) | change)
    changed = json.dumps(outer).encode()
    (tmp_path / "changed").write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + size :])
    with pytest.raises(error):
        load_checkpoint(tmp_path / "changed")


def test_a_network_that_nobody_can_build_is_a_clear_error(tmp_path: Path, network: torch.nn.Module) -> None:
    for name in ("alexnot", "resnet18"):
        save_checkpoint(tmp_path / name, replace(HEADER, network=name), state=network.state_dict())
        with pytest.raises(UnknownArchitecture, match=name):
            build(load_checkpoint(tmp_path / name))


def test_a_narrower_vocabulary_is_taken_only_when_asked(tmp_path: Path) -> None:
    header = Header(network="resnet18", findings=("Edema",), calibration=Calibration((0.0,), (1.0,), (0.0,)))
    save_checkpoint(tmp_path / "one", header, state=make_network("resnet18", findings=1).state_dict())
    with pytest.raises(VocabularyMismatch, match="Edema"):
        load_checkpoint(tmp_path / "one")
    assert load_checkpoint(tmp_path / "one", findings=None).findings == ("Edema",)


def test_a_failed_write_leaves_the_old_file_and_no_other(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, HEADER, state={"weight": torch.zeros(1)})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_probabilities_take_the_shift_back_before_platt() -> None:
    calibration = Calibration(shift=(2.0, 0.0), slope=(2.0, 1.0), intercept=(0.5, 0.0))
    probabilities = calibration.probabilities(np.array([[3.0, -800.0]], dtype=np.float32))
    assert probabilities.dtype == np.float32
    assert probabilities[0].tolist() == pytest.approx([1 / (1 + np.exp(-2.5)), 0.0])


def test_an_isotonic_table_takes_platts_place_for_its_finding() -> None:
    calibration = Calibration((1.0, 0.0), (1.0, 1.0), (0.0, 0.0), isotonic={0: ((-1.0, 1.0), (0.2, 0.6))})
    probabilities = calibration.probabilities(np.array([[1.0, 0.0], [-9.0, 0.0]], dtype=np.float32))
    assert probabilities.tolist() == [pytest.approx([0.4, 0.5]), pytest.approx([0.2, 0.5])]


@pytest.mark.skipif(not SHIPPED.exists(), reason="no checkpoint has been trained yet")
def test_the_shipped_checkpoint_loads_and_fits_in_ten_megabytes() -> None:
    assert SHIPPED.stat().st_size <= 10e6
    checkpoint = load_checkpoint(SHIPPED)
    assert set(checkpoint.thresholds) == set(checkpoint.reference["probabilities"]) == set(FINDINGS)
    with torch.inference_mode():
        size = checkpoint.preprocessing.size
        logits = build(checkpoint)(checkpoint.preprocessing.tensor(np.zeros((1, size, size), dtype=np.uint8)))
    assert np.isfinite(checkpoint.calibration.probabilities(logits.numpy())).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path: Path, value: float) -> None:
    state = make_network("mobilenet").state_dict()
    state["features.0.1.running_var"][0] = value
    save_checkpoint(tmp_path / "nan", HEADER, state=state)
    with pytest.raises(DamagedCheckpoint, match=r"running_var"):
        load_checkpoint(tmp_path / "nan")


@pytest.mark.parametrize(
    "table",
    [
        ((), ()),
        ((0.0, 1.0), (0.5,)),
        ((1.0, 0.0), (0.1, 0.9)),
        ((0.0, 1.0), (0.9, 0.1)),
        ((0.0, 1.0), (-0.5, 0.9)),
        ((0.0, 1.0), (0.5, 1.5)),
    ],
)
def test_an_isotonic_table_that_does_not_rise_to_probabilities_is_refused(
    tmp_path: Path, table: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    header = replace(HEADER, calibration=replace(HEADER.calibration, isotonic={2: table}))
    save_checkpoint(tmp_path / "table", header, state={"weight": torch.zeros(1)})
    with pytest.raises(DamagedCheckpoint, match="isotonic"):
        read_header(tmp_path / "table")


def test_a_header_of_endless_brackets_is_refused(tmp_path: Path) -> None:
    raw = b"[" * 200_000
    (tmp_path / "deep").write_bytes(len(raw).to_bytes(8, "little") + raw)
    for read in (load_checkpoint, read_header):
        with pytest.raises(DamagedCheckpoint):
            read(tmp_path / "deep")


@pytest.mark.parametrize("numbers", [{"mean": (float("nan"),) * 3}, {"std": (float("inf"),) * 3}])
def test_preprocessing_needs_finite_numbers(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="finite"):
        Preprocessing(**numbers)
