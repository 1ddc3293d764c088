"""Simulation of reading orders: minutes to the report under several disciplines, side by side.

`simulate` plays a department (arrivals and reading speed by hour, one or more readers) over many days and seeds. Every
discipline reads the same studies with the same reading work, so that differences are not luck. `replay.py`
asks a site's own past instead. `docs/background/simulation.md` says how this was checked and what it leaves out.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from scipy.special import stdtrit

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
    Share,
    SimulationError,
    Studies,
)

_Value = TypeVar("_Value")

REFERENCE_FILMS = 50_000  # drawn to find the thresholds that flag the policy's share

DEFAULT_DEPARTMENT = Department(pace_from_start=True)

# Share of the 112,120 NIH films that carry each finding (NIH ChestX-ray14, merged labels).
NIH_PREVALENCE: Mapping[str, float] = dict(
    zip(FINDINGS, (0.1, 0.2148, 0.1031, 0.0473, 0.0205, 0.0224, 0.015, 0.1188, 0.0302, 0.0248, 0.002), strict=True)
)


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class OperatingPoint:
    """How often a finding occurs and how well it is seen: `auc` (a binormal score), or yes/no with `tpf` and `fpf`."""

    prevalence: Share
    auc: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    tpf: Share = 0.0
    fpf: Share = 0.0

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


POINTS = TypeAdapter(dict[str, OperatingPoint])


class Drawn(NamedTuple):
    """Studies: (N, 11) in FINDINGS order, and which film each shows (N,); studies of one film share its number."""

    present: Booleans
    probabilities: Floats
    film: npt.NDArray[np.int64]


class Cases(Protocol):
    """Where studies come from."""

    @property
    def abnormal_share(self) -> float:
        """The share of studies that have any finding."""

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        """Draw `count` studies."""


@dataclass(frozen=True)
class BinormalCases:
    """Studies whose findings come and go independently, one operating point each; a finding left out does not occur."""

    points: Mapping[str, OperatingPoint]

    @property
    def abnormal_share(self) -> float:
        """See Cases.abnormal_share."""
        return 1 - math.prod(1 - point.prevalence for point in self.points.values())

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        """See Cases.draw."""
        absent = OperatingPoint(prevalence=0.0)
        columns = zip(*(self.points.get(finding, absent).draw(count, rng) for finding in FINDINGS), strict=True)
        present, probabilities = map(np.column_stack, columns)
        return Drawn(present, probabilities, np.arange(count))


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

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        """See Cases.draw."""
        film = rng.integers(len(self.present), size=count)
        return Drawn(self.present[film], self.probabilities[film], film)


def cases_from_aucs(aucs: Mapping[str, float]) -> BinormalCases:
    """Studies as a checkpoint with these areas under the ROC curve would score them, at NIH's prevalences."""
    points = {name: {"prevalence": NIH_PREVALENCE.get(name, 0.0), "auc": auc} for name, auc in aucs.items()}
    return _cases(lambda: POINTS.validate_python(points), "the areas")


def read_department(path: Path) -> Department:
    """A department from a JSON file with the names of its fields; an hour in which nobody reads is null."""
    return _checked(lambda: TypeAdapter(Department).validate_json(path.read_bytes()), path.name)


def read_cases(path: Path) -> BinormalCases:
    """Studies from a JSON file: finding -> {"prevalence", and "auc" or "tpf" and "fpf"}."""
    return _cases(lambda: POINTS.validate_json(path.read_bytes()), path.name)


def _cases(read: Callable[[], dict[str, OperatingPoint]], source: str) -> BinormalCases:
    points = _checked(read, source)
    if unknown := sorted(points.keys() - set(FINDINGS)):
        raise SimulationError(f"{source}: {unknown[0]} is not a finding")
    return BinormalCases(points)


def _checked(read: Callable[[], _Value], source: str) -> _Value:
    """Read and validate; a wrong value is a SimulationError that says where it stands."""
    try:
        return read()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SimulationError(": ".join(part for part in (source, where, first["msg"]) if part)) from error


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
    wait: Estimate  # mean time before and between readings
    saved: Estimate  # mean time to report under the first discipline minus this one's, on the same studies


FIGURES = ("mean", "p95", "maximum", "wait", "saved")


@dataclass(frozen=True)
class Extent:
    """How much is simulated: `days` measured days after `warmup_days`, for each of `seeds` seeds."""

    days: int = 300
    seeds: int = 4
    warmup_days: int = 7
    first_seed: int = 0


