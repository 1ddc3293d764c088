"""One checkpoint on one device: batches of film inputs in, calibrated probabilities out."""

import os
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from db.base import DECIMALS
from training.checkpoint import Checkpoint, UnsoundCheckpoint, build, load_checkpoint
from training.imaging.allocator import keep_freed_memory
from training.imaging.preprocessing import Greys
from worker.errors import Unavailable
from worker.scoring.engines import make_engine

SERVED_APART: Final = 1e-3  # the most that what serves may change a probability; of the one that ships it is 1e-6


class DeviceGone(Unavailable):
    """The device no longer computes: a fault of this machine, for which no film is blamed."""


def choose_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu; anything else is torch's own name. Raises RuntimeError for an unknown one."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def share_processor() -> None:
    """Set this process up for a network that runs on the CPU, beside decoders that want every core.

    torch's threads wait for each other after every layer. With as many of them as cores one always stands behind a
    decoder while the rest spin: four times the processor time, measured on two cores. A quarter of the cores is what
    a network costs beside its decoders. OMP_NUM_THREADS may ask for fewer.
    """
    keep_freed_memory()  # every layer's output is a large block
    torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // 4)))


def prove(path: Path, *, digest: str | None = None) -> None:
    """Load a checkpoint whole and score a few generated inputs with it on the CPU. Raises CheckpointError."""
    Classifier(load_checkpoint(path, expected_digest=digest), device=torch.device("cpu"), batch_size=1)


def _generated_inputs(size: int) -> NDArray[np.uint8]:
    """uint8 (5, size, size), always the same: black, white, a slope of greys, noise, and two dark lungs in a bright
    body: what a network does with lungs is used, too."""
    ramp = np.linspace(0, 255, size)
    slope = ((ramp[:, None] + ramp) / 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    down, across = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lungs = (np.abs(across) - 0.4) ** 2 / 0.08 + (down + 0.1) ** 2 / 0.4 < 1
    body = np.abs(across) < 0.9
    chest = np.where(lungs, 60, np.where(body, 180, 5)).astype(np.uint8)
    return np.stack([np.zeros_like(slope), np.full_like(slope, 255), slope, noise, chest])


class Classifier:
    """A checkpoint's network, ready on its device. It is loaded in the process that uses it, never inherited.

    Raises UnsoundCheckpoint where it gives no probabilities, or others once it is compiled.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, batch_size: int) -> None:
        self.findings = checkpoint.findings
        self.preprocessing = checkpoint.preprocessing
        self.batch_size = batch_size
        self.device = device
        self._digest, self._calibration = checkpoint.digest, checkpoint.calibration
        network = build(checkpoint)
        self.engine = make_engine(network, checkpoint.preprocessing, device)
        if device.type == "cpu":
            self._require_as_trained(network)

    def _require_as_trained(self, network: nn.Module) -> None:
        """What is compiled is another program on every kind of processor, and makes numbers of NaN, as torch does not:
        here it has to say of a few inputs what the network says."""
        inputs = _generated_inputs(self.preprocessing.size)
        try:
            with torch.inference_mode():
                logits = network(self.preprocessing.tensor(inputs)).numpy()
            trained, served = self._probabilities(logits), self._probabilities(self.engine(inputs, len(inputs)))
        except RuntimeError as error:
            raise UnsoundCheckpoint("its network cannot score an input of its size", digest=self._digest) from error
        if not np.allclose(served, trained, atol=SERVED_APART):
            raise UnsoundCheckpoint("its network says other things once it is compiled", digest=self._digest)

    def predict(self, inputs: Greys) -> NDArray[np.float32]:
        """(N, size, size) in 0 to 255 -> float32 probabilities (N, findings), rounded to DECIMALS.

        A film's probabilities do not depend on its neighbours. When the device has not enough memory the batch is
        halved and stays so. Raises RuntimeError when a single film fails, and UnsoundCheckpoint where a probability is
        none: whatever the inputs hold, they are finite.
        """
        try:
            passes = [self._one_pass(inputs[i : i + self.batch_size]) for i in range(0, len(inputs), self.batch_size)]
        except torch.cuda.OutOfMemoryError:
            if self.batch_size == 1:
                raise
            self.batch_size //= 2
            torch.cuda.empty_cache()
            return self.predict(inputs)
        return np.concatenate(passes)

    def still_works(self) -> bool:
        """Whether the device computes at all: what fails beside it is a film's fault only then."""
        side = self.preprocessing.size
        try:
            self.predict(np.zeros((1, side, side), dtype=np.uint8))
        except RuntimeError:  # a broken CUDA context fails for good, and so does a device whose memory others hold
            return False
        return True

    def _one_pass(self, inputs: Greys) -> NDArray[np.float32]:
        return np.round(self._probabilities(self.engine(inputs, self.batch_size)), DECIMALS)

    def _probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities = self._calibration.probabilities(logits)
        if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN compares false
            raise UnsoundCheckpoint("its network gives values that are no probabilities", digest=self._digest)
        return probabilities
