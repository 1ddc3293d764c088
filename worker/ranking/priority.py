"""Probabilities -> urgency, category and a place in the reading order. Pure arithmetic: no database and no clock.

`docs/background/reading-order.md` says why the order is what it is and where each number comes from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.findings import FINDINGS

CATEGORIES = ("A", "B", "C", "D")
LONGEST_WAIT_MINUTES = 525_600  # a year; from some centuries on no database can subtract it from a moment
NOT_SCORED = "not_scored"  # no film of the study got probabilities
PARTLY_SCORED = "partly_scored"  # some films did, and the others may hold what the model did not see
SMALLEST_THRESHOLD = 1e-6  # the least that is divided by; stored probabilities have no more decimals
BLIND = "blind"  # it was scored, and drawn to be listed as though it were not


class PolicyError(ValueError):
    """A policy, or the numbers given to it, cannot decide an order."""


@dataclass(frozen=True)
class FindingPolicy:
    """One finding's rule: its category, its weight in the urgency, and the probability from which it counts.

    `threshold` None means: the one that the checkpoint brings. The codes are None where unknown, never guessed.
    """

    finding: str
    category: str
    weight: float
    threshold: float | None = None
    snomed_ct: str | None = None
    radlex: str | None = None


@dataclass(frozen=True)
class Policy:
    """One version of the reading policy; `findings` holds each of the eleven once, in any order."""

    version: int
    findings: tuple[FindingPolicy, ...]
    max_wait_minutes: float = 720.0
    category_a_share: float = 0.10

    @property
    def unscored_urgency(self) -> float:
        """Urgency of a study without probabilities: as though its heaviest category B finding were certain."""
        return max(row.weight for row in self.findings if row.category == "B")


DEFAULT_POLICY = Policy(
    version=1,
    findings=(
        FindingPolicy("Mass", "C", 0.06, snomed_ct="309529002", radlex="RID39056"),
        FindingPolicy("Consolidation", "B", 0.33, snomed_ct="95436008", radlex="RID43255"),
        FindingPolicy("Atelectasis", "C", 0.12, snomed_ct="46621007", radlex="RID28493"),
        FindingPolicy("Pneumothorax", "A", 1.00, snomed_ct="36118008", radlex="RID5352"),
        FindingPolicy("Edema", "B", 0.25, snomed_ct="19242006", radlex="RID4866"),
        FindingPolicy("Emphysema", "D", 0.03, snomed_ct="87433001", radlex="RID4799"),
        FindingPolicy("Fibrosis", "D", 0.02, snomed_ct="51615001"),
        FindingPolicy("Effusion", "B", 0.40, snomed_ct="60046008", radlex="RID34539"),
        FindingPolicy("Pleural_Thickening", "D", 0.02),
        FindingPolicy("Cardiomegaly", "C", 0.08, snomed_ct="8186001"),
        FindingPolicy("Hernia", "D", 0.02, snomed_ct="84089009"),
    ),
)


class Contribution(NamedTuple):
    """The part that one finding has in a study's urgency."""

    finding: str
    probability: float
    weight: float
    value: float  # weight x probability; the values of a study add up to its urgency


@dataclass(frozen=True)
class Standing:
    """One study's place by a policy; `flag` says that (some of) its films could not be scored."""

    category: str
    urgency: float
    flag: str | None = None


class ReadingKey(NamedTuple):
    """Sorts a worklist, the smallest key first. Each field decides only among equals in the fields before it."""

    not_stat: bool
    not_overdue: bool
    overdue_age: float  # minus the minutes waited when overdue, else 0: among the overdue the oldest goes first
    not_category_a: bool
    less_urgent: float  # minus the urgency
    age: float  # minus the minutes waited: the earlier arrival goes first
    study_id: int


RULES: Mapping[str, str] = {  # as the view study_place calls them (above_next_because), in the order of the key
    "stat": "a human marked it STAT",
    "overdue": "it has waited longer than the maximum wait",
    "waited_longer": "both are overdue and it has waited longer",
    "category_a": "it is in category A",
    "urgency": "its urgency is higher",
    "arrival": "it arrived earlier",
    "number": "they are equal in every rule, and its number is lower",
}