def simulate(
    department: Department = DEFAULT_DEPARTMENT,
    *,
    cases: Cases,
    policy: Policy = DEFAULT_POLICY,
    thresholds: Mapping[str, float] | None = None,
    disciplines: Sequence[Discipline] | None = None,
    extent: Extent = Extent(),
) -> list[Row]:
    """Simulate every discipline on the same studies.

    `thresholds` per finding default to those that flag the policy's `category_a_share` of films drawn from `cases`.
    Raises SimulationError when the readers cannot keep up: waits would grow with `extent.days` and mean nothing.
    """
    disciplines = default_disciplines(policy) if disciplines is None else disciplines
    measures: Measures = {}
    for arrivals in _arrivals(department, cases, policy, thresholds, extent=extent):
        for discipline in disciplines:
            outcome = ReadingRoom(arrivals.studies, arrivals.work, discipline, department).run()
            measure(measures, discipline.name, arrivals.studies, outcome, arrivals.counted)
    return report(measures)


class TimesToReport(NamedTuple):
    """Studies of one group, each (N,): the film that each shows, and the minutes from its arrival to its report."""

    film: npt.NDArray[np.int64]
    minutes: Floats


def times_to_report(
    group: str, *, cases: Cases, policy: Policy, discipline: Discipline, extent: Extent
) -> TimesToReport:
    """The simulated studies of a group one by one, all seeds together, in the default department.

    Two networks' probabilities of the same films meet the same studies here, so that their times can be paired.
    """
    parts = []
    for arrivals in _arrivals(DEFAULT_DEPARTMENT, cases, policy, None, extent=extent):
        outcome = ReadingRoom(arrivals.studies, arrivals.work, discipline, DEFAULT_DEPARTMENT).run()
        members = arrivals.studies.groups[group] & arrivals.counted
        parts.append((arrivals.film[members], (outcome.reported - arrivals.studies.arrived)[members]))
    return TimesToReport(*map(np.concatenate, zip(*parts, strict=True)))


def simulate_files(
    *,
    policy: Policy,
    department_file: Path | None = None,
    cases_file: Path | None = None,
    aucs: Mapping[str, float] | None = None,
    preemptive: bool = False,
    extent: Extent = Extent(),
) -> list[Row]:
    """The cases of `nightread simulate`: the default disciplines on a department and operating points from files.

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
        extent=extent,
    )


def reference_thresholds(cases: Cases, *, share: float, rng: np.random.Generator) -> dict[str, float]:
    """The probability per finding from which about `share` of films drawn from `cases` are flagged.

    A finding that no film is given any probability of gets 1: it never counts.
    """
    columns = zip(FINDINGS, cases.draw(REFERENCE_FILMS, rng).probabilities.T, strict=True)
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


class _Arrivals(NamedTuple):
    """The studies of one seed: the work that each is, the film that it shows, and whether it is measured; each (N,)."""

    studies: Studies
    work: Floats
    film: npt.NDArray[np.int64]
    counted: Booleans


def _arrivals(
    department: Department, cases: Cases, policy: Policy, thresholds: Mapping[str, float] | None, *, extent: Extent
) -> Iterator[_Arrivals]:
    """The studies of each seed in turn; see `simulate`."""
    _refuse_overload(department, cases)
    if thresholds is None:
        rng = np.random.default_rng(extent.first_seed)
        thresholds = reference_thresholds(cases, share=policy.category_a_share, rng=rng)
    for seed in range(extent.seeds):
        rng = np.random.default_rng([extent.first_seed, seed])
        yield _draw(department, cases, policy, thresholds, extent=extent, rng=rng)


def _draw(
    department: Department,
    cases: Cases,
    policy: Policy,
    thresholds: Mapping[str, float],
    *,
    extent: Extent,
    rng: np.random.Generator,
) -> _Arrivals:
    days = extent.warmup_days + extent.days
    counts = rng.poisson(department.arrivals_per_hour, size=(days, 24)).ravel()
    hours = np.repeat(np.arange(days * 24), counts)
    arrived = np.sort(60 * (hours + rng.random(len(hours))))
    present, probabilities, film = cases.draw(len(arrived), rng)
    stat = rng.random(len(arrived)) < department.stat_share
    normal = np.logical_not(present.any(axis=1))
    work = rng.exponential(size=len(arrived)) * np.where(normal, 1.0, department.abnormal_reading_factor)
    work[stat] *= department.stat_reading_factor
    category = categories(probabilities, policy, thresholds)
    groups = groups_of(stat, category, normal=normal, present=present)
    studies = Studies(arrived, stat, category, urgencies(probabilities, policy), groups)
    return _Arrivals(studies, work, film, arrived >= extent.warmup_days * DAY_MINUTES)


def groups_of(
    stat: Booleans, category: npt.NDArray[np.str_], *, normal: Booleans, present: Booleans
) -> dict[str, Booleans]:
    """Groups of studies in the figures: all, STAT, and of the others by category, finding (N, 11) and normal films."""
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
    return Estimate(float(np.mean(values)), float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values)))
