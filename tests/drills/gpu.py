"""Measure this machine's GPU at what Nightread does with one: make gpu (at most five minutes).

1. Films per second and memory of the shipped network for rising batch sizes, as the worker runs it (half precision).
2. Its probabilities beside those of full precision: no difference above .005.
3. A batch that is too large for the memory is halved, and the probabilities stay.
4. Images per second of `train fit` at 160 and 224 pixels, in full and in mixed precision.
5. JPEG 2000 on the GPU, where NVIDIA's nvImageCodec is installed: films per second, and whether its pixels are right.

Writes all of it as JSON to --record. Ends with exit code 0 when 2 and 3 held, 1 when not, 2 where there is no GPU.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.machine import machine
from tests.support.dicom_files import texture
from training.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from training.findings import FINDINGS
from training.fit import Films, launch, make_learner, train_epoch
from training.networks import input_of
from training.settings import Settings
from worker.scoring.inference import Classifier
from worker.scoring.runtimes import TorchRuntime

BATCHES = (1, 16, 64, 256, 1024)
MOST_DIFFERENCE = 0.005  # of a probability, between half and full precision
SECONDS_EACH = 4.0  # of one measurement
TRAINED_SIZES, TRAINED_BATCH, TRAINED_STEPS = (160, 224), 64, 20
DECODED = 16  # films of 2500 x 2500 pixels


def inputs_of(count: int, *, size: int) -> NDArray[np.float16]:
    """Smooth pictures of different brightness, float16 (count, size, size) in 0 to 255."""
    picture = texture(size, size).astype(float)
    picture = 255 * (picture - picture.min()) / np.ptp(picture)
    shades = np.linspace(0.3, 1, count)[:, None, None]
    return (np.roll(picture, 7, axis=0) * shades).astype(np.float16)


def per_second(work: Callable[[], object], *, films: int, seconds: float) -> float:
    """Films per second of work that handles `films` of them, by the clock, after one call that warms it up."""
    work()
    begun, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begun < seconds:
        work()
        calls += 1
    return round(calls * films / (time.perf_counter() - begun), 1)


def memory_gb(device: torch.device) -> float | None:
    """The most that torch held on the device since the last call."""
    if device.type != "cuda":
        return None
    held = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(held, 2)


def measure_batches(checkpoint: Checkpoint, device: torch.device, *, seconds: float) -> list[dict[str, Any]]:
    """Batch size, films per second and memory of the worker's way."""
    rows = []
    for batch in BATCHES:
        classifier = Classifier(checkpoint, device=device, batch_size=batch)
        inputs = inputs_of(max(batch, 64), size=checkpoint.preprocessing.size)
        speed = per_second(lambda: classifier.predict(inputs), films=len(inputs), seconds=seconds)  # noqa: B023  called here
        rows.append({"batch": batch, "films_per_second": speed, "memory_gb": memory_gb(device)})
    return rows


def precision_difference(checkpoint: Checkpoint, device: torch.device) -> float:
    """The largest difference of a probability between the worker's precision and float32, on 64 films."""
    inputs = inputs_of(64, size=checkpoint.preprocessing.size)
    usual = Classifier(checkpoint, device=device, batch_size=16).predict(inputs)
    with patch.object(TorchRuntime, "_autocast", lambda _: nullcontext()):
        full = Classifier(checkpoint, device=device, batch_size=16).predict(inputs)
    return float(np.abs(usual - full).max())


