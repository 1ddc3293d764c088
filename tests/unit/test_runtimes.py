"""What runs a network says what the network says."""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from numpy.typing import NDArray
from structlog.testing import LogCapture

from tests.unit.test_networks import as_trained
from training.checkpoint import Checkpoint
from training.imaging.preprocessing import Preprocessing
from training.networks import input_of, make_network
from worker.scoring import runtimes
from worker.scoring.runtimes import (
    OpenvinoRuntime,
    Runtime,
    TorchRuntime,
    compile_network,
    generated_inputs,
    make_runtime,
)

CPU = torch.device("cpu")


def greys(size: int, *, films: int) -> NDArray[np.float16]:
    return np.random.default_rng(0).uniform(0, 255, (films, size, size)).astype(np.float16)


def small() -> tuple[torch.nn.Module, Preprocessing]:
    return as_trained(make_network("small")), input_of("small")


def compiled(network: torch.nn.Module, preprocessing: Preprocessing, *, threads: int = 1) -> OpenvinoRuntime:
    return OpenvinoRuntime(compile_network(network, preprocessing, threads=threads), threads=threads)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The events that are logged."""
    capture = LogCapture()
    monkeypatch.setattr(runtimes, "log", structlog.wrap_logger(None, processors=[capture]))
    return capture.entries


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runtime]:
    """Makes the runtime of a checkpoint that holds this network, and keeps nothing that was compiled."""
    monkeypatch.setattr(runtimes, "_kept", {})

    def make(network: torch.nn.Module, preprocessing: Preprocessing, *, digest: str = "a") -> Runtime:
        monkeypatch.setattr(runtimes, "build", lambda _: network)
        return make_runtime(Checkpoint("small", preprocessing=preprocessing, digest=digest), CPU, threads=1)

    return make


@pytest.mark.parametrize(("name", "size"), [("small", 128), ("mobilenet_lungs", 96), ("densenet121", 64)])
@pytest.mark.parametrize("kind", ["openvino", "torch"])
@torch.inference_mode()
def test_a_runtime_gives_the_logits_of_its_network(name: str, size: int, kind: str) -> None:
    network, preprocessing, inputs = as_trained(make_network(name)), input_of(name, size=size), generated_inputs(size)
    expected = network(preprocessing.tensor(inputs)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.02
    if kind == "openvino":
        runtime: Runtime = compiled(network, preprocessing)
    else:
        runtime = TorchRuntime(network, preprocessing, CPU)
    np.testing.assert_allclose(runtime(inputs, batch_size=8), expected, rtol=1e-3, atol=1e-4)


def test_a_films_logits_depend_on_no_neighbour_and_on_no_number_of_threads() -> None:
    network, preprocessing = small()
    inputs = greys(128, films=7)
    one, three = (compiled(network, preprocessing, threads=threads) for threads in (1, 3))
    logits = three(inputs, batch_size=16)
    assert logits.shape == (7, 11)
    assert logits.tolist() == one(inputs, batch_size=16).tolist()
    assert logits[4:5].tolist() == three(inputs[4:5], batch_size=16).tolist()


def test_what_was_compiled_is_kept_for_as_long_as_champion_and_shadow_may_need_it(
    opened: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles = []

    def counted(*given: Any, **named: Any) -> Any:
        compiles.append(1)
        return compile_network(*given, **named)

    monkeypatch.setattr(runtimes, "compile_network", counted)
    for digest in "abababcb":
        assert isinstance(opened(*small(), digest=digest), OpenvinoRuntime)
    assert len(compiles) == 3
    opened(*small(), digest="a")
    assert len(compiles) == 4


@pytest.mark.parametrize("is_known", [True, False])
def test_a_network_that_was_traced_leaves_nothing_in_torch(is_known: bool) -> None:
    network, preprocessing = small() if is_known else (Rare(), input_of("small", size=64))
    with nullcontext() if is_known else pytest.raises(Exception, match="bessel_j0"):
        compile_network(network, preprocessing, threads=1)
    left = weakref.ref(network)
    del network
    gc.collect()
    assert left() is None
    assert torch.jit._state._python_cu.get_class("__torch__.worker.scoring.runtimes._FromGreys") is None


class Failing:
    """A request that fails as one does for which there is no memory."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def start_async(self, inputs: list[Any]) -> None:
        self._request.start_async(inputs)

    def wait(self) -> None:
        raise RuntimeError("no memory")


def test_a_pass_that_fails_harms_no_later_one() -> None:
    runtime, inputs = compiled(*small(), threads=3), greys(128, films=3)
    expected = runtime(inputs, batch_size=4).tolist()
    runtime._requests[1] = Failing(runtime._requests[1])
    with pytest.raises(RuntimeError, match="no memory"):
        runtime(inputs, batch_size=4)
    assert runtime(inputs, batch_size=4).tolist() == expected


class Rare(torch.nn.Module):
    """A network with an operation that OpenVINO does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(64, 11)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(torch.special.bessel_j0(images.mean(dim=(1, 2))))
        return logits


def test_a_network_that_openvino_does_not_know_is_run_by_torch(opened: Callable[..., Runtime], told: list[Any]) -> None:
    network, preprocessing, inputs = Rare(), input_of("small", size=64), greys(64, films=3)
    runtime = opened(network, preprocessing)
    assert [event["event"] for event in told] == ["network_not_compiled"]
    assert "bessel_j0" in told[0]["detail"]
    with torch.inference_mode():
        expected = network(preprocessing.tensor(inputs)).numpy()
    np.testing.assert_allclose(runtime(inputs, batch_size=4), expected, rtol=1e-5)


@pytest.mark.parametrize("added", [0.1, float("nan")])
def test_a_network_that_says_something_else_once_it_is_compiled_is_run_by_torch(
    opened: Callable[..., Runtime], told: list[Any], monkeypatch: pytest.MonkeyPatch, added: float
) -> None:
    whole = OpenvinoRuntime._side_by_side
    monkeypatch.setattr(OpenvinoRuntime, "_side_by_side", lambda self, films: whole(self, films) + added)
    assert isinstance(opened(*small()), TorchRuntime)
    assert "other logits" in told[0]["detail"]


def test_a_network_that_gives_nan_is_run_by_torch_which_shows_it(opened: Callable[..., Runtime]) -> None:
    network, preprocessing = small()
    norm = next(part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d))
    norm.get_buffer("running_var").fill_(-1)
    runtime = opened(network, preprocessing)
    assert isinstance(runtime, TorchRuntime)
    assert np.isnan(runtime(greys(128, films=1), batch_size=1)).all()


TELLING = """
from openvino_telemetry.backend.backend_ga4 import GA4Backend
told = []
GA4Backend.send = lambda *_: told.append("an event")
if {plainly}:
    import openvino
from training.networks import input_of, make_network
from worker.scoring.runtimes import compile_network
compile_network(make_network("small").eval(), input_of("small"), threads=1)
print(len(told))
"""


@pytest.mark.parametrize("plainly", [False, True])
def test_nobody_is_told_that_openvino_was_used(tmp_path: Path, plainly: bool) -> None:
    """Imported plainly it sends an event to Google Analytics, unless its user asked it not to, or in CI."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    child = subprocess.run(
        [sys.executable, "-c", TELLING.format(plainly=plainly)],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(child.stdout) > 0) == plainly, child.stderr
    assert bool(list(home.iterdir())) == plainly
