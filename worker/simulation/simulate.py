"""What a reading order buys: minutes to the report under several disciplines, side by side.

`simulate` plays a department (arrivals and reading speed by hour, one or more readers) over many days and seeds. Every
discipline reads the same studies with the same reading work, so that differences are not luck. `replay.py`
asks a site's own past instead. `docs/background/simulation.md` says how this was checked and what it leaves out.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from training.findings import FINDINGS
from worker.ranking.priority import CATEGORIES, DEFAULT_POLICY, Policy, categories, threshold_for_share, urgencies
from worker.simulation.reading_room import (
    DAY_MINUTES,
    Booleans,
    Department,
    Discipline,
    Floats,
    Outcome,
    ReadingClock,
    ReadingRoom,
    SimulationError,
    Studies,
)

_Kind = TypeVar("_Kind")

REFERENCE_FILMS = 50_000  # drawn to find the thresholds that flag the policy's share

# 100 films a day: few at night, a busy morning; read quickly from 07 to 20 h, now and then outside. Chosen so that FIFO
# gives about the mean and maximum that Baltruschat et al. (2021) report for their hospital.
_HOURLY = (*[1.5] * 7, 6, 9, 9, 9, 8, 7, 7, 7, 6, 5, 4, 4, 3, 3, 2, 2, 1.5)
DEFAULT_DEPARTMENT = Department(
    arrivals_per_hour=tuple(100 * hour / sum(_HOURLY) for hour in _HOURLY),
    reading_minutes=(*[80.0] * 7, *[4.0] * 13, *[80.0] * 4),
    pace_from_start=True,
)

# Share of the 112,120 NIH films that carry each finding (NIH ChestX-ray14, merged labels).
NIH_PREVALENCE: Mapping[str, float] = dict(
    zip(FINDINGS, (0.1, 0.2148, 0.1031, 0.0473, 0.0205, 0.0224, 0.015, 0.1188, 0.0302, 0.0248, 0.002), strict=True)
)


@dataclass(frozen=True)
class OperatingPoint:
    """How often a finding occurs and how well it is seen: `auc` (a binormal score), or yes/no with `tpf` and `fpf`."""

    prevalence: float
    auc: float | None = None
    tpf: float = 0.0
    fpf: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in (self.prevalence, self.tpf, self.fpf)):
            raise SimulationError("prevalence, tpf and fpf lie between 0 and 1")
        if self.auc is not None and not 0 < self.auc <= 1:
            raise SimulationError("auc lies above 0 and up to 1")

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Booleans, Floats]:
        """Whether each of `count` studies has the finding, and a model's calibrated probability of it; both (N,)."""
        present = rng.random(count) < self.prevalence
        if self.prevalence in (0.0, 1.0):
            return present, present.astype(np.float64)
        if self.auc is None:
            flagged = rng.random(count) < np.where(present, self.tpf, self.fpf)
            return present, np.where(flagged, *self._predictive_values())
        if self.auc == 1.0:
            return present, present.astype(np.float64)
        # Scores N(0, 1) without and N(d, 1) with the finding: P(present | score) is logistic in the score.
        d = math.sqrt(2) * NormalDist().inv_cdf(self.auc)
        score = rng.standard_normal(count) + d * present
        prior = math.log(self.prevalence / (1 - self.prevalence))
        return present, 1 / (1 + np.exp(d * d / 2 - prior - d * score))

    def _predictive_values(self) -> tuple[float, float]:
        """P(present | flagged) and P(present | not flagged)."""
        flagged = self.prevalence * self.tpf + (1 - self.prevalence) * self.fpf
        missed = self.prevalence * (1 - self.tpf)
        return self.prevalence * self.tpf / flagged if flagged else 1.0, missed / (1 - flagged) if flagged < 1 else 0.0


class Cases(Protocol):
    """Where studies come from."""

    @property
    def abnormal_share(self) -> float:
        """The share of studies that have any finding."""

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Booleans, Floats]:
        """Findings present and probabilities of `count` studies, each (N, 11) in FINDINGS order."""


