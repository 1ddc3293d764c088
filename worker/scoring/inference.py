"""One checkpoint on one device: batches of film inputs in, calibrated probabilities out."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from db.base import DECIMALS
from training.checkpoint import Checkpoint, UnsoundCheckpoint, load_checkpoint
from training.imaging.preprocessing import Greys
from worker.errors import Unavailable
from worker.scoring.runtimes import generated_inputs, make_runtime


class DeviceGone(Unavailable):
    """The device no longer computes: a fault of this machine, for which no film is blamed."""


def choose_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu; anything else is torch's own name. Raises RuntimeError for an unknown one."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def share_cores() -> int:
    """Set this process up for a network that runs on the CPU, beside decoders that want every core; the threads that
    it may have.

    A quarter of the cores is what a network costs beside its decoders, or more. Above all torch must not have as many
    as there are cores, where it runs the network: its threads wait for each other after every layer, and the rest spin
    while one stands behind a decoder. OMP_NUM_THREADS may ask for fewer.
    """
    threads = min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // 4))
    torch.set_num_threads(threads)
    return threads


def prove(path: Path, *, digest: str | None = None) -> None:
    """Load a checkpoint whole and score a few generated inputs with it on the CPU. Raises CheckpointError."""
    checkpoint = load_checkpoint(path, expected_digest=digest)
    inputs = generated_inputs(checkpoint.preprocessing.size)
    try:
        Classifier(checkpoint, device=torch.device("cpu"), batch_size=len(inputs)).predict(inputs)
    except RuntimeError as error:
        raise UnsoundCheckpoint("its network cannot score an input of its size", digest=checkpoint.digest) from error


class Classifier:
    """A checkpoint's network, ready on its device. It is loaded in the process that uses it, never inherited."""

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, batch_size: int, threads: int = 1) -> None:
        """threads: that the network may have on a CPU."""
        self.findings = checkpoint.findings
        self.preprocessing = checkpoint.preprocessing
        self.batch_size, self.device, self.threads = batch_size, device, threads
        self._digest, self._calibration = checkpoint.digest, checkpoint.calibration
        self.runtime = make_runtime(checkpoint, device, threads=threads)

    def predict(self, inputs: Greys) -> NDArray[np.float32]:
        """(N, size, size) in 0 to 255 -> float32 probabilities (N, findings), rounded to DECIMALS.

        A film's probabilities do not depend on its neighbours. When the device has not enough memory the batch is
        halved and stays so. Raises RuntimeError when a single film fails, and UnsoundCheckpoint where a probability is
        none. (Not on a CPU where only some films make one: OpenVINO's ReLU makes 0 of NaN. See runtimes.py.)
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
        probabilities = self._calibration.probabilities(self.runtime(inputs, batch_size=self.batch_size))
        if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN compares false
            raise UnsoundCheckpoint("its network gives values that are no probabilities", digest=self._digest)
        return np.round(probabilities, DECIMALS)
