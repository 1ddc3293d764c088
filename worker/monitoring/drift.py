"""How far a day's films have moved from those that the checkpoint knows, and what came in from the weeks before.

A day is a calendar day in UTC; a study belongs to the day on which it came in, whenever it was scored. Chance alone
gives every distance some length, the more the fewer films there are. So a figure is the distance less what chance is
expected to give, and it alarms only where that is large, by the settings, and where chance would hardly give as much
on any of the day's figures. docs/how-to/drift.md has the derivations and what was measured.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov

from db import drift
from db.base import DECIMALS, database_now
from db.drift import Arrivals, Figure
from db.models import DRIFT_LEVELS
from db.session import read_scope, session_scope
from training.findings import AGE_BANDS, FINDINGS
from worker.context import Context
from worker.setting_groups import DriftSettings

log = structlog.get_logger()

BINS = 10
BY_CHANCE = 0.01  # the share of days without drift on which any of a day's figures may pass for more than chance
FEWEST_EXPECTED = 5.0  # films; values expected less often on a day are counted together (Cochran 1954)
QUIET, WARN, ACT = DRIFT_LEVELS
OF_FILMS = ("psi", "ks", "shares")  # measures that speak of what the network sees; a rate is a matter for a technician

Array = NDArray[np.float64]


class Distance(NamedTuple):
    """How far something moved, what it is compared with, and how often chance alone gives as much."""

    moved: float
    reference: float
    probability: float


@dataclass(frozen=True)
class Judged:
    """Judgement of one day. `remarks`: what could not be judged, and why, one sentence each."""

    day: date
    digest: str
    films: int
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...]
    retrain: bool = False

    @property
    def level(self) -> str:
        """The worst of its figures'."""
        return worst(figure.level for figure in self.figures)


def worst(levels: Iterable[str]) -> str:
    """The worst of several levels; quiet of none."""
    return max(levels, key=DRIFT_LEVELS.index, default=QUIET)


# ------------------------------------------------------------------------------------------------------- one day


def daily(context: Context, *, day: date | None = None) -> Judged:
    """Judge a day, by default the last that is over, and keep its figures; judged again they are written again.

    `retrain` says whether its drift asks for a retraining by the settings. Nothing is promoted here.
    """
    live, rules = context.live(), context.settings.drift
    with read_scope(context.engine) as session:
        day = day or database_now(session).date() - timedelta(days=1)
        since = datetime.combine(day, time(), UTC)
        until, first = since + timedelta(days=1), since - timedelta(days=rules.reference_days)
        scores = drift.scores(session, checkpoint_id=live.checkpoint_id, since=since, until=until)
        now = drift.arrivals(session, since=since, until=until)
        before = drift.arrivals(session, since=first, until=since)
    table = np.asarray(scores, dtype=np.float64).reshape(-1, len(FINDINGS))
    figures, remarks = judge(table, live.header.reference, now, before, rules=rules)
    with session_scope(context.engine) as session:
        drift.record(session, figures, day=day.isoformat(), checkpoint_id=live.checkpoint_id)
    acts = [figure for figure in figures if figure.level == ACT]
    retrain = rules.retrains and any(figure.measure in OF_FILMS for figure in acts)
    judged = Judged(day, live.digest, len(scores), figures, remarks, retrain)
    subjects = sorted({figure.subject for figure in acts})
    log.info("drift_judged", day=day.isoformat(), films=len(scores), level=judged.level, act=subjects)
    return judged


def last_day(context: Context) -> date | None:
    """The day of the newest study that is settled, which may not be over."""
    with read_scope(context.engine) as session:
        newest = drift.last_arrival(session)
    return newest and newest.date()


def judge(
    scores: Array, reference: Mapping[str, Any], now: Arrivals, before: Arrivals, *, rules: DriftSettings
) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """A day's figures and remarks, of scores (N, 11), the checkpoint's reference, and what came that day and before.

    Scores, shares and rates each need `min_films` of their own kind: a day on which nothing could be scored has
    no scores, and is judged by its rates all the same.
    """
    fewest = rules.min_films
    remarks: list[str] = []
    measured: list[Measured] = []
    if len(scores) < fewest:
        remarks.append(f"{len(scores)} films were scored and {fewest} are needed: no score is judged.")
    elif not reference:
        remarks.append("The checkpoint brings no reference: no score is judged.")
    else:
        measured += of_scores(scores, reference)
    arrived = [*of_shares(now, before, fewest=fewest), *of_rates(now, before, fewest=fewest)]
    if any(each.distance is None for each in arrived):
        remarks.append(
            f"The {rules.reference_days} days before are too few films or studies to compare some figures with."
        )
    return _leveled([*measured, *arrived], rules), tuple(remarks)