@dataclass(frozen=True)
class BinormalCases:
    """Studies whose findings come and go independently, one operating point each; a finding left out does not occur."""

    points: Mapping[str, OperatingPoint]

    @property
    def abnormal_share(self) -> float:
        """See Cases.abnormal_share."""
        return 1 - math.prod(1 - point.prevalence for point in self.points.values())

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Booleans, Floats]:
        """See Cases.draw."""
        absent = OperatingPoint(prevalence=0.0)
        drawn = [self.points.get(finding, absent).draw(count, rng) for finding in FINDINGS]
        return np.column_stack([present for present, _ in drawn]), np.column_stack([p for _, p in drawn])


@dataclass(frozen=True)
class EvaluatedCases:
    """Studies drawn with replacement from a checkpoint's evaluation, so findings and errors stay together as they were.

    `present` bool (M, 11) and `probabilities` (M, 11) in FINDINGS order.
    """

    present: Booleans
    probabilities: Floats

    @property
    def abnormal_share(self) -> float:
        """See Cases.abnormal_share."""
        return float(self.present.any(axis=1).mean())

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Booleans, Floats]:
        """See Cases.draw."""
        chosen = rng.integers(len(self.present), size=count)
        return self.present[chosen], self.probabilities[chosen]


def cases_from_aucs(aucs: Mapping[str, float], prevalence: Mapping[str, float] = NIH_PREVALENCE) -> BinormalCases:
    """Studies as a checkpoint with these areas under the ROC curve would score them."""
    if unknown := sorted(set(aucs) - set(FINDINGS)):
        raise SimulationError(f"{unknown[0]} is not a finding")
    return BinormalCases({finding: OperatingPoint(prevalence[finding], auc) for finding, auc in aucs.items()})


def read_department(path: Path) -> Department:
    """A department from a JSON file with the names of its fields; an hour in which nobody reads is null."""
    fields = _json_object(path)
    try:
        minutes = fields.get("reading_minutes", DEFAULT_DEPARTMENT.reading_minutes)
        fields["reading_minutes"] = tuple(math.inf if value is None else value for value in minutes)
        fields["arrivals_per_hour"] = tuple(fields.get("arrivals_per_hour", DEFAULT_DEPARTMENT.arrivals_per_hour))
    except TypeError as error:
        raise SimulationError(f"{path.name}: reading_minutes and arrivals_per_hour are lists of 24 numbers") from error
    return _built(Department, fields, path)


def read_cases(path: Path) -> BinormalCases:
    """Studies from a JSON file: finding -> {"prevalence", and "auc" or "tpf" and "fpf"}."""
    points = _json_object(path)
    if unknown := sorted(set(points) - set(FINDINGS)):
        raise SimulationError(f"{path.name}: {unknown[0]} is not a finding")
    return BinormalCases({finding: _built(OperatingPoint, fields, path) for finding, fields in points.items()})


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SimulationError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SimulationError(f"{path.name} must hold a JSON object")
    return content


def _built(kind: type[_Kind], fields: Any, path: Path) -> _Kind:
    try:
        return kind(**fields)
    except TypeError as error:  # a missing, an unknown or a wrongly typed field
        raise SimulationError(f"{path.name}: {error}") from error


def default_disciplines(policy: Policy) -> tuple[Discipline, ...]:
    """First in first out, category, urgency and the policy's own order, without and with its maximum wait."""
    orders = [("category", "ABC", False), ("urgency", "", True), ("nightread", "A", True)]
    rows = [Discipline("FIFO")]
    for wait, suffix in ((math.inf, ""), (policy.max_wait_minutes, f", max wait {policy.max_wait_minutes:g}")):
        rows += [Discipline(name + suffix, ahead, by_urgency, wait) for name, ahead, by_urgency in orders]
    return tuple(rows)


class Estimate(NamedTuple):
    """A figure and half the width of its 95 % interval over seeds; None where there is only one realisation."""

    value: float
    half_width: float | None


@dataclass(frozen=True)
class Row:
    """Minutes for one group of studies under one discipline; `mean`, `p95` and `maximum` are of the time to report."""

    discipline: str
    group: str  # a finding, "normal", "STAT" or "all"
    studies: int  # measured, all seeds together
    mean: Estimate
    p95: Estimate
    maximum: Estimate
    wait: Estimate  # mean time not in a reader's hands
    saved: Estimate  # mean time to report under the first discipline minus this one's, on the same studies


