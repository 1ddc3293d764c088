"""Whether a finding's heat maps point at what radiologists outlined, and so whether they are shown.

tests/benchmarks/heatmaps.py measures it and keeps the record in the checkpoint's header. Torch is not needed here.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Pointing(NamedTuple):
    """How often a finding's maps had their highest point in what a radiologist outlined.

    chance: the share of hits of a point that knows nothing of the film, drawn at random, always in the centre, or
    highest in the map of another film, whichever hits more often.
    """

    boxes: int
    hits: int
    chance: float

    @property
    def beats_chance(self) -> bool:
        """Whether the whole 95 % interval lies above chance."""
        return wilson(self.hits, self.boxes)[0] > self.chance


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of no trials."""
    if not trials:
        return 0.0, 1.0
    z, share = 1.96, hits / trials
    centre, scale = share + z * z / (2 * trials), 1 + z * z / trials
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def pointing_of(training: Mapping[str, Any]) -> dict[str, Pointing]:
    """The record of a checkpoint's maps, from the summary in its header; empty where they were never tested."""
    return {finding: Pointing(**record) for finding, record in training.get("pointing", {}).items()}


def no_map_because(
    finding: str, *, probability: float, threshold: float | None, pointing: Mapping[str, Pointing]
) -> str | None:
    """Why no heat map of a finding is shown, as a sentence; None where one is. Without any record all may be shown."""
    if threshold is None or probability < threshold:
        return "No heat map: the finding does not reach its threshold."
    if not pointing or (finding in pointing and pointing[finding].beats_chance):
        return None
    if finding not in pointing or not pointing[finding].boxes:
        return "No heat map: its maps were never compared with a radiologist's outline."
    hits, boxes = pointing[finding].hits, pointing[finding].boxes
    return f"No heat map: they point no better than chance for this finding ({hits} of {boxes} outlines hit)."


def findings_without_map(
    scores: Iterable[tuple[str, float, float | None]], *, training: Mapping[str, Any]
) -> dict[str, str]:
    """Finding -> why it has no heat map, of those that have none.

    `scores`: (finding, probability, threshold); `training`: the summary in the checkpoint's header.
    """
    pointing = pointing_of(training)
    because = {
        finding: no_map_because(finding, probability=probability, threshold=threshold, pointing=pointing)
        for finding, probability, threshold in scores
    }
    return {finding: why for finding, why in because.items() if why is not None}
