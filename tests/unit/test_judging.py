"""Judging: what it needs of the machine, and its verdict on too few films."""

import os

import numpy as np
import pandas as pd
import pytest

from training.findings import FINDINGS
from training.gate import Rules
from worker.ranking.priority import DEFAULT_POLICY
from worker.retraining.devices import accelerator_of
from worker.retraining.judging import Comparison


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
    said = np.full((4, len(FINDINGS)), 0.1, dtype=np.float32)
    compare = Comparison(films, Rules(replicates=100), DEFAULT_POLICY)
    (check,) = compare.recent(films, said, said)
    assert check.result == "passed"
    assert check.note == "undecided: no finding that 10 films have, which passes on recent films"
