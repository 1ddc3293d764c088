"""The gate: a challenger beside the champion, on films of patients that neither learned from.

The gold set is every film of the test patients: the site's confirmed ones and, where both checkpoints were trained on
films split the same way (`split_stable`), the base's. A patient who was once in it never leaves it.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from db import gate as verdicts
from db import registry
from db.models import Checkpoint as CheckpointRow
from db.models import GateVerdict
from db.session import read_scope, session_scope
from training import gate
from training.checkpoint import Checkpoint, Header, load_checkpoint, read_header
from training.crossfit import ask
from training.findings import FINDINGS
from training.gate import Check, Rules
from training.manifest import UNKNOWN
from training.prepared import NotPrepared, Prepared, combine
from training.sampling import STABLE
from worker.context import Context, actor
from worker.ranking import policy
from worker.ranking.policy import CAPACITY_FINDING
from worker.ranking.priority import Policy
from worker.retraining import labels
from worker.retraining.devices import accelerator_of
from worker.scoring.decoding import DecodersGone
from worker.simulation.reading_room import SimulationError
from worker.simulation.simulate import EvaluatedCases, default_disciplines, simulate

JUDGING = "judging-"  # how the folders begin in which films lie while they are judged on
SEED = 2026
SIMULATED_DAYS, SIMULATED_SEEDS = 60, 4


class NothingToJudge(LookupError):
    """no confirmed film belongs to a test patient yet: confirm more"""


class SaysNothing(ValueError):
    """A checkpoint whose outputs are no numbers."""


CANNOT_JUDGE = (labels.NothingConfirmed, labels.Unread, DecodersGone, NothingToJudge, SaysNothing, NotPrepared)


@dataclass(frozen=True)
class Judged:
    """Every check of a challenger beside a champion, and the films they speak of."""

    champion_id: int
    checks: tuple[Check, ...]
    gold_digest: str
    films: int
    patients: int
    rules: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every check was."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """What failed, or that nothing did, in one line."""
        failed = [f"{check.name} {check.subject}".strip() for check in self.checks if not check.passed]
        return f"failed: {', '.join(failed)}" if failed else f"passed {len(self.checks)} checks"

    def summary(self) -> dict[str, Any]:
        """The macro figures, for the run's own row."""
        macro = [check for check in self.checks if check.name == "macro_auroc"]
        return {
            f"{check.films_from}_{who}": round(value, 4)
            for check in macro
            for who in ("champion", "challenger")
            if (value := getattr(check, who)) is not None
        }


def judge(
    context: Context,
    challenger: CheckpointRow,
    films: Sequence[Prepared],
    *,
    site_images: Collection[str],
    recent: Collection[str],
) -> Judged:
    """Judge a registered challenger on the test films of a prepared set that holds a split.

    films: the set at each size that the champion or the challenger reads. site_images: which images are the site's,
    `recent` those confirmed lately. Raises CheckpointError, NothingToJudge, SaysNothing, and NotPrepared when a size is
    missing.
    """
    with read_scope(context.engine) as session:
        row = registry.champion(session)
        assert row is not None  # noqa: S101  # a context with a challenger has had a champion
        rules_of_reading = policy.active(session, thresholds={}).policy
    champion, other = (
        load_checkpoint(context.file_of(each), expected_digest=each.digest) for each in (row, challenger)
    )
    settings, manifest = context.settings, films[0].manifest
    rules = Rules(**settings.gate.model_dump(exclude={"time_minutes"}))
    gold = gold_of(manifest, champion, other, site_images=site_images)
    if gold.empty:
        raise NothingToJudge(NothingToJudge.__doc__)
    accelerator = accelerator_of(settings.device)
    said, challenged = (_probabilities(each, films, gold, accelerator=accelerator) for each in (champion, other))
    compare = Comparison(manifest[manifest["split"] == "train"], rules, rules_of_reading)
    checks = compare.films(gold, said, challenged, films_from="gold")
    checks.append(compare.time_to_report(gold, said, challenged, most=settings.gate.time_minutes))
    lately = gold["image"].isin(recent).to_numpy()
    checks += compare.recent(gold[lately], said[lately], challenged[lately])
    return Judged(
        champion_id=row.id,
        checks=tuple(replace(check, number=number) for number, check in enumerate(checks, start=1)),
        gold_digest=hashlib.sha256(gold.to_csv(index=False).encode()).hexdigest(),
        films=len(gold),
        patients=int(gold["patient_id"].nunique()),
        rules=settings.gate.model_dump(),
    )


