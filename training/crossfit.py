"""For few films: every film is trained on and every film is tested on, but never by the same network.

The patients are dealt into folds. For each fold a network is trained on the others and asked about this one, so that
all films get an output from a network that never saw their patient. Those outputs say how good the recipe is, and
calibrate the network that ships, which the same recipe trains on all films.

    fold-0/ ... whole/       the runs, each as `fit` writes it
    out_of_fold.csv          image, fold, and per finding the calibrated probability
    checkpoint.safetensors   the network of whole/, calibrated on the outputs of the folds
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from lightning.fabric import Fabric
from numpy.typing import NDArray

from training.calibration import fit_calibration
from training.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint
from training.fit import CHECKPOINT, Films, fit, predict, with_evidence
from training.prepared import Prepared
from training.settings import Settings

OUT_OF_FOLD: Final = "out_of_fold.csv"


def cross_fit(
    prepared: Prepared,
    settings: Settings,
    folder: Path,
    *,
    folds: int,
    code_commit: str = "",
    progress: bool = True,
) -> Path:
    """Train `folds` networks to judge the recipe and one to ship; the path of its checkpoint.

    Every run lasts all its epochs: with no film to spare for validation there is nothing to stop early by. Started
    again after a kill it goes on. Raises what `fit` raises.
    """
    fold = deal(prepared.manifest, folds=folds, seed=settings.seed)  # (N,)
    labels = prepared.manifest[list(prepared.findings)].to_numpy()
    logits = np.zeros(labels.shape, dtype=np.float32)  # (N, F), the loss's shift taken back
    for number in range(folds):
        part = _with_split(prepared, np.where(fold == number, "test", "train"))
        path = fit(part, settings, folder / f"fold-{number}", code_commit=code_commit, progress=progress)
        checkpoint = load_checkpoint(path, findings=None)
        asked = ask(checkpoint, part, split="test", accelerator=settings.accelerator)
        logits[fold == number] = asked - np.asarray(checkpoint.calibration.shift, dtype=np.float32)

    path = fit(
        _with_split(prepared, np.full(len(fold), "train")),
        settings,
        folder / "whole",
        code_commit=code_commit,
        progress=progress,
    )
    whole = load_checkpoint(path, findings=None)
    none = (0.0,) * len(prepared.findings)
    calibration = replace(fit_calibration(logits, labels, shift=none), shift=whole.calibration.shift)
    header = replace(whole.header, training={**whole.training, "folds": folds})
    header = with_evidence(header, calibration, logits + np.asarray(calibration.shift, dtype=np.float32), labels)
    save_checkpoint(folder / CHECKPOINT, header, state=whole.state, half=settings.half_checkpoint)

    judged = calibrated_out_of_fold(logits, labels, fold=fold)
    table = pd.DataFrame(judged, columns=list(prepared.findings)).assign(
        fold=fold, image=prepared.manifest["image"].to_numpy()
    )
    table[["image", "fold", *prepared.findings]].to_csv(folder / OUT_OF_FOLD, index=False)
    return folder / CHECKPOINT


def deal(manifest: pd.DataFrame, *, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (N,) of every film, 0 to folds - 1, all films of a patient in one."""
    names, patient = np.unique(manifest["patient_id"].to_numpy(dtype=str), return_inverse=True)
    dealt: NDArray[np.int64] = (np.random.default_rng(seed).permutation(len(names)) % folds)[patient]
    return dealt


def ask(checkpoint: Checkpoint, prepared: Prepared, *, split: str, accelerator: str = "auto") -> NDArray[np.float32]:
    """Raw logits (N, F) of a checkpoint for one part of the split."""
    fabric = Fabric(accelerator=accelerator, devices=1)
    network = fabric.setup(build(checkpoint))
    return predict(network, Films.of(prepared, split), checkpoint.preprocessing, batch_size=64, fabric=fabric)


def calibrated_out_of_fold(
    logits: NDArray[np.float32], labels: NDArray[np.uint8], *, fold: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Probabilities (N, F) whose calibration was fitted on the other folds too: what honest figures are made of."""
    probabilities = np.zeros_like(logits)
    for number in np.unique(fold):
        here = fold == number
        calibration = fit_calibration(logits[~here], labels[~here], shift=(0.0,) * labels.shape[1])
        probabilities[here] = calibration.probabilities(logits[here])
    return probabilities


def _with_split(prepared: Prepared, split: NDArray[np.str_]) -> Prepared:
    return replace(prepared, manifest=prepared.manifest.assign(split=split))