def validate(policy: Policy) -> list[str]:
    """Every reason why `policy` must not be activated, as sentences; an empty list means that it may be."""
    names = [row.finding for row in policy.findings]
    errors = [f"{name} is not a finding" for name in sorted(set(names) - set(FINDINGS))]
    errors += [f"{name} is missing" for name in FINDINGS if name not in names]
    errors += [f"{name} appears {names.count(name)} times" for name in FINDINGS if names.count(name) > 1]
    errors += [error for row in policy.findings for error in _row_errors(row)]
    errors += [f"{system} code {code} is used twice" for system, code in _repeated_codes(policy)]
    if not any(row.category == "B" for row in policy.findings):
        errors.append("no finding is in category B, so a study that cannot be scored has no place")
    if not (math.isfinite(policy.max_wait_minutes) and policy.max_wait_minutes > 0):
        errors.append(f"max_wait_minutes must be above 0, not {policy.max_wait_minutes}")
    elif policy.max_wait_minutes > LONGEST_WAIT_MINUTES:
        errors.append(f"max_wait_minutes must be at most a year ({LONGEST_WAIT_MINUTES})")
    if not 0 < policy.category_a_share < 1:
        errors.append(f"category_a_share must lie between 0 and 1, not {policy.category_a_share}")
    return errors


def _row_errors(row: FindingPolicy) -> list[str]:
    errors = []
    if row.category not in CATEGORIES:
        errors.append(f"{row.finding}: category must be one of A, B, C, D, not {row.category!r}")
    if not (math.isfinite(row.weight) and row.weight >= 0):
        errors.append(f"{row.finding}: weight must be finite and not negative, not {row.weight}")
    if row.threshold is not None and not 0 < row.threshold < 1:
        errors.append(f"{row.finding}: threshold must lie between 0 and 1, not {row.threshold}")
    return errors


def _repeated_codes(policy: Policy) -> list[tuple[str, str]]:
    codes = [("SNOMED CT", row.snomed_ct) for row in policy.findings if row.snomed_ct is not None]
    codes += [("RadLex", row.radlex) for row in policy.findings if row.radlex is not None]
    return sorted({code for code in codes if codes.count(code) > 1})