class Measured(NamedTuple):
    """A figure before its level is known; no `distance` where there is nothing to compare with."""

    measure: str
    subject: str
    films: int
    distance: Distance | None


def _leveled(measured: Sequence[Measured], rules: DriftSettings) -> tuple[Figure, ...]:
    psi, ks = (rules.psi_warn, rules.psi_act), (rules.ks_warn, rules.ks_act)
    bounds = {"psi": psi, "shares": psi, "ks": ks, "rate": (rules.rate_warn, rules.rate_act)}
    rare = BY_CHANCE / max(1, len(measured))  # Bonferroni's share of it for each figure
    return tuple(
        Figure(measure, subject, distance.moved, distance.reference, _level(distance, rare, *bounds[measure]), films)
        if distance
        else Figure(measure, subject, 0.0, None, QUIET, films)
        for measure, subject, films, distance in measured
    )


def _level(distance: Distance, rare: float, warn: float, act: float) -> str:
    if distance.probability > rare:
        return QUIET
    moved = abs(distance.moved)
    return ACT if moved >= act else WARN if moved >= warn else QUIET


# ----------------------------------------------------------------------------------------------------- what moved


def of_scores(scores: Array, reference: Mapping[str, Any]) -> list[Measured]:
    """PSI and KS of each finding's scores (N, 11) against the quantiles that a checkpoint brings."""
    levels, films = np.asarray(reference["levels"], dtype=np.float64), int(reference["films"])
    pairs = []
    # A reference is rounded as stored probabilities are: else a value that films share would match none.
    for finding, column in zip(FINDINGS, np.round(scores, DECIMALS).T, strict=True):
        known = Known.of(np.round(reference["probabilities"][finding], DECIMALS), levels)
        counts, expected = known.bins(column)
        pairs.append((finding, psi(counts, films * expected), ks(column, known, films=films)))
    return [Measured("psi", finding, len(scores), distance) for finding, distance, _ in pairs] + [
        Measured("ks", finding, len(scores), distance) for finding, _, distance in pairs
    ]


def of_shares(now: Arrivals, before: Arrivals, *, fewest: int) -> list[Measured]:
    """PSI of each attribute's values among a day's scored films against those of the days before."""
    measured = []
    for attribute in now.films:
        counts, known = (_named(attribute, period.films[attribute]) for period in (now, before))
        if (films := counts.total()) >= fewest:
            distance = psi(*_common(counts, known)) if known.total() >= fewest else None
            measured.append(Measured("shares", attribute, films, distance))
    return measured


def of_rates(now: Arrivals, before: Arrivals, *, fewest: int) -> list[Measured]:
    """The change of the shares of studies skipped and quarantined, and of instances whose view nothing tells."""
    earlier, measured = _rates(before), []
    for subject, (part, whole) in _rates(now).items():
        if whole >= fewest:
            distance = change(part, whole, *earlier[subject]) if earlier[subject][1] >= fewest else None
            measured.append(Measured("rate", subject, whole, distance))
    return measured


def _rates(period: Arrivals) -> dict[str, tuple[int, int]]:
    studies, instances = sum(period.studies.values()), sum(period.instances.values())
    return {
        "skipped": (period.studies.get("skipped", 0), studies),
        "quarantined": (period.studies.get("quarantined", 0), studies),
        "view_unknown": (period.instances.get("view_unknown", 0), instances),
    }


def _named(attribute: str, films: Mapping[Any, int]) -> Counter[str]:
    """Value -> films, ages by band; what a header does not say is a value too, for it may suddenly be missing."""
    named: Counter[str] = Counter()
    for value, count in films.items():
        named["unknown" if value is None else _band(value) if attribute == "age" else str(value)] += count
    return named


