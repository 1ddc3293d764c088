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
from db.base import DocumentedError, short
from db.models import Checkpoint as CheckpointRow
from db.models import CheckpointState, GateVerdict
from db.session import read_scope, session_scope
from training import gate
from training.checkpoint import Checkpoint, Header, load_checkpoint, read_header
from training.crossfit import predict_logits
from training.findings import FINDINGS
from training.gate import Check, Result, Rules
from training.manifest import UNKNOWN
from training.metrics import patient_draws
from training.prepared import NotPrepared, Prepared, combine
from training.sampling import STABLE
from worker.context import Context, active_policy, actor, champion_of
from worker.ranking.policy import CAPACITY_FINDING
from worker.ranking.priority import Policy
from worker.retraining import labels
from worker.retraining.devices import accelerator_of
from worker.retraining.labels import CannotJudge
from worker.simulation.reading_room import SimulationError
from worker.simulation.simulate import EvaluatedCases, Extent, TimesToReport, default_disciplines, times_to_report

JUDGING = "judging-"  # how the folders begin in which films lie while they are judged on
SEED = 2026
SIMULATED = Extent(days=60, seeds=4)


class NothingToJudge(DocumentedError, CannotJudge):
    """no confirmed film belongs to a test patient yet: confirm more"""


class SaysNothing(CannotJudge):
    """The checkpoint's outputs are no numbers."""


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
    def result(self) -> Result:
        """Of the whole verdict."""
        return gate.overall(check.result for check in self.checks)

    @property
    def reason(self) -> str:
        """The checks that failed, or else are undecided, or that there are none, in one line."""
        names = [f"{check.name} {check.subject}".strip() for check in self.checks if check.result == self.result]
        return f"passed {len(names)} checks" if self.result == "passed" else f"{self.result}: {', '.join(names)}"

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
        row, rules_of_reading = champion_of(session), active_policy(session).policy
    champion, other = (
        load_checkpoint(context.file_of(each), expected_digest=each.digest) for each in (row, challenger)
    )
    settings, manifest = context.settings, films[0].manifest
    rules = Rules(**settings.gate.model_dump(exclude={"time_minutes"}))
    gold = gold_of(manifest, champion, other, site_images=site_images)
    if gold.empty:
        raise NothingToJudge
    accelerator = accelerator_of(settings.device)
    champion_probabilities, challenger_probabilities = (
        _probabilities(each, films, gold, accelerator=accelerator) for each in (champion, other)
    )
    compare = Comparison(manifest[manifest["split"] == "train"], rules, rules_of_reading)
    both = champion_probabilities, challenger_probabilities
    checks = compare.films(gold, *both, films_from="gold")
    checks.append(compare.time_to_report(gold, *both, most=settings.gate.time_minutes))
    lately = gold["image"].isin(recent).to_numpy()
    checks += compare.recent(gold[lately], champion_probabilities[lately], challenger_probabilities[lately])
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
    gold_films = replace(_readable(films, checkpoint), manifest=gold)
    probabilities = checkpoint.calibration.probabilities(
        predict_logits(checkpoint, gold_films, accelerator=accelerator)
    )
    if not np.isfinite(probabilities).all():
        raise SaysNothing(f"checkpoint {short(checkpoint.digest)} gives no numbers: its training went astray")
    return probabilities


