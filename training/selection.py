"""From a prepared set to the films of one run: findings chosen, split drawn, training films thinned or repeated."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from training import sampling
from training.prepared import Prepared, open_prepared
from training.settings import Selection, UnusableSettings


def select(
    prepared: Prepared,
    selection: Selection,
    *,
    seed: int,
    on_left_out: Callable[[int, str], None] = lambda _count, _reason: None,
) -> Prepared:
    """The same images under a manifest with a split; the same films for the same seed. `on_left_out` hears how many
    films the run does not use, for each reason.

    Raises UnusableSettings, and NotPrepared for a folder to stay apart from that is none.
    """
    rng = np.random.default_rng(seed)
    manifest = prepared.manifest
    if selection.apart_from is not None:
        others = open_prepared(selection.apart_from).manifest["patient_id"]
        apart = manifest["patient_id"].isin(others)
        on_left_out(int(apart.sum()), "of patients in --apart-from")
        manifest = manifest[~apart]
    if selection.findings:
        manifest = sampling.choose(manifest, selection.findings)
    manifest = _split(manifest, selection, rng=rng)
    on_left_out(int((manifest["split"] == "").sum()), "in none of the split's lists")
    if selection.undersample:
        learned = int((manifest["split"] == "train").sum())
        manifest = sampling.undersample(
            manifest, rng=rng, common_share=selection.common_share, no_finding_share=selection.no_finding_share
        )
        on_left_out(learned - int((manifest["split"] == "train").sum()), "by undersampling")
    if selection.oversample_below:
        manifest = sampling.oversample(manifest, rng=rng, at_least=selection.oversample_below)
    return replace(prepared, manifest=manifest)


def _split(manifest: pd.DataFrame, selection: Selection, *, rng: np.random.Generator) -> pd.DataFrame:
    if selection.lists is not None:
        return sampling.split_by_lists(manifest, {name: selection.lists / f"{name}.txt" for name in sampling.SPLITS})
    if selection.split == "patient":
        return sampling.split_by_patient(manifest, rng=rng, shares=selection.shares)
    if selection.split == sampling.STABLE:
        return sampling.split_stable(manifest)
    if selection.split == "official":
        return sampling.split_official(manifest, rng=rng)
    if selection.split == "image":
        return sampling.split_by_image(manifest, rng=rng, shares=selection.shares)
    raise UnusableSettings(f"split is patient, stable, official or image, not {selection.split!r}")