def _readable(films: Sequence[Prepared], checkpoint: Checkpoint) -> Prepared:
    """The films at the size that a checkpoint reads."""
    size = checkpoint.preprocessing.size
    for prepared in films:
        if prepared.preprocessing.size == size:
            return prepared
    raise NotPrepared(
        f"no films are prepared at {size} pixels, which a checkpoint reads: prepare the base at that size too, and "
        "judge by hand (`models judge`)"
    )


def gold_of(manifest: pd.DataFrame, *checkpoints: Checkpoint | Header, site_images: Collection[str]) -> pd.DataFrame:
    """The test films that none of the checkpoints can have learned from."""
    test = manifest[manifest["split"] == "test"]
    if all(checkpoint.training.get("split") == STABLE for checkpoint in checkpoints):
        return test
    return test[test["image"].isin(site_images)]


def _probabilities(
    checkpoint: Checkpoint, films: Sequence[Prepared], gold: pd.DataFrame, *, accelerator: str
) -> NDArray[np.float32]:
    """(N, F) of the gold films, as the worker would give them."""
    seen = replace(_readable(films, checkpoint), manifest=gold)
    said = checkpoint.calibration.probabilities(ask(checkpoint, seen, accelerator=accelerator))
    if not np.isfinite(said).all():
        raise SaysNothing(f"checkpoint {checkpoint.digest[:12]} gives no numbers: its training went astray")
    return said


@dataclass(frozen=True)
class Comparison:
    """What both are judged by: the films learned from, for the baselines; the gate's rules; the reading policy."""

    train: pd.DataFrame
    rules: Rules
    reading: Policy

    def films(
        self, films: pd.DataFrame, champion: NDArray[np.float32], challenger: NDArray[np.float32], *, films_from: str
    ) -> list[Check]:
        """The checks of training.gate; the same draws for the same films."""
        categories = {row.finding: row.category for row in self.reading.findings}
        return gate.judge(
            films, champion, challenger, train=self.train, rules=self.rules, films_from=films_from,
            categories=categories, rng=np.random.default_rng(SEED),
        )  # fmt: skip

    def recent(
        self, films: pd.DataFrame, champion: NDArray[np.float32], challenger: NDArray[np.float32]
    ) -> list[Check]:
        """The macro AUROC on the films confirmed lately: few, so that only a fall that is no chance fails."""
        if films.empty:
            return []
        checks = self.films(films, champion, challenger, films_from="recent")
        macro = next(check for check in checks if check.name == "macro_auroc")
        if macro.high is None:  # too few to say anything are so few that nothing is held against it
            return [replace(macro, bound=0.0, passed=True, note=f"{macro.note}, which passes on recent films")]
        note = "few films: only an interval wholly below the bound fails"
        return [replace(macro, bound=0.0, passed=macro.high >= 0, note=note)]

    def time_to_report(
        self, films: pd.DataFrame, champion: NDArray[np.float32], challenger: NDArray[np.float32], *, most: float
    ) -> Check:
        """Mean minutes to the report of films with a pneumothorax when either orders the list, on the same studies.

        The films are drawn from those that have a label for every finding; the room is `nightread simulate`'s own.
        """
        line = Check(
            number=0, films_from="gold", name="time_to_report", subject=CAPACITY_FINDING, champion=None,
            challenger=None, difference=None, low=None, high=None, bound=most, passed=False, note=None,
        )  # fmt: skip
        truth = films[list(FINDINGS)].to_numpy()
        whole = (truth != UNKNOWN).all(axis=1)
        if int((truth[whole, FINDINGS.index(CAPACITY_FINDING)] == 1).sum()) < self.rules.min_positives:
            return replace(line, note="undecided: too few films with a pneumothorax and every finding known")
        try:
            before, after = (self._minutes(truth[whole] == 1, said[whole]) for said in (champion, challenger))
        except SimulationError as error:
            return replace(line, note=f"undecided: {error}")
        grown = after - before
        return replace(line, champion=before, challenger=after, difference=grown, passed=grown <= most)

    def _minutes(self, present: NDArray[np.bool_], said: NDArray[np.float32]) -> float:
        discipline = next(one for one in default_disciplines(self.reading) if one.name.startswith("nightread, max"))
        rows = simulate(
            cases=EvaluatedCases(present, said.astype(np.float64)), policy=self.reading, disciplines=(discipline,),
            days=SIMULATED_DAYS, seeds=SIMULATED_SEEDS,
        )  # fmt: skip
        return next(row.mean.value for row in rows if row.group == CAPACITY_FINDING)