@dataclass(frozen=True)
class Comparison:
    """Basis of a judgement: the films learned from, for the baselines; the gate's rules; the reading policy."""

    train: pd.DataFrame
    rules: Rules
    reading: Policy

    def films(
        self, films: pd.DataFrame, champion: NDArray[np.float32], challenger: NDArray[np.float32], *, films_from: str
    ) -> list[Check]:
        """The checks of training.gate; the same draws for the same films."""
        categories = {row.finding: row.category for row in self.reading.findings}
        judged, rng = gate.JudgedFilms(films, films_from, self.train), np.random.default_rng(SEED)
        return gate.judge(judged, champion, challenger, rules=self.rules, categories=categories, rng=rng)

    def recent(
        self, films: pd.DataFrame, champion: NDArray[np.float32], challenger: NDArray[np.float32]
    ) -> list[Check]:
        """The macro AUROC on the films confirmed lately: few, so that only a fall that is no chance fails."""
        if films.empty:
            return []
        checks = self.films(films, champion, challenger, films_from="recent")
        macro = next(check for check in checks if check.name == "macro_auroc")
        if macro.high is None:  # too few to say anything are so few that nothing is held against it
            note = f"{macro.note}, which passes on recent films"
            return [replace(macro, bound=0.0, result="passed", positives_needed=None, note=note)]
        result: Result = "passed" if macro.high >= 0 else "failed"
        note = "few films: only an interval wholly below the bound fails"
        return [replace(macro, bound=0.0, result=result, positives_needed=None, note=note)]

    def time_to_report(
        self, films: pd.DataFrame, champion: NDArray[np.float32], challenger: NDArray[np.float32], *, most: float
    ) -> Check:
        """Mean minutes to the report of films with a pneumothorax when either orders the list, on the same studies.

        The films are drawn from those that have a label for every finding; the room is `nightread simulate`'s own. The
        interval comes from drawing patients: each brings the times of all simulated studies of theirs.
        """
        line = Check(0, "gold", "time_to_report", CAPACITY_FINDING, bound=most)
        truth = films[list(FINDINGS)].to_numpy()
        whole = (truth != UNKNOWN).all(axis=1)
        if int((truth[whole, FINDINGS.index(CAPACITY_FINDING)] == 1).sum()) < self.rules.min_positives:
            note = "undecided: too few films with a pneumothorax and every finding known"
            return replace(line, positives_needed=self.rules.min_positives, note=note)
        try:
            before, after = (self._minutes(truth[whole] == 1, each[whole]) for each in (champion, challenger))
        except SimulationError as error:
            return replace(line, note=f"undecided: {error}")
        ones = np.ones(len(before.film))
        studies, *totals = (
            np.bincount(before.film, each, minlength=int(whole.sum())).astype(np.float64)
            for each in (ones, before.minutes, after.minutes)
        )
        rng, replicates = np.random.default_rng(SEED), self.rules.replicates
        draws = list(patient_draws(films["patient_id"][whole], rng=rng, replicates=replicates))
        return gate.judge_mean(line, *totals, counts=studies, bound=most, draws=draws, rules=self.rules)

    def _minutes(self, present: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> TimesToReport:
        return times_to_report(
            CAPACITY_FINDING, cases=EvaluatedCases(present, probabilities.astype(np.float64)), policy=self.reading,
            discipline=default_disciplines(self.reading)[-1],  # the policy's own order
            extent=SIMULATED,
        )  # fmt: skip


def record_verdict(
    session: Session, judged: Judged, challenger: CheckpointRow, *, training_run_id: int | None
) -> GateVerdict:
    """Keep the verdict, and move the challenger where it belongs: refused, or back among the challengers."""
    verdict = GateVerdict(
        challenger_id=challenger.id,
        champion_id=judged.champion_id,
        training_run_id=training_run_id,
        result=judged.result,
        gold_digest=judged.gold_digest,
        films=judged.films,
        patients=judged.patients,
        rules=judged.rules,
        judged_by=actor(),
    )
    verdicts.record(session, verdict, map(asdict, judged.checks))
    standing: CheckpointState = "refused" if judged.result == "failed" else "challenger"
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
        site = labels.load_confirmed(context, Path(made))
        films = [_test_films(context, site, Path(made) / str(size), size=size) for size in sizes]
        if any(not films[0].manifest["image"].equals(other.manifest["image"]) for other in films):
            raise NotPrepared("a film could be read for one of the checkpoints only: judge again")
        recent = site.recent(days=context.settings.retrain.recent_days)
        judged = judge(context, challenger, films, site_images=site.images, recent=recent)
    with session_scope(context.engine) as session:
        record_verdict(session, judged, registry.by_id(session, challenger.id), training_run_id=None)
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
