"""Which films are learned from, and which are kept aside: splits by patient, undersampling, oversampling.

A split is the manifest's column `split` ("train", "validation", "test"). Every function returns a new manifest and
keeps its index, the film's place in the prepared images. The caller brings the random generator.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from training.manifest import findings_in, prevalence
from training.settings import UnusableSettings

SPLITS: Final = ("train", "validation", "test")
STABLE_SHARES: Final = (0.6, 0.2, 0.2)
"""Of the patients, for train, validation and test. Another value would move patients from one side to another."""
COMMON: Final = ("Mass", "Consolidation", "Atelectasis", "Effusion")
"""The paper's four most common findings."""
COMMON_SHARE: Final = 0.105
"""Of the films that carry only common findings: 35,483 in NIH, so that about 20,000 remain, as in the paper."""


class LeakageWarning(UserWarning):
    """Films of one patient lie on both sides of a split: what is measured there is too good."""


def split_by_patient(
    manifest: pd.DataFrame, *, rng: np.random.Generator, shares: Sequence[float] = (0.6, 0.2, 0.2)
) -> pd.DataFrame:
    """Every patient, with all films, to train, validation or test; `shares` are shares of the patients and sum to 1."""
    patients = manifest["patient_id"].to_numpy()
    return manifest.assign(split=_drawn(patients, shares=shares, rng=rng))


STABLE: Final = "stable"
"""A checkpoint's word for a network that has never learned from a patient whom `split_stable` puts in test."""


def split_stable(manifest: pd.DataFrame) -> pd.DataFrame:
    """Every patient to the side that a hash of `patient_id` says, in STABLE_SHARES.

    Nothing is drawn: a patient is on the same side in every table, whatever else is in it, so that a patient who was in
    test once stays in test as films come in. The shares of a small table are only about those.
    """
    sides = {patient: _side(str(patient)) for patient in manifest["patient_id"].unique()}
    return manifest.assign(split=manifest["patient_id"].map(sides).astype(object))


def _side(patient: str) -> str:
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    return SPLITS[int(np.searchsorted(np.cumsum(STABLE_SHARES[:-1]), place, side="right"))]


def split_official(manifest: pd.DataFrame, *, rng: np.random.Generator) -> pd.DataFrame:
    """NIH's own test films, and 13 % of the other patients (about 11,200 films) for validation.

    The manifest's split says "train_val" or "test", as `train prepare` writes it from NIH's lists. Raises ValueError
    when it does not.
    """
    if not set(manifest["split"]) <= {"train_val", "test"}:
        raise ValueError("the manifest holds no official split: give NIH's lists to `nightread train prepare`")
    learned = manifest["split"] == "train_val"
    patients = manifest.loc[learned, "patient_id"].to_numpy()
    split = manifest["split"].astype(object)
    split[learned] = _drawn(patients, shares=(0.87, 0.13), rng=rng)
    return manifest.assign(split=split)


def split_by_image(
    manifest: pd.DataFrame, *, rng: np.random.Generator, shares: Sequence[float] = (0.6, 0.2, 0.2)
) -> pd.DataFrame:
    """As the paper did, and only to reproduce it: on NIH 80 % of the test films share a patient with training."""
    split = manifest.assign(split=_drawn(np.arange(len(manifest)), shares=shares, rng=rng))
    shared = f"split by image: {leakage(split):.0%} of the test films share a patient with training"
    warnings.warn(shared, LeakageWarning, stacklevel=2)
    return split


def leakage(manifest: pd.DataFrame) -> float:
    """The share of test films, in [0, 1], whose patient has films in training too."""
    learned = manifest.loc[manifest["split"] == "train", "patient_id"]
    return float(manifest.loc[manifest["split"] == "test", "patient_id"].isin(learned).mean())


def undersample(
    manifest: pd.DataFrame,
    *,
    rng: np.random.Generator,
    common_share: float = COMMON_SHARE,
    no_finding_share: float = 0.0,
) -> pd.DataFrame:
    """The paper's undersampling, in training alone: every film with a rarer finding, a share of the others, none empty.

    Of the training films that carry none but COMMON findings `common_share` is kept, drawn without replacement; of
    those without any finding `no_finding_share`. Validation and test stay as they are, at their natural prevalence. A
    manifest without a split is all training.
    """
    findings = list(findings_in(manifest))
    positive = manifest[findings] == 1  # an unknown finding is none to keep a film for
    rarer = positive.drop(columns=[finding for finding in COMMON if finding in findings]).any(axis=1)
    empty = ~positive.any(axis=1)
    training = manifest["split"].isin(("train", ""))
    places = manifest.index.to_numpy()
    kept = [
        places[~training | rarer],
        _share(places[training & ~rarer & ~empty], common_share, rng),
        _share(places[training & empty], no_finding_share, rng),
    ]
    return manifest.loc[np.sort(np.concatenate(kept))]


def oversample(manifest: pd.DataFrame, *, rng: np.random.Generator, at_least: float = 0.05) -> pd.DataFrame:
    """Training films with a finding rarer than `at_least` repeated, the rarer the oftener; the index repeats with them.

    Repeat-factor sampling (Gupta et al., LVIS, CVPR 2019): a film comes sqrt(at_least / its rarest frequency)
    times, never less than once; the fraction is drawn. Validation and test stay as they are.
    """
    findings = list(findings_in(manifest))
    training = manifest["split"].isin(("train", "")).to_numpy()
    labels = manifest[findings].to_numpy()  # (N, F)
    frequency = np.nan_to_num(prevalence(labels[training]))
    factor = np.sqrt(at_least / np.maximum(frequency, 1 / max(training.sum(), 1)))
    repeats = np.maximum(1.0, ((labels == 1) * factor).max(axis=1))
    times = np.floor(repeats + rng.random(len(manifest))).astype(int)
    return manifest.loc[manifest.index.repeat(np.where(training, times, 1))]


def choose(manifest: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """The manifest with labels for these findings alone; a film that carries only others then carries none.

    Raises UnusableSettings.
    """
    if unknown := set(findings) - set(findings_in(manifest)):
        raise UnusableSettings(f"the prepared set has no labels for {', '.join(sorted(unknown))}")
    return manifest.drop(columns=[finding for finding in findings_in(manifest) if finding not in findings])


def save_lists(manifest: pd.DataFrame, folder: Path) -> None:
    """train.txt, validation.txt, test.txt: one image name per line, in the manifest's order."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images = manifest.loc[manifest["split"] == split, "image"]
        (folder / f"{split}.txt").write_text("".join(f"{image}\n" for image in images))


def split_by_lists(manifest: pd.DataFrame, lists: Mapping[str, Path]) -> pd.DataFrame:
    """The split that lists of image names say (split -> file); a film in none of them gets ""."""
    splits = {image: split for split, path in lists.items() for image in path.read_text().splitlines()}
    return manifest.assign(split=manifest["image"].map(lambda image: splits.get(image, "")))


def _drawn(groups: np.ndarray, *, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The split of each film, all of one group together; `shares` of the groups go to train, validation and test."""
    if not np.isclose(sum(shares), 1) or min(shares) < 0:
        raise ValueError(f"shares must be positive and sum to 1, not {tuple(shares)}")
    # Sorted before they are shuffled, so that the order of the rows has no say in who goes where.
    names, group = np.unique(groups.astype(str), return_inverse=True)
    place = rng.permutation(len(names))
    ends = np.round(np.cumsum(shares) * len(names))
    return np.array(SPLITS, dtype=object)[np.searchsorted(ends, place, side="right")][group]


def _share(places: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(places, size=round(share * len(places)), replace=False)