FIGURES = ("mean", "p95", "maximum", "wait", "saved")


def simulate(
    department: Department = DEFAULT_DEPARTMENT,
    *,
    cases: Cases,
    policy: Policy = DEFAULT_POLICY,
    thresholds: Mapping[str, float] | None = None,
    disciplines: Sequence[Discipline] | None = None,
    days: int = 300,
    seeds: int = 4,
    warmup_days: int = 7,
    first_seed: int = 0,
) -> list[Row]:
    """Simulate every discipline on the same studies, `days` measured days after `warmup_days`, once per seed.

    `thresholds` per finding default to those that flag the policy's `category_a_share` of films drawn from `cases`.
    Raises SimulationError when the readers cannot keep up: waits would grow with `days` and mean nothing.
    """
    _refuse_overload(department, cases)
    disciplines = default_disciplines(policy) if disciplines is None else disciplines
    if thresholds is None:
        thresholds = reference_thresholds(cases, share=policy.category_a_share, rng=np.random.default_rng(first_seed))
    measures: Measures = {}
    for seed in range(seeds):
        rng = np.random.default_rng([first_seed, seed])
        studies, work = _draw(department, cases, policy, thresholds, days=warmup_days + days, rng=rng)
        counted = studies.arrived >= warmup_days * DAY_MINUTES
        for discipline in disciplines:
            outcome = ReadingRoom(studies, work, discipline, department).run()
            measure(measures, discipline.name, studies, outcome, counted)
    return report(measures)


def simulate_files(
    *,
    policy: Policy,
    department_file: Path | None = None,
    cases_file: Path | None = None,
    aucs: Mapping[str, float] | None = None,
    preemptive: bool = False,
    days: int = 300,
    seeds: int = 4,
    first_seed: int = 0,
) -> list[Row]:
    """What `nightread simulate` asks: the default disciplines on a department and operating points from files.

    Without `cases_file` the operating points are `aucs`, a checkpoint's area per finding, at NIH's prevalences. The
    policy's own thresholds are left out: they are of the live checkpoint's probabilities, and these are drawn.
    """
    policy = replace(policy, findings=tuple(replace(row, threshold=None) for row in policy.findings))
    if cases_file is None and not aucs:
        raise SimulationError("how well the model sees is not known: give the operating points in a file")
    return simulate(
        DEFAULT_DEPARTMENT if department_file is None else read_department(department_file),
        cases=cases_from_aucs(aucs or {}) if cases_file is None else read_cases(cases_file),
        policy=policy,
        disciplines=[replace(one, preemptive=preemptive) for one in default_disciplines(policy)],
        days=days,
        seeds=seeds,
        first_seed=first_seed,
    )


def reference_thresholds(cases: Cases, *, share: float, rng: np.random.Generator) -> dict[str, float]:
    """The probability per finding from which about `share` of films drawn from `cases` are flagged.

    A finding that no film is given any probability of gets 1: it never counts.
    """
    _, probabilities = cases.draw(REFERENCE_FILMS, rng)
    columns = zip(FINDINGS, probabilities.T, strict=True)
    return {finding: threshold_for_share(p, share) if p.any() else 1.0 for finding, p in columns}


def _refuse_overload(department: Department, cases: Cases) -> None:
    """SimulationError when a day's expected work is all that a day's readers can do, or more.

    Expected, not drawn: whether a department near 1 is refused must not be luck. A day is summed over its hours, since
    what the night leaves is read in the morning.
    """
    stat = 1 + department.stat_share * (department.stat_reading_factor - 1)
    abnormal = 1 + cases.abnormal_share * (department.abnormal_reading_factor - 1)
    capacity = ReadingClock(department).per_day * department.readers
    needed = sum(department.arrivals_per_hour) * stat * abnormal / capacity
    if needed > 1 - 1e-9:  # sums of fractions of 1 come out a little below it
        raise SimulationError(f"the readers cannot keep up: {needed:.0%} of the time they have would be needed")


