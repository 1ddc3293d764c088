"""The policy in the database and the policy that computes: one turned into the other."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from db import policies
from db.base import rounded
from db.models import PolicyRow
from training.checkpoint import Header, cuts_of
from training.findings import FINDINGS, column
from worker.ranking.priority import DEFAULT_POLICY, FindingPolicy, Policy, PolicyError, threshold_for_share, validate

THRESHOLD = "flag_10"  # the checkpoint's threshold that stands in where the policy has none of its own
CAPACITY_FINDING = "Pneumothorax"  # category A is a capacity: its threshold is kept with the policy


def checkpoint_thresholds(header: Mapping[str, Any]) -> dict[str, float]:
    """The thresholds of a checkpoint by its header in the registry, for findings to which the policy gives none."""
    return cuts_of(header.get("thresholds", {}), THRESHOLD)


@dataclass(frozen=True)
class ActivePolicy:
    """The policy that ranks now, with its row's id."""

    policy_id: int
    policy: Policy


def from_rows(session: Session, row: PolicyRow) -> Policy:
    """A stored version as the policy that computes."""
    return Policy(
        version=row.version,
        findings=tuple(
            FindingPolicy(r.finding, r.category, r.weight, r.threshold, r.snomed_ct, r.radlex)
            for r in policies.findings_of(session, row)
        ),
        max_wait_minutes=row.max_wait_minutes,
        category_a_share=row.category_a_share,
    )


def active(session: Session) -> ActivePolicy | None:
    """The active policy, or None in a new database."""
    row = policies.active(session)
    return None if row is None else ActivePolicy(row.id, from_rows(session, row))


def activate_default(session: Session, *, capacity: Mapping[str, float]) -> None:
    """Make the default policy the one that ranks, with category A's threshold from a checkpoint's `capacity`."""
    row = store(session, DEFAULT_POLICY, capacity=capacity, by="nightread", note="the default policy")
    policies.activate(session, row, by="nightread")


def store(session: Session, policy: Policy, *, capacity: Mapping[str, float], by: str, note: str) -> PolicyRow:
    """Keep `policy` as a new version, not yet active. Raises PolicyError with every reason why it can't be one."""
    if errors := validate(policy):
        raise PolicyError("; ".join(errors))
    rows = [asdict(finding) for finding in policy.findings]
    for row in rows:
        if row["finding"] == CAPACITY_FINDING and row["threshold"] is None:
            row["threshold"] = capacity.get(CAPACITY_FINDING)
    return policies.add(
        session,
        findings=rows,
        max_wait_minutes=round(policy.max_wait_minutes),
        category_a_share=policy.category_a_share,
        by=by,
        note=note,
    )


def as_promoted(policy: Policy) -> Policy:
    """`policy` without its own threshold for category A's finding: there a new champion's takes its place."""
    rows = (replace(row, threshold=None) if row.finding == CAPACITY_FINDING else row for row in policy.findings)
    return replace(policy, findings=tuple(rows))


@dataclass(frozen=True)
class Changes:
    """Changes to a policy: by finding, or for the whole. None leaves a value as it is."""

    weights: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, float | None] = field(default_factory=dict)  # None: the checkpoint's own
    max_wait_minutes: int | None = None
    category_a_share: float | None = None

    @property
    def any(self) -> bool:
        return any(value not in ({}, None) for value in vars(self).values())


def edited(policy: Policy, changes: Changes) -> Policy:
    """`policy` with the changes made. Raises PolicyError for a word that is no finding."""
    named = {*changes.weights, *changes.categories, *changes.thresholds}
    if unknown := sorted(named - set(FINDINGS)):
        raise PolicyError(f"no finding is called {', '.join(unknown)}; there are {', '.join(FINDINGS)}")
    return replace(
        policy,
        findings=tuple(_edited_row(row, changes) for row in policy.findings),
        max_wait_minutes=changes.max_wait_minutes if changes.max_wait_minutes is not None else policy.max_wait_minutes,
        category_a_share=changes.category_a_share if changes.category_a_share is not None else policy.category_a_share,
    )


def _edited_row(row: FindingPolicy, changes: Changes) -> FindingPolicy:
    return replace(
        row,
        weight=changes.weights.get(row.finding, row.weight),
        category=changes.categories.get(row.finding, row.category),
        threshold=changes.thresholds.get(row.finding, row.threshold),
    )


def capacity_finding(policy: Policy) -> str:
    """The finding whose threshold decides how many films are category A. Raises PolicyError when there are several."""
    found = [row.finding for row in policy.findings if row.category == "A"]
    if len(found) != 1:
        raise PolicyError(f"{len(found)} findings are in category A: name the one whose threshold is to be computed")
    return found[0]


def reference_films(header: Header) -> str:
    """How many films the quantiles in a header are of, and what films: a crossfitted network had none to set apart."""
    count, films = header.reference["films"], header.training.get("films", {})
    if films.get("validation"):
        return f"the checkpoint's {count} validation films"
    return f"the {count} films " + (
        "that the checkpoint learned from" if films.get("train") else "of the checkpoint's reference"
    )


def threshold_from_reference(reference: Mapping[str, Any], *, finding: str, share: float) -> float:
    """The probability that `share` of a checkpoint's reference films reach, from the quantiles in its header.

    Raises PolicyError when the header has none.
    """
    quantiles = reference.get("probabilities", {}).get(finding)
    if not quantiles:
        raise PolicyError(f"the checkpoint's header has no reference distribution of {finding}")
    return rounded(np.interp(1 - share, reference["levels"], quantiles))


def threshold_from_site(
    session: Session, *, finding: str, share: float, checkpoint_id: int, weeks: float, at_least: int
) -> tuple[float, int]:
    """The probability that `share` of the site's own films of the last weeks reached, and how many films those were.

    Raises PolicyError when they are fewer than `at_least`: the tail of a small sample is luck.
    """
    scores = policies.recent_probabilities(
        session, finding_column=column(finding), checkpoint_id=checkpoint_id, weeks=weeks
    )
    if len(scores) < at_least:
        raise PolicyError(f"the live checkpoint scored {len(scores)} films in {weeks:g} weeks; {at_least} are needed")
    return rounded(threshold_for_share(scores, share)), len(scores)