def _band(years: int) -> str:
    return next((name for name, begin in reversed(AGE_BANDS.items()) if years >= begin), "unknown")


def _common(now: Counter[str], before: Counter[str]) -> tuple[Array, Array]:
    """Films of a day and before (B,) by value; values too rare to count alone on such a day are one value."""
    both = now + before
    rare = {value for value, films in both.items() if films * now.total() < FEWEST_EXPECTED * both.total()}
    cells = [{value} for value in sorted(both.keys() - rare)] + ([rare] if rare else [])
    day, known = ([sum(films[value] for value in cell) for cell in cells] for films in (now, before))
    return np.array(day, dtype=np.float64), np.array(known, dtype=np.float64)


# --------------------------------------------------------------------------------------------------- the arithmetic


@dataclass(frozen=True)
class Known:
    """A distribution as a checkpoint keeps it: rising values (V,), and the shares of films below each and up to each.

    The two differ by one step of the quantiles at most, but where many films share a value.
    """

    values: Array
    below: Array
    up_to: Array

    @classmethod
    def of(cls, quantiles: Array, levels: Array) -> "Known":
        """Of quantiles (L,) at levels (L,) in [0, 1], both rising; equal quantiles are one value."""
        values, first = np.unique(quantiles, return_index=True)
        last = np.append(first[1:], len(quantiles)) - 1
        return cls(values, levels[first], levels[last])

    def bins(self, scores: Array) -> tuple[Array, Array]:
        """Scores (N,) -> how many lie in each bin, and the share of films expected there, (B,) each.

        The edges are the deciles, each once: where a value is shared by more than a tenth there are fewer bins.
        """
        deciles = np.arange(1, BINS) / BINS
        places = np.unique(np.searchsorted(self.up_to, deciles - 1e-9))
        places = places[self.up_to[places] < 1]
        edges, shares = self.values[places], np.diff(np.concatenate([[0.0], self.up_to[places], [1.0]]))
        counts = np.bincount(np.searchsorted(edges, scores), minlength=len(shares))
        return counts.astype(np.float64), shares


def psi(now: Array, before: Array) -> Distance:
    """The population stability index of counts (B,) against counts (B,), less what chance gives.

    Half a film is added to every bin, or an empty one would make it infinite. Without drift it is close to chi-squared
    with B - 1 degrees of freedom times (1/N + 1/M) (Yurdakul 2018), whose mean is what chance gives.
    """
    bins, spread = len(now), 1 / now.sum() + 1 / before.sum()
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * bins) for counts in (now, before))
    index, by_chance = float(((p - q) * np.log(p / q)).sum()), (bins - 1) * spread
    probability = float(chdtrc(bins - 1, index / spread)) if bins > 1 else 1.0
    return Distance(index - by_chance, by_chance, probability)


def ks(scores: Array, known: Known, *, films: int) -> Distance:
    """Kolmogorov and Smirnov's distance of scores (N,) to a stored distribution of M films, minus what chance gives.

    It is taken at the kept values, so up to one step of the quantiles (.01) too small. Without drift its mean is
    sqrt(pi / 2) ln 2 / sqrt(n) for large n = N M / (N + M) (Marsaglia, Tsang and Wang 2003).
    """
    ordered, n = np.sort(scores), 1 / (1 / len(scores) + 1 / films)
    under, up_to = (np.searchsorted(ordered, known.values, side=side) / len(scores) for side in ("left", "right"))
    gap = float(max(np.abs(under - known.below).max(), np.abs(up_to - known.up_to).max()))
    by_chance = math.sqrt(math.pi / 2 / n) * math.log(2)
    return Distance(gap - by_chance, by_chance, float(kolmogorov(math.sqrt(n) * gap)))


def change(part: int, whole: int, part_before: int, whole_before: int) -> Distance:
    """By how much a share grew or shrank, with the two-sided probability of the pooled z test."""
    now, before = part / whole, part_before / whole_before
    pooled = (part + part_before) / (whole + whole_before)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / whole + 1 / whole_before))
    probability = 2 * NormalDist().cdf(-abs(now - before) / spread) if spread else 1.0
    return Distance(now - before, before, probability)
