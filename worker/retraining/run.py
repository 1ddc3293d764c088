"""Confirmed films in, a judged challenger out: labels -> inputs -> mix -> train -> judge -> register.

One retraining runs at a time; its row in training_run is the lock. Every stage leaves a file in the run's folder (or a
row), so a run that is resumed after a kill repeats the stage at hand and no other. What it reads is fixed when it
begins: the champion, the settings, the moment up to which opinions count.

    confirmed.csv .json   the films that were confirmed, with their labels and when (see labels.py)
    site/ mixed/          the films as inputs; removed at the end, for they are patients' pixels
    training/             the run, as `train fit` writes it
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import structlog
import torch
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from db import registry, training_runs
from db.base import database_now
from db.models import Checkpoint as CheckpointRow
from db.session import read_scope, session_scope
from db.training_runs import Held, Lost
from training.checkpoint import CheckpointError, Header, read_header
from training.errors import TrainingFailed
from training.fit import fit
from training.prepared import Prepared, combine, left_out
from training.provenance import code_commit
from training.sampling import SPLITS, STABLE
from training.settings import Settings as Recipe
from worker.checkpoints import promotion
from worker.context import Context, champion_of, process_name
from worker.retraining import labels
from worker.retraining.devices import accelerator_of
from worker.retraining.judging import JUDGING, Judged, NothingToJudge, gold_of, judge, record_verdict
from worker.retraining.labels import CannotJudge, NothingConfirmed
from worker.scoring.decoder_pool import DecodersGone
from worker.settings import Settings

log = structlog.get_logger()

LEASE_MINUTES = 2.0
RENEW_SECONDS = 20.0
RECIPE = ("learning_rate", "epochs", "batch_size", "seed")  # of the group `retrain`, beside parent and films
LOCAL = {"schedule", "threads", "nice", "promotes"}  # of the same group, no part of what is learned or how it is judged
KEPT_ASIDE_HOURS = 24.0  # files left by a judging by hand that was killed
OUTAGE = "database-away"  # a file in the run's folder: its process ended because the database was away


class Ended(Exception):
    """There is nothing to train; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """How a retraining ended; with a challenger there is a verdict on it."""

    run_id: int
    state: str
    reason: str | None = None
    judged: Judged | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        checks = [asdict(check) for check in self.judged.checks] if self.judged else []
        return {"training_run": self.run_id, "state": self.state, "reason": self.reason, "checks": checks}


@dataclass(frozen=True)
class Run:
    """A retraining at work."""

    context: Context
    held: Held
    parent: CheckpointRow
    folder: Path
    say: Callable[[str], None]

    @property
    def settings(self) -> Settings:
        return self.context.settings

    @cached_property
    def champion(self) -> Header:
        """The header of the checkpoint that the run starts from."""
        return read_header(self.context.file_of(self.parent))

    def stage(self, name: str, **facts: Any) -> None:
        """Say and note where the run is. Raises Lost."""
        self.say(name)
        log.info("retraining", training_run=self.held.run_id, stage=name)
        with session_scope(self.context.engine) as session:
            training_runs.note(session, self.held, stage=name, **facts)


def retrain(context: Context, *, cause: str = "hand", say: Callable[[str], None] = lambda _: None) -> Outcome | None:
    """Train a challenger and judge it, or resume the retraining whose process died.

    With the cause training_runs.RESUME nothing new is begun: None where there is nothing to resume.
    Raises training_runs.Busy while another process is at it, Lost when another took the run over, and what the database
    raises while it is away: then, and after a kill, the next call resumes.
    """
    run = _begin(context, cause=cause, say=say)
    if run is None:
        return None
    try:
        with ExitStack() as afterwards, _lease_kept(run):
            return _work_to_an_end(run, afterwards)
    except (OperationalError, InterfaceError):  # the database is away: the next call resumes
        (run.folder / OUTAGE).touch()
        raise


