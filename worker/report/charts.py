"""How the scores of one run lie beside earlier ones: one small histogram per finding, as paths for inline SVG."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from training.checkpoint import Header
from training.findings import FINDINGS

# Most probabilities are small, so the axis is their log odds, from about .1 % to 99 %, in steps of a half.
LOG_ODDS = np.arange(-7.0, 4.75, 0.5)  # (B + 1,) edges of B bins
WIDTH, HEIGHT = 10.0 * (len(LOG_ODDS) - 1), 56.0
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9)

Table = NDArray[np.floating[Any]]  # (N, findings) probabilities


@dataclass(frozen=True)
class Compared:
    """Other scores to compare with: per finding the share of films in each bin (findings, B), and who they are."""

    name: str
    short: str
    films: int
    shares: Table
    flagged: Mapping[str, float]  # finding -> share at or above its threshold


@dataclass(frozen=True)
class Chart:
    """One finding's histogram. Paths and places are in a box of WIDTH x HEIGHT."""

    finding: str
    now: str
    before: str | None
    threshold_x: float | None
    threshold: float | None
    flagged_now: float | None
    flagged_before: float | None


def table_of(scores: Iterable[tuple[float, ...]]) -> Table:
    """Rows of probabilities as (N, findings), N may be 0. Of a million films no row is held as Python's numbers."""
    return np.fromiter(scores, dtype=np.dtype((np.float32, len(FINDINGS))))


def charts_of(scores: Table, compared: Compared | None, thresholds: Mapping[str, float]) -> list[Chart]:
    """One chart per finding, in FINDINGS order; `scores` holds at least one film."""
    shares, flagged = shares_of(scores), flagged_of(scores, thresholds)
    return [_chart(index, shares[index], flagged, compared, thresholds) for index in range(len(FINDINGS))]


def _chart(
    index: int, shares: Table, flagged: Mapping[str, float], compared: Compared | None, thresholds: Mapping[str, float]
) -> Chart:
    finding = FINDINGS[index]
    before = None if compared is None else compared.shares[index]
    highest = max(shares.max(), 0.0 if before is None else before.max())
    threshold = thresholds.get(finding)
    return Chart(
        finding=finding,
        now=_steps(shares / highest, closed=True),
        before=None if before is None else _steps(before / highest, closed=False),
        threshold_x=None if threshold is None else x_of(threshold),
        threshold=threshold,
        flagged_now=flagged.get(finding),
        flagged_before=None if compared is None else compared.flagged.get(finding),
    )


def shares_of(scores: Table) -> Table:
    """(N, findings) -> the share of films in each bin, (findings, B); what lies beyond the axis is in the end bins."""
    places = (np.clip(_log_odds(column), LOG_ODDS[0], LOG_ODDS[-1]) for column in scores.T)
    return np.stack([np.histogram(place, LOG_ODDS)[0] for place in places]) / len(scores)


def flagged_of(scores: Table, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Finding -> the share of films at or above its threshold, for findings that have one."""
    return {finding: float((scores[:, FINDINGS.index(finding)] >= cut).mean()) for finding, cut in thresholds.items()}


def reference_of(header: Header, thresholds: Mapping[str, float]) -> Compared | None:
    """A checkpoint's reference (quantiles per finding) to compare with; None without one."""
    if not header.reference:
        return None
    levels, quantiles = header.reference["levels"], header.reference["probabilities"]
    edges = 1 / (1 + np.exp(-LOG_ODDS[1:-1]))  # probabilities between the bins
    below = [np.interp(edges, quantiles[finding], levels, left=0.0, right=1.0) for finding in FINDINGS]
    shares = np.stack([np.diff(np.concatenate([[0.0], row, [1.0]])) for row in below])
    flagged = {finding: 1 - float(np.interp(cut, quantiles[finding], levels)) for finding, cut in thresholds.items()}
    own = header.training.get("films", {}).get("validation")
    name, short = ("its validation films", "validation") if own else ("the films it learned from", "learned from")
    return Compared(name, short, int(header.reference["films"]), shares, flagged)


def x_of(probability: float) -> float:
    """Where a probability lies on the axis, 0 to WIDTH."""
    place = np.clip(_log_odds(np.array(probability)), LOG_ODDS[0], LOG_ODDS[-1])
    return round(float((place - LOG_ODDS[0]) / (LOG_ODDS[-1] - LOG_ODDS[0]) * WIDTH), 1)


def _log_odds(probabilities: Table) -> Table:
    return np.asarray(logit(np.clip(probabilities, 1e-6, 1 - 1e-6)))


def _steps(heights: Table, *, closed: bool) -> str:
    """A histogram's outline as SVG path data; heights (B,) in [0, 1], the box's top is y = 0."""
    levels = [round(float(HEIGHT * (1 - height)), 1) for height in heights]
    outline = f"M0 {HEIGHT:g}V{levels[0]:g}H10" + "".join(
        f"V{level:g}H{10 * (bin_ + 1):g}" for bin_, level in enumerate(levels) if bin_
    )
    return f"{outline}V{HEIGHT:g}{'Z' if closed else ''}"