def _draw(
    department: Department,
    cases: Cases,
    policy: Policy,
    thresholds: Mapping[str, float],
    *,
    days: int,
    rng: np.random.Generator,
) -> tuple[Studies, Floats]:
    """Studies of `days` days and the work (N,) that each is."""
    counts = rng.poisson(department.arrivals_per_hour, size=(days, 24)).ravel()
    hours = np.repeat(np.arange(days * 24), counts)
    arrived = np.sort(60 * (hours + rng.random(len(hours))))
    present, probabilities = cases.draw(len(arrived), rng)
    stat = rng.random(len(arrived)) < department.stat_share
    normal = np.logical_not(present.any(axis=1))
    work = rng.exponential(size=len(arrived)) * np.where(normal, 1.0, department.abnormal_reading_factor)
    work[stat] *= department.stat_reading_factor
    category = categories(probabilities, policy, thresholds)
    groups = groups_of(stat, category, normal=normal, present=present)
    return Studies(arrived, stat, category, urgencies(probabilities, policy), groups), work


def groups_of(
    stat: Booleans, category: npt.NDArray[np.str_], *, normal: Booleans, present: Booleans
) -> dict[str, Booleans]:
    """Who is reported together: everyone, STAT, and of all others each category, finding (N, 11) and normal films."""
    groups = {"all": np.ones(len(stat), dtype=bool), "STAT": stat, "normal": normal & ~stat}
    groups |= {f"category {letter}": (category == letter) & ~stat for letter in CATEGORIES}
    return groups | {finding: column & ~stat for finding, column in zip(FINDINGS, present.T, strict=True)}


def as_records(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Rows as flat records, every figure beside the half width of its interval: what --json prints."""
    return [
        {"discipline": row.discipline, "group": row.group, "studies": row.studies}
        | {f"{name}_minutes": getattr(row, name).value for name in FIGURES}
        | {f"{name}_half_width": getattr(row, name).half_width for name in FIGURES}
        for row in rows
    ]


class _Measure(NamedTuple):
    studies: int
    mean: float
    p95: float
    maximum: float
    wait: float


Measures: TypeAlias = dict[str, dict[str, list[_Measure]]]  # discipline -> group -> one measure per seed


def measure(measures: Measures, name: str, studies: Studies, outcome: Outcome, counted: Booleans) -> None:
    """Add what `outcome` means for the `counted` (N,) studies of each group to `measures`, as one more seed."""
    to_report = outcome.reported - studies.arrived
    for group, members in studies.groups.items():
        minutes = to_report[members & counted]
        if len(minutes):
            wait = float((to_report - outcome.reading)[members & counted].mean())
            measure = _Measure(
                len(minutes), float(minutes.mean()), float(np.quantile(minutes, 0.95)), float(minutes.max()), wait
            )
            measures.setdefault(name, {}).setdefault(group, []).append(measure)


def report(measures: Measures) -> list[Row]:
    """The measures of all seeds as rows, compared with the first discipline; SimulationError when there are none."""
    if not measures:
        raise SimulationError("no study was measured: there were no arrivals, no days or no seeds")
    first = next(iter(measures.values()))
    rows = []
    for discipline, groups in measures.items():
        for group, per_seed in groups.items():
            saved = [before.mean - after.mean for before, after in zip(first[group], per_seed, strict=True)]
            counts, means, p95s, maxima, waits = zip(*per_seed, strict=True)
            rows.append(
                Row(
                    discipline,
                    group,
                    studies=sum(counts),
                    mean=_estimate(means),
                    p95=_estimate(p95s),
                    maximum=_estimate(maxima),
                    wait=_estimate(waits),
                    saved=_estimate(saved),
                )
            )
    return rows


def _estimate(values: Sequence[float]) -> Estimate:
    """Mean and half the 95 % interval by Student's t."""
    if len(values) < 2:
        return Estimate(values[0], None)
    deviation = float(np.std(values, ddof=1))
    return Estimate(float(np.mean(values)), _t_975(len(values) - 1) * deviation / math.sqrt(len(values)))


def _t_975(degrees: int) -> float:
    """The 97.5 % point of Student's t; above 3 degrees by Cornish and Fisher's expansion (within .3 %)."""
    if degrees <= 3:
        return (12.706, 4.303, 3.182)[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
