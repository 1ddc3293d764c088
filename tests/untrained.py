"""A checkpoint for tests of everything but the scores' worth."""

from pathlib import Path

import torch

from training.checkpoint import Header, save_checkpoint
from training.findings import FINDINGS
from training.networks import make_network
from training.preprocessing import Preprocessing


def save_untrained(path: Path) -> Path:
    """Write a small network with random weights (always the same): quick, and every probability is different."""
    torch.manual_seed(0)
    header = Header(
        network="mobilenet",
        preprocessing=Preprocessing(size=64),
        thresholds={finding: {"flag_10": 0.5, "sensitivity_90": 0.4} for finding in FINDINGS},
    )
    save_checkpoint(path, header, state=make_network("mobilenet").state_dict(), half=True)
    return path
