"""The GPU drill: what runs on a CPU too, what it judges, and how it ends where there is no GPU."""

import pytest
import torch

from tests.drills import gpu


@pytest.mark.slow
def test_the_parts_that_need_no_gpu_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BATCHES", (4,))
    monkeypatch.setattr(gpu, "TRAINED_SIZES", (64,))
    monkeypatch.setattr(gpu, "TRAINED_BATCH", 8)
    record = gpu.measure(torch.device("cpu"), seconds=0.1, steps=1)
    assert record["batches"][0]["films_per_second"] > 1
    assert record["half_against_full"] == 0, "a CPU scores in full precision"
    assert record["training"][0]["images_per_second"] > 1
    assert gpu.failures(record) == []


def test_precision_and_a_batch_that_was_not_halved_are_failures() -> None:
    halved = {"asked": 4096, "batch": 4096, "difference": 0.0}
    found = gpu.failures({"half_against_full": 0.006, "out_of_memory": halved})
    assert len(found) == 2
    assert "0.0060" in found[0]
    assert gpu.failures({"half_against_full": 0.005, "out_of_memory": halved | {"batch": 512}}) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "There is no GPU that torch can use here: nothing was measured.\n"