def _table(probabilities: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probabilities as float64 (N, 11) in FINDINGS order; PolicyError on another shape or a value outside [0, 1]."""
    table = np.asarray(probabilities, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(FINDINGS):
        raise PolicyError(f"expected probabilities of shape (N, {len(FINDINGS)}), got {table.shape}")
    if not bool(((table >= 0) & (table <= 1)).all()):  # NaN compares false, so it is caught here too
        raise PolicyError("a probability is not a number between 0 and 1")
    return table


def single(probabilities: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One study's probabilities, (11,) in FINDINGS order, as a table of one row."""
    return _table(np.asarray(probabilities)[np.newaxis])


def study_probabilities(films: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A study's (11,) probabilities: for each finding the maximum over its films (F, 11), F >= 1."""
    table = _table(films)
    if not len(table):
        raise PolicyError("a study without scored films has no probabilities")
    highest: npt.NDArray[np.float64] = table.max(axis=0)  # (11,)
    return highest


def urgencies(probabilities: npt.ArrayLike, policy: Policy) -> npt.NDArray[np.float64]:
    """Weighted sums of probabilities (N, 11) -> (N,), in [0, sum of weights].

    Added finding by finding in FINDINGS order: a matrix product may round a study differently alone and in a batch,
    and a study must have one urgency.
    """
    table, weights = _table(probabilities), {row.finding: row.weight for row in policy.findings}
    total = np.zeros(len(table))  # (N,)
    for index, finding in enumerate(FINDINGS):
        total += weights[finding] * table[:, index]
    return total


def contributions(probabilities: npt.ArrayLike, policy: Policy) -> list[Contribution]:
    """Each finding's part in the urgency of one study (11,), largest first; equal parts in FINDINGS order."""
    weights = {row.finding: row.weight for row in policy.findings}
    (row,) = single(probabilities)
    parts = [Contribution(f, float(p), weights[f], weights[f] * float(p)) for f, p in zip(FINDINGS, row, strict=True)]
    return sorted(parts, key=lambda part: -part.value)


def thresholds_in_force(policy: Policy, thresholds: Mapping[str, float]) -> dict[str, float]:
    """The probability from which each finding counts: the policy's own, else `thresholds` (the checkpoint's).

    Category D needs none. Any other finding without a threshold raises PolicyError: it would silently never count.
    """
    in_force: dict[str, float] = {}
    for row in policy.findings:
        threshold = row.threshold if row.threshold is not None else thresholds.get(row.finding)
        if threshold is not None:
            in_force[row.finding] = threshold
        elif row.category != "D":
            raise PolicyError(f"{row.finding} in category {row.category} has no threshold in policy or checkpoint")
    return in_force


def categories(probabilities: npt.ArrayLike, policy: Policy, thresholds: Mapping[str, float]) -> npt.NDArray[np.str_]:
    """The category of each study, (N, 11) -> (N,): the best among its findings that reach their threshold, else D."""
    table, in_force = _table(probabilities), thresholds_in_force(policy, thresholds)
    found = np.full(len(table), "D", dtype="<U1")
    for row in sorted(policy.findings, key=lambda row: row.category, reverse=True):  # A has the last word
        if row.finding in in_force:
            found[table[:, FINDINGS.index(row.finding)] >= in_force[row.finding]] = row.category
    return found


def category(probabilities: npt.ArrayLike, policy: Policy, thresholds: Mapping[str, float]) -> str:
    """The category of one study, (11,) in FINDINGS order."""
    return str(categories(single(probabilities), policy, thresholds)[0])


def deciding_findings(probabilities: npt.ArrayLike, policy: Policy, thresholds: Mapping[str, float]) -> list[str]:
    """Findings that put a study (11,) into its category, in FINDINGS order; empty when none reaches its threshold."""
    (row,) = single(probabilities)
    in_force = thresholds_in_force(policy, thresholds)
    found = category(row, policy, thresholds)
    in_category = {rule.finding for rule in policy.findings if rule.category == found}
    return [f for f, p in zip(FINDINGS, row, strict=True) if f in in_category and p >= in_force.get(f, math.inf)]


def top_findings(probabilities: npt.ArrayLike, policy: Policy, thresholds: Mapping[str, float]) -> npt.NDArray[np.intp]:
    """For each study (N, 11) the number of the finding to name first, (N,): the one that made its category.

    Of several, the one farthest above its threshold, as a ratio; where none made it, the one nearest to its threshold.
    Not the largest part of the urgency: that is nearly always the commonest of the heavy findings.
    """
    table, in_force = _table(probabilities), thresholds_in_force(policy, thresholds)
    category_of = {row.finding: row.category for row in policy.findings}
    cuts = np.array([in_force.get(finding, math.inf) for finding in FINDINGS])
    of_category = categories(table, policy, thresholds)[:, None] == [category_of[finding] for finding in FINDINGS]
    decides = of_category & (table >= cuts)  # (N, 11)
    named = decides | ~decides.any(axis=1, keepdims=True)
    numbers: npt.NDArray[np.intp] = np.where(named, table / np.maximum(cuts, SMALLEST_THRESHOLD), 0).argmax(axis=1)
    return numbers


def unscored(policy: Policy) -> Standing:
    """Where a study stands of which no film could be scored: category B, as if its heaviest finding were certain."""
    return Standing("B", policy.unscored_urgency, NOT_SCORED)


def standings(
    probabilities: npt.ArrayLike, policy: Policy, thresholds: Mapping[str, float], *, complete: Sequence[bool]
) -> list[Standing]:
    """Where the policy puts studies (N, 11). One that is not `complete` (some film in scope could not be scored) stands
    at what was seen or at what an unscored one gets, whichever is more."""
    table, least = _table(probabilities), unscored(policy)
    seen = zip(categories(table, policy, thresholds), urgencies(table, policy), complete, strict=True)
    return [
        Standing(str(category), float(urgency))
        if whole
        else Standing(min(str(category), least.category), max(float(urgency), least.urgency), PARTLY_SCORED)
        for category, urgency, whole in seen
    ]


def reading_key(
    place: Standing, *, stat: bool, waited_minutes: float, study_id: int, max_wait_minutes: float
) -> ReadingKey:
    """The sort key of one waiting study; `waited_minutes` since its arrival, by one clock for all studies compared.

    Human STAT, then overdue (oldest first), then category A, then urgency (highest first), then arrival, then the id.
    """
    overdue = waited_minutes >= max_wait_minutes
    return ReadingKey(
        not_stat=not stat,
        not_overdue=not overdue,
        overdue_age=-waited_minutes if overdue else 0.0,
        not_category_a=place.category != "A",
        less_urgent=-place.urgency,
        age=-waited_minutes,
        study_id=study_id,
    )


def threshold_for_share(scores: Sequence[float] | npt.NDArray[np.floating], share: float) -> float:
    """The score from which about `share` of `scores` (N,) are flagged (score >= threshold).

    It is one of the scores; among tied scores the one whose share lies nearest, and of two equally near the stricter.
    Raises PolicyError for no scores, a score that is no number, or a share outside (0, 1).
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise PolicyError("a threshold needs a list of at least one finite score")
    if not 0 < share < 1:
        raise PolicyError(f"share must lie between 0 and 1, not {share}")
    levels, counts = np.unique(values, return_counts=True)  # ascending
    flagged = counts[::-1].cumsum() / len(values)  # share flagged at each level, from the highest down
    return float(levels[::-1][np.abs(flagged - share).argmin()])
