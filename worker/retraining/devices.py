"""Devices that a retraining learns and judges on."""

import os
from functools import cache


@cache  # the list of GPUs is narrowed once
def accelerator_of(device: str) -> str:
    """Fabric's word for a torch device. Of several GPUs ("cuda:1") this process sees that one alone from then on: asked
    before CUDA is first used, for Fabric would take the first, on which others may be scoring."""
    kind, _, number = device.partition(":")
    if kind == "cuda" and number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(number)] if visible else number
    return kind.replace("cuda", "gpu")
