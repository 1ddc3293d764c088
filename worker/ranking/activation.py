"""A policy goes live: every study is placed again from its stored probabilities, and none is scored again."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import policies, registry, reranking
from db.base import database_now
from db.models import PolicyRow
from db.reranking import Placed
from db.results import PriorityResult, record_priorities
from db.session import session_scope
from worker.ranking import policy, priority
from worker.ranking.placement import placed_together, placed_unscored
from worker.ranking.priority import BLIND, Policy, PolicyError

BATCH = 5_000  # studies
STRAGGLER_HOURS = 1.0  # a worker looks for a new policy every few seconds; what it held before is placed by the old one

Thresholds = Mapping[int, Mapping[str, float]]  # by checkpoint id, then finding


def activate(
    engine: Engine, version: int, *, by: str, on_ranked: Callable[[int], None] = lambda _: None
) -> tuple[int, int]:
    """Make a version the one that ranks, and place every study by it; returns how many unread and read ones were.

    The change and all unread studies are one transaction: the list is wholly by the old policy or wholly by the new.
    The read ones follow batch by batch. Interrupted there, activating the same version again goes on where it stopped.
    Raises UnknownPolicy, or PolicyError with every reason why this version cannot rank (SQL may have written it).
    """
    with session_scope(engine) as session:
        row = policies.by_version(session, version)
        _check(session, row)
        if not row.active:
            policies.activate(session, row, by=by)
        unread = 0
        for count in _place_again(session, row, unread=True):
            unread += count
            on_ranked(count)
    return unread, _read_ones(engine, version, on_ranked)


def catch_up(engine: Engine) -> int:
    """Place the unread studies that a worker still placed by the policy before; returns how many.

    For the sweep: an hour after a change there is nothing left to look for, and one row is all that it reads.
    """
    with session_scope(engine) as session:
        row = policies.active(session)
        since = database_now(session) - timedelta(hours=STRAGGLER_HOURS)
        if row is None or row.activated_at is None or row.activated_at < since:
            return 0
        return sum(_place_again(session, row, unread=True))


def _read_ones(engine: Engine, version: int, on_ranked: Callable[[int], None]) -> int:
    total = 0
    while True:
        with session_scope(engine) as session:
            row = policies.by_version(session, version)
            count = next(_place_again(session, row, unread=False), 0) if row.active else 0
        if not count:
            return total
        total += count
        on_ranked(count)


def _check(session: Session, row: PolicyRow) -> None:
    rules = policy.from_rows(session, row)
    if errors := priority.validate(rules):
        raise PolicyError("; ".join(errors))
    champion = registry.champion(session)  # which may have placed no study yet, but will
    asked = {*reranking.ranking_checkpoints(session), *([champion.id] if champion else [])}
    for thresholds in _thresholds(session, asked).values():
        priority.thresholds_in_force(rules, thresholds)


def _thresholds(session: Session, checkpoint_ids: Iterable[int]) -> Thresholds:
    return {
        checkpoint_id: policy.checkpoint_thresholds(header)
        for checkpoint_id, header in reranking.checkpoint_headers(session, checkpoint_ids).items()
    }


def _place_again(session: Session, row: PolicyRow, *, unread: bool) -> Iterator[int]:
    """Place the studies of other policies by this one; yields the size of each batch once it is written."""
    last = 0
    while batch := reranking.locked_batch(session, policy_id=row.id, unread=unread, after=last, limit=BATCH):
        record_priorities(session, placed_by_stored(session, batch, row), policy_id=row.id)
        last = batch[-1].study_id
        yield len(batch)


def placed_by_stored(session: Session, batch: Sequence[Placed], row: PolicyRow) -> list[PriorityResult]:
    """`placed_by` a stored policy, with the thresholds of the checkpoints that scored these studies."""
    thresholds = _thresholds(session, (study.checkpoint_id for study in batch if study.checkpoint_id is not None))
    return placed_by(batch, policy.from_rows(session, row), thresholds)


def placed_by(batch: Iterable[Placed], rules: Policy, thresholds: Thresholds) -> list[PriorityResult]:
    """Where `rules` put these studies, in one table per checkpoint."""
    results: list[PriorityResult] = []
    scored: dict[int, list[tuple[int, tuple[float, ...], bool]]] = defaultdict(list)
    for study in batch:
        if study.checkpoint_id is None or study.probabilities is None or study.flag == BLIND:
            results.append(placed_unscored(study.study_id, rules, blind=study.flag == BLIND))
        else:
            scored[study.checkpoint_id].append((study.study_id, study.probabilities, study.flag is None))
    for checkpoint_id, studies in scored.items():
        results += placed_together(
            *zip(*studies, strict=True),
            rules=rules,
            thresholds=thresholds[checkpoint_id],
            checkpoint_id=checkpoint_id,
        )
    return results