@contextmanager
def little_memory(share: float) -> Iterator[None]:
    """Let torch have this share of the GPU alone."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def halved_batch(checkpoint: Checkpoint, device: torch.device) -> dict[str, Any]:
    """A batch of 4,096 in a hundredth of the memory: what it was halved to, and how far its probabilities moved."""
    inputs = inputs_of(64, size=checkpoint.preprocessing.size)
    expected = Classifier(checkpoint, device=device, batch_size=16).predict(inputs)
    with little_memory(0.01):
        classifier = Classifier(checkpoint, device=device, batch_size=4096)
        found = classifier.predict(inputs)
    return {"asked": 4096, "batch": classifier.batch_size, "difference": float(np.abs(found - expected).max())}


def measure_training(device: torch.device, *, steps: int) -> list[dict[str, Any]]:
    """Images per second of the training loop, on images of noise, whole network."""
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for size in TRAINED_SIZES:
        images = rng.uniform(0, 255, (512, size, size)).astype(np.float16)
        films = Films(images, np.arange(512), (rng.random((512, len(FINDINGS))) < 0.2).astype(np.uint8))
        for precision in ("32-true", "16-mixed") if device.type == "cuda" else ("32-true",):
            settings = Settings(
                start="chance", batch_size=TRAINED_BATCH, steps_per_epoch=steps, precision=precision,
                accelerator="gpu" if device.type == "cuda" else "cpu",
            )  # fmt: skip
            with tempfile.TemporaryDirectory(prefix="nightread-gpu-") as folder:
                learner = make_learner(
                    launch(settings, Path(folder)), settings, films, findings=FINDINGS,
                    preprocessing=input_of(settings.network, size=size),
                )  # fmt: skip
                train_epoch(replace(learner, steps_per_epoch=2), films, epoch=0)
                begun = time.perf_counter()
                train_epoch(learner, films, epoch=1)
                speed = steps * TRAINED_BATCH / (time.perf_counter() - begun)
            row = {"size": size, "precision": precision, "images_per_second": round(speed, 1)}
            rows.append({**row, "memory_gb": memory_gb(device)})
    return rows


def measure_decoding(*, films: int) -> dict[str, Any]:
    """JPEG 2000 by nvImageCodec beside OpenJPEG on one core, or why it was not measured."""
    try:
        from nvidia import nvimgcodec
    except ImportError:
        return {"skipped": "nvImageCodec is not installed: pip install 'nvidia-nvimgcodec-cu12[all]'"}
    pixels = np.clip(texture(2500, 2500), 0, 4095).astype(np.uint16)
    stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", bitspersample=12, reversible=True)
    decoder, asked = nvimgcodec.Decoder(), nvimgcodec.DecodeParams(
        allow_any_depth=True, color_spec=nvimgcodec.ColorSpec.UNCHANGED
    )  # fmt: skip
    found = np.asarray(decoder.decode(stream, params=asked).cpu()).reshape(pixels.shape)
    many = [stream] * films
    return {
        "the_same_pixels": bool((found == pixels).all()),
        "gpu_films_per_second": per_second(lambda: decoder.decode(many, params=asked), films=films, seconds=5),
        "one_core_films_per_second": per_second(lambda: imagecodecs.jpeg2k_decode(stream), films=1, seconds=5),
        "cut_in_half": str(decoder.decode(stream[: len(stream) // 2], params=asked)),
    }


def measure(device: torch.device, *, seconds: float = SECONDS_EACH, steps: int = TRAINED_STEPS) -> dict[str, Any]:
    """Everything, as the record holds it; on a CPU what a CPU can do."""
    checkpoint = load_checkpoint(SHIPPED)
    record: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    record["batches"] = measure_batches(checkpoint, device, seconds=seconds)
    record["half_against_full"] = precision_difference(checkpoint, device)
    record["training"] = measure_training(device, steps=steps)
    if device.type == "cuda":
        record["device"] = torch.cuda.get_device_name()
        record["out_of_memory"] = halved_batch(checkpoint, device)
        record["decoding"] = measure_decoding(films=DECODED)
    return record


def failures(record: dict[str, Any]) -> list[str]:
    """What did not hold, in sentences."""
    wrong, halved = [], record.get("out_of_memory")
    if record["half_against_full"] > MOST_DIFFERENCE:
        wrong.append(f"half precision moves a probability by {record['half_against_full']:.4f}")
    if halved and not (halved["batch"] < halved["asked"] and halved["difference"] <= MOST_DIFFERENCE):
        wrong.append(f"a batch too large for the memory came out as {halved}")
    return wrong


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--record", type=Path, default=Path("build/gpu.json"), help="where the figures go")
    chosen = arguments.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use here: nothing was measured.", file=sys.stderr)
        sys.exit(2)
    record = measure(torch.device("cuda"))
    chosen.record.parent.mkdir(parents=True, exist_ok=True)
    chosen.record.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    for sentence in failures(record):
        print(sentence, file=sys.stderr)
    sys.exit(1 if failures(record) else 0)


if __name__ == "__main__":
    main()
