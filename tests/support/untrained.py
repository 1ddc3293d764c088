"""A checkpoint for tests of everything but the scores' worth."""

from pathlib import Path

import torch

from training.checkpoint import Calibration, Header, save_checkpoint
from training.findings import FINDINGS
from training.imaging.preprocessing import Preprocessing
from training.networks import make_network

# What is left of a film after the random layers is some 1e-11 of a logit; a slope makes probabilities of it.
SPREAD = Calibration(slope=(2e10,) * len(FINDINGS))


def save_untrained(path: Path, *, seed: int = 0, size: int = 64) -> Path:
    """Write a small network with random weights (the same for a seed): quick, and every probability is different."""
    torch.manual_seed(seed)
    header = Header(
        network="mobilenet",
        preprocessing=Preprocessing(size=size),
        calibration=SPREAD,
        thresholds={finding: {"flag_10": 0.5, "sensitivity_90": 0.4} for finding in FINDINGS},
    )
    save_checkpoint(path, header, state=make_network("mobilenet").state_dict(), half=True)
    return path


def save_unsound(path: Path, *, size: int = 64) -> Path:
    """Write a checkpoint whose weights are finite and whose every probability is NaN: a variance is below zero."""
    network = make_network("mobilenet")
    state = network.state_dict()
    next(value for name, value in state.items() if name.endswith("running_var")).fill_(-1)
    save_checkpoint(path, Header(network="mobilenet", preprocessing=Preprocessing(size=size)), state=state)
    return path
