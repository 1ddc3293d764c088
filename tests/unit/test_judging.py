"""Judging: what it needs of the machine, and its verdict on too few films."""

import os

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.support.values import present
from training.findings import FINDINGS
from training.gate import Check, Rules
from worker.ranking.priority import DEFAULT_POLICY
from worker.retraining import judging
from worker.retraining.devices import accelerator_of
from worker.retraining.judging import Comparison
from worker.simulation.simulate import Extent


@pytest.mark.parametrize(
    ("device", "seen", "word", "left"),
    [
        ("auto", "0,1", "auto", "0,1"),
        ("cpu", "0,1", "cpu", "0,1"),
        ("cuda", "0,1", "gpu", "0,1"),
        ("cuda:1", None, "gpu", "1"),
        ("cuda:1", "4,7", "gpu", "7"),
    ],
)
def test_one_gpu_of_several_is_the_only_one_that_training_sees(
    monkeypatch: pytest.MonkeyPatch, device: str, seen: str | None, word: str, left: str
) -> None:
    accelerator_of.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    for _ in range(2):  # asked again it means the same GPU, not the second of those now seen
        assert accelerator_of(device) == word
        assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    accelerator_of.cache_clear()


def test_recent_films_too_few_to_say_anything_pass_and_say_that_they_were() -> None:
    films = pd.DataFrame({finding: np.zeros(4, dtype=np.uint8) for finding in FINDINGS}).assign(
        patient_id=list("abcd"), age_years=50.0, sex="F", view_position="PA", image=list("abcd"), split="test"
    )
    probabilities = np.full((4, len(FINDINGS)), 0.1, dtype=np.float32)
    compare = Comparison(films, Rules(replicates=100), DEFAULT_POLICY)
    (check,) = compare.recent(films, probabilities, probabilities)
    assert check.result == "passed"
    assert check.note == "undecided: no finding that 10 films have, which passes on recent films"


PTX = FINDINGS.index("Pneumothorax")
POSITIVES = np.arange(200) < 20


def time_to_report(champion: NDArray[np.bool_], challenger: NDArray[np.bool_], *, positives: int = 20) -> Check:
    """The check on 200 films, the first of which have a pneumothorax; both networks suspect it where they are told."""
    films = pd.DataFrame({finding: np.zeros(200, dtype=np.uint8) for finding in FINDINGS}).assign(
        Pneumothorax=(np.arange(200) < positives).astype(np.uint8), patient_id=[str(film) for film in range(200)]
    )
    probabilities = [np.full((200, len(FINDINGS)), 0.05, dtype=np.float32) for _ in range(2)]
    for each, suspected in zip(probabilities, (champion, challenger), strict=True):
        each[suspected, PTX] = 0.9
    compare = Comparison(films, Rules(replicates=100), DEFAULT_POLICY)
    return compare.time_to_report(films, *probabilities, most=0.0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SIMULATED", Extent(days=20, seeds=1))


@pytest.mark.usefixtures("short")
def test_a_time_to_report_that_surely_falls_passes_and_one_that_surely_grows_fails() -> None:
    blind = np.zeros(200, dtype=bool)
    better, worse = time_to_report(blind, POSITIVES), time_to_report(POSITIVES, blind)
    assert (better.result, worse.result) == ("passed", "failed")
    assert (better.champion, better.challenger) == (worse.challenger, worse.champion)
    assert present(better.high) < 0 < present(worse.low)


@pytest.mark.usefixtures("short")
def test_a_time_to_report_that_grows_for_some_and_falls_for_others_is_undecided() -> None:
    check = time_to_report(POSITIVES & (np.arange(200) % 2 == 0), POSITIVES & (np.arange(200) % 2 == 1))
    assert present(check.low) < 0 < present(check.high)
    assert (check.result, check.bound) == ("undecided", 0)
    assert present(check.positives_needed) > 20


@pytest.mark.usefixtures("short")
def test_a_time_to_report_of_the_same_network_does_not_change() -> None:
    check = time_to_report(POSITIVES, POSITIVES)
    assert (check.result, check.difference, check.low, check.high) == ("passed", 0, 0, 0)


def test_a_time_to_report_of_too_few_films_is_undecided_without_figures() -> None:
    check = time_to_report(POSITIVES, POSITIVES, positives=9)
    assert (check.result, check.positives_needed, check.challenger) == ("undecided", 10, None)
