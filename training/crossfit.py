"""For few films: every film is trained on and every film is tested on, but never by the same network.

The patients are dealt into folds. For each fold a network is trained on the others and asked about this one, so that
all films get an output from a network that never saw their patient. Those outputs say how good the recipe is, and
calibrate the network that ships, which the same recipe trains on all films.

Networks of one recipe rank films alike, but the middle of their logits lies here or there (by .4 on 1,300 films). So
each is centred before their outputs are pooled: on the mean of its outputs, as it would be on films that it never saw.

    fold-0/ ... whole/       the runs, each as `fit` writes it
    out_of_fold.csv          image, fold, and per finding the calibrated probability
    checkpoint.safetensors   the network of whole/, calibrated on the outputs of the folds
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray

from training.calibration import at_site, fit_calibration, reference
from training.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint
from training.fit import CHECKPOINT, Films, aurocs, fit, predict, with_evidence
from training.manifest import UNKNOWN
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
    labels = prepared.manifest[list(prepared.findings)].to_numpy()  # (N, F)
    runs = {folder / f"fold-{number}": np.where(fold == number, "test", "train") for number in range(folds)}
    runs[folder / "whole"] = np.full(len(fold), "train")
    networks = []
    for run, split in runs.items():
        part = replace(prepared, manifest=prepared.manifest.assign(split=split))
        path = fit(part, settings, run, code_commit=code_commit, progress=progress)
        networks.append(load_checkpoint(path, findings=None))
    outputs = np.stack(
        [unshifted(each, prepared, accelerator=settings.accelerator) for each in networks]
    )  # (K + 1, N, F)
    logits, centre = centred(outputs, fold=fold)

    probabilities = calibrated_out_of_fold(logits, labels, fold=fold)
    judged = pd.DataFrame(probabilities, columns=list(prepared.findings))
    judged.insert(0, "image", prepared.manifest["image"].to_numpy())
    judged.insert(1, "fold", fold)
    judged.to_csv(folder / OUT_OF_FOLD, index=False)

    whole, none = networks[-1], (0.0,) * len(prepared.findings)
    calibration = fit_calibration(logits, labels, shift=none)
    header = with_evidence(whole.header, calibration, logits, labels)
    shift = tuple((np.asarray(whole.calibration.shift) + centre).tolist())
    honest = {"folds": folds, "auroc": aurocs(labels, probabilities, findings=header.findings)}
    # Drift is told by what this very network says, if of films it has seen: another of the recipe spreads its outputs
    # otherwise, so that films like these would seem to have drifted (docs/how-to/drift.md).
    own = reference(calibration.probabilities(outputs[-1] - centre), findings=header.findings)
    header = replace(
        header,
        calibration=replace(calibration, shift=shift),
        reference=own,
        training={**header.training, **honest},
    )
    save_checkpoint(folder / CHECKPOINT, header, state=whole.state, half=settings.half_checkpoint)
    return folder / CHECKPOINT


def deal(manifest: pd.DataFrame, *, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (N,) of every film, 0 to folds - 1, all films of a patient in one."""
    names, patient = np.unique(manifest["patient_id"].to_numpy(dtype=str), return_inverse=True)
    dealt: NDArray[np.int64] = (np.random.default_rng(seed).permutation(len(names)) % folds)[patient]
    return dealt


def predict_logits(
    checkpoint: Checkpoint, prepared: Prepared, *, split: str | None = None, accelerator: str = "auto"
) -> NDArray[np.float32]:
    """Raw logits (N, F) of a checkpoint for one part of the split, or for all films."""
    fabric = Fabric(accelerator=accelerator, devices=1)
    network = fabric.setup(build(checkpoint).to(memory_format=torch.channels_last))  # faster on a CPU too
    return predict(network, Films.of(prepared, split), checkpoint.preprocessing, batch_size=64, fabric=fabric)


def unshifted(checkpoint: Checkpoint, prepared: Prepared, *, accelerator: str) -> NDArray[np.float64]:
    """Logits (N, F) of a checkpoint for all films, what its loss added to them taken back."""
    logits = predict_logits(checkpoint, prepared, accelerator=accelerator).astype(np.float64)
    logits -= np.asarray(checkpoint.calibration.shift)
    return logits


def centred(
    outputs: NDArray[np.float64], *, fold: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Out-of-fold logits (N, F), each network's centre taken away, and the centre (F,) of the network of all films.

    outputs: logits (K + 1, N, F) of the K folds' networks and of the whole's, for all films. A network's centre is its
    mean on films that it never saw. The whole's has seen all, so its centre is its mean less the gap between the means
    on seen and on unseen films; and to be judged alike, so is a fold's, with the gap of the other folds.
    """
    folds = len(outputs) - 1
    learned = np.stack([outputs[k][fold != k].mean(axis=0) for k in range(folds)])  # (K, F)
    gap = learned - np.stack([outputs[k][fold == k].mean(axis=0) for k in range(folds)])  # (K, F)
    logits = np.zeros(outputs.shape[1:])
    for k in range(folds):
        logits[fold == k] = outputs[k][fold == k] - (learned[k] - np.delete(gap, k, axis=0).mean(axis=0))
    return logits, outputs[-1].mean(axis=0) - gap.mean(axis=0)


def calibrated_out_of_fold(
    logits: NDArray[np.float64], labels: NDArray[np.uint8], *, fold: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Probabilities (N, F) whose calibration was fitted on the other folds too: what honest figures are made of.

    Each is then moved to the prevalence of all films: where a fold holds more cases the others hold fewer, and left
    alone that would rank whole folds backwards.
    """
    probabilities = np.zeros(logits.shape, dtype=np.float32)
    for number in np.unique(fold):
        here = fold == number
        calibration = fit_calibration(logits[~here], labels[~here], shift=(0.0,) * labels.shape[1])
        calibration = at_site(calibration, fitted=_prevalence(labels[~here]), site=_prevalence(labels))
        probabilities[here] = calibration.probabilities(logits[here])
    return probabilities


def _prevalence(labels: NDArray[np.uint8]) -> list[float]:
    """(F,): by Laplace's rule, never 0 or 1."""
    known = (labels != UNKNOWN).sum(axis=0)
    return [float(share) for share in ((labels == 1).sum(axis=0) + 1) / (known + 2)]