def _work_to_an_end(run: Run, afterwards: ExitStack) -> Outcome:
    """Do the work and record how it ended; `afterwards`, once nobody renews the lease, the folder is cleared."""
    try:
        outcome = _work(run)
    except (Ended, NothingConfirmed, NothingToJudge) as nothing:
        outcome = _end(run, "ended", str(nothing))
    except (CheckpointError, DecodersGone, TrainingFailed, CannotJudge) as wrong:
        outcome = _end(run, "failed", str(wrong))
    except OSError as error:
        outcome = _end(run, "failed", _of_files(error))
    except KeyboardInterrupt:
        with suppress(Lost, DBAPIError), session_scope(run.context.engine) as session:
            training_runs.let_go(session, run.held)
        raise
    except (Lost, OperationalError, InterfaceError):
        raise
    except Exception as error:  # of whatever library trains: the run's row must not say "running" for ever
        _end(run, "failed", f"internal error: {type(error).__name__}")
        afterwards.callback(_clear, run.folder)
        raise
    afterwards.callback(_clear, run.folder)
    return outcome


def _begin(context: Context, *, cause: str, say: Callable[[str], None]) -> Run | None:
    asked = context.settings.model_dump(mode="json", include={"retrain", "gate"}, exclude={"retrain": LOCAL})
    with session_scope(context.engine) as session:
        champion = champion_of(session)
        left = training_runs.running(session)
        outage = None if left is None else context.retraining_folder / f"run-{left.id}" / OUTAGE
        held = training_runs.take(
            session,
            training_runs.Wanted(cause, champion.id, settings=asked),
            holder=process_name(),
            lease_minutes=LEASE_MINUTES,
            max_attempts=context.settings.max_attempts,
            died=outage is None or not outage.exists(),
        )
        if held is not None:
            row = training_runs.by_id(session, held.run_id)
            parent = registry.by_id(session, row.parent_checkpoint_id or champion.id)
            # A resumed run keeps the settings it started with.
            context = Context(context.settings.changed(**row.settings))
    _clear_others(context.retraining_folder, f"run-{held.run_id}" if held else None)
    if held is None:
        return None
    folder = context.retraining_folder / f"run-{held.run_id}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTAGE).unlink(missing_ok=True)
    say(f"retraining {held.run_id}" + (", resumed" if held.resumed else ""))
    return Run(context, held, parent, folder, say)


@contextmanager
def _lease_kept(run: Run) -> Iterator[None]:
    """Renew the run's lease beside the work, which may sit in one call for hours; if it is lost, stop the work."""
    ended, lease_lost = threading.Event(), threading.Event()
    main_thread = threading.main_thread().ident or 0

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                with session_scope(run.context.engine) as session:
                    training_runs.note(session, run.held, lease_minutes=LEASE_MINUTES)
            except Lost:
                if not ended.wait(RENEW_SECONDS):  # else it has just been finished, and no longer runs
                    lease_lost.set()
                    signal.pthread_kill(main_thread, signal.SIGINT)
                return
            except DBAPIError:
                continue  # the database is away: nobody else can take the run either

    keeper = threading.Thread(target=renew, daemon=True)
    keeper.start()
    try:
        yield
    except KeyboardInterrupt as stopped:
        if lease_lost.is_set():
            raise Lost from stopped
        raise
    finally:
        ended.set()
        keeper.join()


def _work(run: Run) -> Outcome:
    torch.set_num_threads(run.settings.retrain.threads)
    run.stage("labels")
    films = labels.load_confirmed(run.context, run.folder)
    _new_enough(run, films, read=films.images)  # before they are read, and after: some may be gone
    run.stage("inputs")
    site = labels.inputs(run.context, films.manifest, run.folder / "site", size=run.champion.preprocessing.size)
    _new_enough(run, films, read=set(site.manifest["image"]))
    run.stage("mix")
    mixed, folder = _mixed(run, site)
    digest = _digest(folder)
    _teaches(run, mixed.manifest, films, digest)
    commit, counts = code_commit(), _counts(mixed.manifest, films) | {"unread": left_out(run.folder / "site")}
    run.stage("train", data_digest=digest, code_commit=commit, counts=counts)
    checkpoint = fit(mixed, _recipe(run), run.folder / "training", code_commit=commit, progress=False, split=STABLE)
    run.stage("judge")
    with session_scope(run.context.engine) as session:
        challenger = run.context.register(session, checkpoint)
        training_runs.note(session, run.held, checkpoint_id=challenger.id)
    recent = films.recent(days=run.settings.retrain.recent_days)
    judged = judge(run.context, challenger, [mixed], site_images=films.images, recent=recent)
    return _settle(run, challenger, judged)


