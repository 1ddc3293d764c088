"""The policy in the database and the policy that computes: one turned into the other."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy.orm import Session

from db import policies
from db.models import PolicyRow
from worker.priority import DEFAULT_POLICY, FindingPolicy, Policy, validate

THRESHOLD = "flag_10"  # the checkpoint's threshold that stands in where the policy has none of its own
CAPACITY_FINDING = "Pneumothorax"  # category A is a capacity: its threshold is kept with the policy


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


def active(session: Session, *, thresholds: Mapping[str, float]) -> ActivePolicy:
    """The active policy; a new database gets the default one, with category A's threshold from the checkpoint."""
    row = policies.active(session)
    if row is None:
        row = store(session, DEFAULT_POLICY, capacity=thresholds, by="nightread", note="the default policy")
        policies.activate(session, row, by="nightread")
    return ActivePolicy(row.id, from_rows(session, row))


def store(session: Session, policy: Policy, *, capacity: Mapping[str, float], by: str, note: str) -> PolicyRow:
    """Keep `policy` as a new version, not yet active. Raises ValueError with every reason why it can't be one."""
    if errors := validate(policy):
        raise ValueError("; ".join(errors))
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
