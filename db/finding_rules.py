"""The meaning of each finding's threshold: the view finding_rule."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True)
class FindingRule:
    """A finding's rule: its category, the probability from which it counts, and what share of films that flags."""

    finding: str
    category: str
    threshold: float | None
    flagged_share: float | None


def rules_of(source: "Session | Connection", *, policy_id: int, checkpoint_id: int) -> list[FindingRule]:
    """The findings by one version of the policy and one checkpoint, the heaviest first."""
    return _rules(source, "policy_id = :policy_id AND checkpoint_id = :checkpoint_id",
                  {"policy_id": policy_id, "checkpoint_id": checkpoint_id})  # fmt: skip


def rules_in_force(source: "Session | Connection") -> list[FindingRule]:
    """The same by the policy and the checkpoint that rank now; none in a database where nothing ranks yet."""
    return _rules(source, "in_force", {})


def shares_by_finding(rules: Iterable[FindingRule], category: str) -> dict[str, float | None]:
    """The findings of a category, each with the share of films that it flags."""
    return {rule.finding: rule.flagged_share for rule in rules if rule.category == category}


def _rules(source: "Session | Connection", where: str, values: Mapping[str, Any]) -> list[FindingRule]:
    names = ", ".join(FindingRule.__dataclass_fields__)
    statement = text(f"SELECT {names} FROM finding_rule WHERE {where} ORDER BY weight DESC, finding")  # noqa: S608
    return [FindingRule(*row) for row in source.execute(statement, values)]