# ------------------------------------------------------------------------------------------------------------ films


def _mixed(run: Run, site: Prepared) -> tuple[Prepared, Path]:
    """The films of the run, the site's and its share of the base's, and the folder that holds them."""
    base = labels.base_films(run.settings, size=site.preprocessing.size)
    if base is None:
        return site, run.folder / "site"
    rng = np.random.default_rng(run.settings.retrain.seed)
    ratio = run.settings.retrain.base_ratio
    parts = [_drawn(base.manifest, site.manifest, split, ratio=ratio, rng=rng) for split in SPLITS]
    drawn = replace(base, manifest=base.manifest.loc[np.sort(np.concatenate(parts))])
    folder = run.folder / "mixed"
    return combine((site, drawn), folder), folder


def _drawn(
    base: pd.DataFrame, site: pd.DataFrame, split: str, *, ratio: float, rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """The base's films of one split: all for the test, `ratio` per film of the site for training."""
    places = base.index[base["split"] == split].to_numpy()
    if split == "test":
        return places
    wanted = min(len(places), round(ratio * int((site["split"] == split).sum())))
    return rng.choice(places, size=wanted, replace=False)


def _new_enough(run: Run, films: labels.Confirmed, *, read: Collection[str]) -> None:
    """Raises Ended where hardly any of the films that can be read was confirmed since the champion was trained."""
    with read_scope(run.context.engine) as session:
        made = training_runs.of_checkpoint(session, run.parent.id)
    since = films.since(None if made is None else made.started_at)
    new, least = len(since.intersection(read)), run.settings.retrain.min_new_films
    if new < least:
        were = "film was" if new == 1 else "films were"
        raise Ended(f"{new} {were} confirmed since the champion was trained; {least} are needed")


def _teaches(run: Run, manifest: pd.DataFrame, films: labels.Confirmed, digest: str) -> None:
    """Raises Ended where these very films were learned from before, or too few of them hold a finding, and
    NothingToJudge where none could judge what is learned."""
    with read_scope(run.context.engine) as session:
        same = training_runs.same_before(session, run.held, data_digest=digest, recipe=RECIPE)
    if same is not None:
        raise Ended(
            f"retraining {same.id} learned the same from the same films: confirm more, change the recipe, or let its "
            "checkpoint be judged again (`nightread models judge`)"
        )
    if gold_of(manifest, run.champion, site_images=films.images).empty:  # what comes of it says no more than it
        raise NothingToJudge
    train, least = manifest[manifest["split"] == "train"], run.settings.retrain.min_positives
    if rare := [finding for finding in run.champion.findings if int((train[finding] == 1).sum()) < least]:
        raise Ended(f"fewer than {least} training films with {', '.join(rare)}: mix in a base, or confirm more")


def _counts(manifest: pd.DataFrame, films: labels.Confirmed) -> dict[str, Any]:
    site = manifest["image"].isin(films.images)
    groups = {split: manifest["split"] == split for split in SPLITS}
    return {
        "films": {split: int(here.sum()) for split, here in groups.items()},
        "of_the_site": {split: int((here & site).sum()) for split, here in groups.items()},
        "patients": {split: int(manifest.loc[here, "patient_id"].nunique()) for split, here in groups.items()},
    }


def _digest(folder: Path) -> str:
    """SHA-256 of everything that is learned from: the table and the inputs."""
    digest = hashlib.sha256()
    for path in sorted([folder / "manifest.csv", *folder.glob("images-*.npy")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _recipe(run: Run) -> Recipe:
    settings = run.settings
    return Recipe(
        network=run.champion.network,
        start=str(run.context.file_of(run.parent)),
        learning_rate=settings.retrain.learning_rate,
        epochs=settings.retrain.epochs,
        batch_size=settings.retrain.batch_size,
        seed=settings.retrain.seed,
        accelerator=accelerator_of(settings.device),
    )


# ---------------------------------------------------------------------------------------------------------- the end


def _settle(run: Run, challenger: CheckpointRow, judged: Judged) -> Outcome:
    """Verdict, registry and run in one transaction; a promotion that does not come about takes none of it back."""
    state, reason = ("refused" if judged.result == "failed" else judged.result), judged.reason
    metrics = _metrics(run, judged)
    with session_scope(run.context.engine) as session:
        row = registry.by_id(session, challenger.id)
        record_verdict(session, judged, row, training_run_id=run.held.run_id)
        if judged.result == "passed" and run.settings.retrain.promotes:
            reason += _promoted(run, session, row)
        training_runs.finish(session, run.held, state, reason=reason, metrics=metrics)
    log.info("retraining_ended", training_run=run.held.run_id, state=state)
    return Outcome(run.held.run_id, state, reason, judged)


def _promoted(run: Run, session: Session, challenger: CheckpointRow) -> str:
    """Make it the champion, or say why it is none: somebody may have promoted another meanwhile."""
    try:
        with session.begin_nested():
            promotion.promote(
                run.context, session, challenger, reason=f"passed the gate after retraining {run.held.run_id}"
            )
    except (promotion.NotPromoted, CheckpointError) as objection:
        return f"; not promoted: {objection}"
    return "; promoted"


def _metrics(run: Run, judged: Judged) -> dict[str, Any]:
    with read_scope(run.context.engine) as session:
        began = training_runs.by_id(session, run.held.run_id).started_at
        seconds = (database_now(session) - began).total_seconds()
    epochs = epochs_of(run.folder / "training" / "metrics.csv")
    return {"seconds": round(seconds), "epochs": epochs, "judged": judged.summary()}


def epochs_of(metrics: Path) -> list[dict[str, Any]]:
    """A run's figures, a row per epoch; the NaN of an AUROC without positives is None, for JSON knows no NaN."""
    rows: list[dict[str, Any]] = json.loads(pd.read_csv(metrics).to_json(orient="records", double_precision=5))
    return rows


def _end(run: Run, state: str, reason: str) -> Outcome:
    with session_scope(run.context.engine) as session:
        training_runs.finish(session, run.held, state, reason=reason)
    log.info("retraining_ended", training_run=run.held.run_id, state=state)
    return Outcome(run.held.run_id, state, reason)


def _of_files(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk of the state folder is full: free some of it, and start again"
    return f"a file could not be read or written ({error.strerror or type(error).__name__})"


def _clear_others(folders: Path, kept: str | None) -> None:
    """Clear all runs but the `kept` one (they ended without their process), and the files of a killed judging."""
    for folder in folders.glob("run-*"):
        if folder.name != kept:
            _clear(folder)
    for folder in folders.glob(f"{JUDGING}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > KEPT_ASIDE_HOURS * 3600:
                shutil.rmtree(folder)


def _clear(folder: Path) -> None:
    """Leave the figures; take away the inputs and everything that could be made again."""
    for name in ("site", "mixed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for left in ("confirmed.csv", "confirmed.json", "training/resume.ckpt", "training/checkpoint.safetensors"):
        (folder / left).unlink(missing_ok=True)


def in_background(nice: int) -> None:
    """Run at this niceness, in a session of its own: with autogroup, niceness counts only within a session."""
    if nice == 0:
        return
    with suppress(OSError):
        os.setsid()
    os.nice(nice)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))
