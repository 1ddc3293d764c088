"""Two orders of the same studies, side by side: whom another checkpoint would move, how far, and by which findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf

from scipy import stats
from sqlalchemy.orm import Session

from db import shadow
from db.results import PriorityResult
from db.shadow import Listed
from training.findings import FINDINGS
from worker.context import Live
from worker.ranking.priority import BLIND, PARTLY_SCORED, Standing, reading_key

FAR = 10  # places; a study that moves further counts as moved
HEADS = (10, 50)  # the tops of the list that are compared
MOVERS = 10  # studies shown

Table = Mapping[int, tuple[float, ...]]  # study id -> probabilities, (11,) in FINDINGS order
Places = Mapping[int, PriorityResult]  # by study id


@dataclass(frozen=True)
class Pair:
    """One study as it stands and as it would stand; `probabilities` (before, after) where both are known."""

    study: Listed
    before: Standing
    after: Standing
    probabilities: tuple[tuple[float, ...], tuple[float, ...]] | None


@dataclass(frozen=True)
class Mover:
    """A study that changes its place."""

    study: str
    rank_before: int
    rank_after: int
    category_before: str
    category_after: str


@dataclass(frozen=True)
class Difference:
    """The study on whose finding the two differ most."""

    finding: str
    study: str
    before: float
    after: float


@dataclass(frozen=True)
class Comparison:
    """How two orders of one list differ. Correlations are of ranks, -1 to 1; None for fewer than two studies."""

    name: str
    studies: int
    seen_by_both: int
    moved: int  # by more than FAR places
    same_head: dict[int, int]  # of the first 10 (or 50) of either order, how many are the same
    spearman: float | None
    kendall: float | None
    leave_a: list[str]  # studies that are in category A before and not after
    enter_a: list[str]
    movers: list[Mover]  # the furthest first
    differences: list[Difference]


# ----------------------------------------------------------------------------------------------------- what is compared


def place_of(study: Listed, probabilities: tuple[float, ...], live: Live) -> PriorityResult:
    """Where a checkpoint would put a study by these probabilities; what is blind or partly scored stays so."""
    complete, blind = study.flag != PARTLY_SCORED, study.flag == BLIND
    return live.place(study.study_id, probabilities, complete=complete, blind=blind)


def pairs_by_night(session: Session, studies: Sequence[Listed], champion: Live, other: Live) -> dict[str, list[Pair]]:
    """Night -> the studies that both checkpoints have seen whole, each placed by either; the newest night first."""
    before, after = (_seen(session, studies, live.checkpoint_id) for live in (champion, other))
    nights: dict[str, list[Pair]] = {}
    for study in sorted(studies, key=lambda study: study.night, reverse=True):
        if study.study_id in before and study.study_id in after:
            both = before[study.study_id], after[study.study_id]
            standings = [_standing(place_of(study, p, live)) for p, live in zip(both, (champion, other), strict=True)]
            nights.setdefault(study.night, []).append(Pair(study, standings[0], standings[1], both))
    return nights


def places_to_be(session: Session, studies: Sequence[Listed], live: Live) -> dict[int, PriorityResult]:
    """Where a checkpoint would put those studies that another one ranked and that it has seen whole.

    Blind studies are not among them: no checkpoint moves those.
    """
    ranked = [study for study in studies if study.checkpoint_id not in (None, live.checkpoint_id)]
    scores = _seen(session, ranked, live.checkpoint_id)
    return {s.study_id: place_of(s, scores[s.study_id], live) for s in ranked if s.study_id in scores}


def pairs_of_list(session: Session, studies: Sequence[Listed], places: Places, live: Live) -> list[Pair]:
    """Every study of the list as it stands and as it will; one without a new place stays where it is."""
    moving = [study for study in studies if study.study_id in places]
    after, before = _seen(session, moving, live.checkpoint_id), dict[int, tuple[float, ...]]()
    for checkpoint_id in {study.checkpoint_id for study in moving if study.checkpoint_id is not None}:
        ranked = [study for study in moving if study.checkpoint_id == checkpoint_id]
        before |= _seen(session, ranked, checkpoint_id)
    return [_pair(study, places.get(study.study_id), before, after) for study in studies]


def _pair(study: Listed, place: PriorityResult | None, before: Table, after: Table) -> Pair:
    stands = Standing(study.category, study.urgency, study.flag)
    if place is None:
        return Pair(study, stands, stands, None)
    known = study.study_id in before and study.study_id in after
    both = (before[study.study_id], after[study.study_id]) if known else None
    return Pair(study, stands, _standing(place), both)


def _standing(place: PriorityResult) -> Standing:
    return Standing(place.category, place.urgency, place.flag)


def _seen(session: Session, studies: Sequence[Listed], checkpoint_id: int) -> dict[int, tuple[float, ...]]:
    return shadow.seen_whole(session, [study.study_id for study in studies], checkpoint_id=checkpoint_id)


# ------------------------------------------------------------------------------------------------------- how it differs


def compare(name: str, pairs: Sequence[Pair], *, now: datetime, max_wait_minutes: float = inf) -> Comparison:
    """The two orders that `pairs` make, in the reading order. Without a maximum wait nobody is overdue."""
    before, after = (_ranks(pairs, which, now=now, max_wait_minutes=max_wait_minutes) for which in ("before", "after"))
    far = sorted(range(len(pairs)), key=lambda i: (-abs(after[i] - before[i]), before[i]))
    spearman, kendall = correlations(before, after)
    movers = [
        Mover(p.study.name, before[i], after[i], p.before.category, p.after.category)
        for i, p in ((i, pairs[i]) for i in far[:MOVERS] if before[i] != after[i])
    ]
    return Comparison(
        name=name,
        studies=len(pairs),
        seen_by_both=sum(pair.probabilities is not None for pair in pairs),
        moved=sum(abs(b - a) > FAR for b, a in zip(before, after, strict=True)),
        same_head={n: sum(b <= n and a <= n for b, a in zip(before, after, strict=True)) for n in HEADS},
        spearman=spearman,
        kendall=kendall,
        leave_a=[p.study.name for p in pairs if p.before.category == "A" and p.after.category != "A"],
        enter_a=[p.study.name for p in pairs if p.before.category != "A" and p.after.category == "A"],
        movers=movers,
        differences=_differences(pairs),
    )


def _ranks(pairs: Sequence[Pair], which: str, *, now: datetime, max_wait_minutes: float) -> list[int]:
    """The rank of each pair, 1 first, in the order before or after."""
    keys = [
        reading_key(
            getattr(pair, which),
            stat=pair.study.stat,
            waited_minutes=(now - pair.study.received_at).total_seconds() / 60,
            study_id=pair.study.study_id,
            max_wait_minutes=max_wait_minutes,
        )
        for pair in pairs
    ]
    ranks = [0] * len(pairs)
    for rank, i in enumerate(sorted(range(len(pairs)), key=keys.__getitem__), start=1):
        ranks[i] = rank
    return ranks


def correlations(before: Sequence[int], after: Sequence[int]) -> tuple[float | None, float | None]:
    """Spearman's rho and Kendall's tau of two orders; None for fewer than two studies."""
    if len(before) < 2:
        return None, None
    return float(stats.spearmanr(before, after).statistic), float(stats.kendalltau(before, after).statistic)


def _differences(pairs: Sequence[Pair]) -> list[Difference]:
    """For each finding the study on which the two checkpoints differ most, the largest difference first."""
    known = [(pair.study.name, *pair.probabilities) for pair in pairs if pair.probabilities is not None]
    found = []
    for i, finding in enumerate(FINDINGS):
        if known:
            study, before, after = max(known, key=lambda row: abs(row[2][i] - row[1][i]))
            found.append(Difference(finding, study, before[i], after[i]))
    return sorted(found, key=lambda difference: -abs(difference.after - difference.before))