def record_verdict(
    session: Session, judged: Judged, challenger: CheckpointRow, *, training_run_id: int | None
) -> GateVerdict:
    """Keep the verdict, and move the challenger where it belongs: refused, or back among the challengers."""
    verdict = verdicts.record(
        session,
        [asdict(check) for check in judged.checks],
        challenger_id=challenger.id,
        champion_id=judged.champion_id,
        training_run_id=training_run_id,
        gold_digest=judged.gold_digest,
        films=judged.films,
        patients=judged.patients,
        rules=judged.rules,
        by=actor(),
    )
    standing = "challenger" if judged.passed else "refused"
    if challenger.state in ("challenger", "refused") and challenger.state != standing:
        registry.set_state(session, challenger, standing, by=actor(), reason=judged.reason)
    return verdict


def judge_by_hand(context: Context, challenger: CheckpointRow) -> Judged:
    """Judge a registered checkpoint and keep the verdict. Raises NothingConfirmed and what `judge` raises.

    Only the test patients' films are decoded: the others' labels are enough for the baselines.
    """
    with read_scope(context.engine) as session:
        both = [row for row in (registry.champion(session), challenger) if row is not None]
    sizes = sorted({read_header(context.file_of(row)).preprocessing.size for row in both})
    context.retraining_folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=JUDGING, dir=context.retraining_folder) as made:
        site = labels.kept(context, Path(made))
        films = [_test_films(context, site, Path(made) / str(size), size=size) for size in sizes]
        if any(not films[0].manifest["image"].equals(other.manifest["image"]) for other in films):
            raise NotPrepared("a film could be read for one of the checkpoints only: judge again")
        recent = site.recent(days=context.settings.retrain.recent_days)
        judged = judge(context, challenger, films, site_images=site.images, recent=recent)
    with session_scope(context.engine) as session:
        record_verdict(session, judged, session.get_one(CheckpointRow, challenger.id), training_run_id=None)
    return judged


def _test_films(context: Context, site: labels.Confirmed, folder: Path, *, size: int) -> Prepared:
    """The test films of the site and of the base at one size, and the labels of all others."""
    tested = site.manifest["split"] == "test"
    parts = [labels.inputs(context, site.manifest[tested], folder / "site", size=size)]
    learned = [site.manifest[~tested]]
    if (base := labels.base_films(context.settings, size=size)) is not None:
        parts.append(replace(base, manifest=base.manifest[base.manifest["split"] == "test"]))
        learned.append(base.manifest[base.manifest["split"] != "test"])
    return _with_labels(combine(parts, folder / "mixed"), pd.concat(learned))


def _with_labels(films: Prepared, others: pd.DataFrame) -> Prepared:
    """The films, and in their manifest also rows of which only the labels are wanted: they have no picture."""
    after = films.manifest.index.max() + 1 if len(films.manifest) else 0
    others = others.set_axis(range(after, after + len(others)))
    return replace(films, manifest=pd.concat([films.manifest, others]))
