"""Drift on the morning page: the last weeks of each finding as bars, and in words what has moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from db.models import DRIFT_LEVELS, Drift
from worker.monitoring.drift import ACT, QUIET, WARN, worst
from worker.report.charts import HEIGHT, WIDTH
from worker.setting_groups import DriftSettings

DAYS = 28
TOP = 2.0  # a chart's height, in heights of the line from which somebody must act; higher bars are cut
SLOT = WIDTH / DAYS
LEAST = 1.5  # height of a bar of nothing: that day was judged

NAMES = {
    "view": "Views (PA, AP)",
    "sex": "Sexes",
    "age": "Ages, in bands",
    "modality": "Modalities",
    "manufacturer": "Manufacturers",
    "skipped": "Studies skipped",
    "quarantined": "Studies quarantined",
    "view_unknown": "Films whose view nothing tells",
}
"""Kind of film or study -> its name on the page, in the order of the table."""


@dataclass(frozen=True)
class Weeks:
    """One finding's days: bars by level, as paths in a box of WIDTH x HEIGHT, and what the newest of them says."""

    finding: str
    bars: Mapping[str, str]
    psi: float
    ks: float
    level: str
    alarms: int  # days that were not quiet


@dataclass(frozen=True)
class Came:
    """How far one kind of film or study moved on the last day; None where there was nothing to compare with."""

    name: str
    moved: float | None
    is_rate: bool
    level: str


@dataclass(frozen=True)
class Drifted:
    """The block: the last day that was judged, and the weeks before it."""

    first: date
    last: date
    day: date
    films: int | None  # scored on that day; None: too few
    level: str
    moved: Mapping[str, Sequence[str]]  # level -> what reaches it on that day
    weeks: Sequence[Weeks]
    came: Sequence[Came]
    lines: Mapping[str, float]  # level -> height of its line in the charts


def first_day(last: date) -> date:
    """Where the weeks begin that end with this day."""
    return last - timedelta(days=DAYS - 1)


def drifted(rows: Sequence[Drift], *, last: date, order: Sequence[str], rules: DriftSettings) -> Drifted | None:
    """The block of figures of the weeks up to `last`, oldest first, findings in this order; None without figures."""
    if not rows:
        return None
    newest = [row for row in rows if row.day == rows[-1].day]
    moved: dict[str, dict[str, None]] = {level: {} for level in DRIFT_LEVELS}
    for row in newest:
        moved[row.level][_name(row.subject)] = None
    by_finding = {finding: [row for row in rows if row.subject == finding] for finding in order}
    of_kind = {row.subject: row for row in newest if row.subject in NAMES}
    return Drifted(
        first=first_day(last),
        last=last,
        day=date.fromisoformat(newest[0].day),
        films=next((row.films for row in newest if row.measure == "psi"), None),
        level=worst(row.level for row in newest),
        moved={level: list(names) for level, names in moved.items()},
        weeks=[_weeks(finding, some, last, rules) for finding, some in by_finding.items() if some],
        came=[_came(of_kind[subject]) for subject in NAMES if subject in of_kind],
        lines={WARN: _y(rules.psi_warn, rules), ACT: _y(rules.psi_act, rules)},
    )


def _name(subject: str) -> str:
    return NAMES.get(subject, subject.replace("_", " ")).lower()


def _weeks(finding: str, rows: Sequence[Drift], last: date, rules: DriftSettings) -> Weeks:
    """Bars as high as PSI, in the level that PSI and KS reach together."""
    days: dict[str, dict[str, Drift]] = {}
    for row in rows:
        days.setdefault(row.day, {})[row.measure] = row
    levels = {day: worst(figure.level for figure in figures.values()) for day, figures in days.items()}
    paths = dict.fromkeys(DRIFT_LEVELS, "")
    for day, figures in days.items():
        place = DAYS - 1 - (last - date.fromisoformat(day)).days
        top = min(_y(figures["psi"].value, rules), HEIGHT - LEAST)
        paths[levels[day]] += f"M{place * SLOT + 1:.1f} {HEIGHT:g}V{top:g}h{SLOT - 2:.1f}V{HEIGHT:g}Z"
    newest = days[rows[-1].day]
    alarms = sum(level != QUIET for level in levels.values())
    return Weeks(finding, paths, newest["psi"].value, newest["ks"].value, levels[rows[-1].day], alarms)


def _came(row: Drift) -> Came:
    moved = None if row.reference is None else row.value
    return Came(NAMES[row.subject], moved, row.measure == "rate", row.level)


def _y(psi: float, rules: DriftSettings) -> float:
    """The height of a bar's end in the box, whose top is 0."""
    return round(HEIGHT * (1 - min(1.0, psi / (TOP * rules.psi_act))), 1)
