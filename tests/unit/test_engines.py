"""What runs a network says what the network says."""

import numpy as np
import openvino_telemetry
import pytest
import structlog
import torch
from numpy.typing import NDArray

from tests.unit.test_networks import as_trained
from training.networks import input_of, make_network
from worker.scoring.engines import OnDevice, OnProcessor, make_engine

CPU = torch.device("cpu")


def greys(size: int, *, films: int = 3) -> NDArray[np.float16]:
    """Two dark lungs in noise, and noise alone."""
    inputs = np.random.default_rng(0).uniform(0, 255, (films, size, size)).astype(np.float16)
    high, wide = size // 8, size // 10
    inputs[0, high : 6 * high, 2 * wide : 4 * wide] = inputs[0, high : 6 * high, 6 * wide : 8 * wide] = 30
    return inputs


@pytest.mark.parametrize(("name", "size"), [("small", 128), ("mobilenet_lungs", 96), ("densenet121", 64)])
@pytest.mark.parametrize("engine", ["OnProcessor", "OnDevice"])
@torch.inference_mode()
def test_an_engine_gives_the_logits_of_its_network(name: str, size: int, engine: str) -> None:
    network, preprocessing, inputs = as_trained(make_network(name)), input_of(name, size=size), greys(size)
    expected = network(preprocessing.tensor(inputs)).numpy()
    assert np.abs(expected).max() > 0.05
    assert np.abs(expected[0] - expected[1]).max() > 0.005
    made = OnProcessor(network, preprocessing) if engine == "OnProcessor" else OnDevice(network, preprocessing, CPU)
    np.testing.assert_allclose(made(inputs, 4), expected, rtol=1e-3, atol=1e-4)


def test_a_films_logits_depend_on_no_neighbour_and_on_no_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    network, preprocessing, inputs = as_trained(make_network("small")), input_of("small"), greys(128, films=7)
    one = OnProcessor(network, preprocessing)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = OnProcessor(network, preprocessing)
    logits = three(inputs, 16)
    assert logits.shape == (7, 11)
    assert logits.tolist() == one(inputs, 16).tolist()
    assert logits[4:5].tolist() == three(inputs[4:5], 16).tolist()


def test_the_processor_runs_what_is_compiled() -> None:
    assert isinstance(make_engine(make_network("small"), input_of("small"), CPU), OnProcessor)


class Rare(torch.nn.Module):
    """A network with an operation that OpenVINO does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(64, 11)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(torch.special.bessel_j0(images.mean(dim=(1, 2))))
        return logits


def test_a_network_that_openvino_does_not_know_is_run_by_torch() -> None:
    network, preprocessing, inputs = Rare(), input_of("small", size=64), greys(64)
    with structlog.testing.capture_logs() as events:
        engine = make_engine(network, preprocessing, CPU)
    assert [event["event"] for event in events] == ["network_not_compiled"]
    with torch.inference_mode():
        np.testing.assert_allclose(engine(inputs, 4), network(preprocessing.tensor(inputs)).numpy(), rtol=1e-5)


def test_nobody_is_told_that_a_network_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's own conversion sends that it was used to Google Analytics, unless the user asked it not to."""
    asked = []
    monkeypatch.setattr(openvino_telemetry.Telemetry, "init", lambda *_, **__: asked.append("init"))
    monkeypatch.setattr(openvino_telemetry.Telemetry, "__init__", lambda *_, **__: asked.append("made"))
    OnProcessor(make_network("small"), input_of("small"))
    assert not asked
