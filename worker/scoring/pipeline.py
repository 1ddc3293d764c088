"""The story of a night: claim -> read -> predict -> rank -> record, until nothing waits.

Studies are claimed a little ahead of the network, so that the decoders always have films; films are predicted in full
batches whatever study they belong to; a study is recorded in one transaction as soon as its last film is through.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import astuple, dataclass, field, replace
from typing import Protocol

import numpy as np
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import RetryCallState, retry, retry_if_exception_type, stop_after_delay, wait_exponential

from db import arrivals, ledger, results, runs
from db.base import rounded
from db.ledger import ClaimedFilm, ClaimedStudy, Outcome
from db.models import SettledState
from db.results import FilmResult, PriorityResult
from db.session import read_scope, session_scope
from training.checkpoint import load_checkpoint
from worker.context import Context, Live, process_name
from worker.monitoring.prometheus import WorkMetrics
from worker.ranking import priority
from worker.ranking.placement import placed
from worker.reasons import sentence
from worker.scoring.decoder_pool import DecoderPool, PendingFilm
from worker.scoring.decoding import DecodeOptions, Failure, NetworkInput
from worker.scoring.inference import Classifier, DeviceGone, choose_device, share_processor
from worker.scoring.leases import end_leases
from worker.scoring.shadow import Seen, Shadow, open_shadow

log = structlog.get_logger()

A_RESTART = stop_after_delay(45)


def _give_up(call: RetryCallState) -> bool:
    """After a while, and at once where the worker of this call (its first argument) was told to stop."""
    stoppable: Stoppable = call.args[0]
    return A_RESTART(call) or stoppable.should_stop()


class Stoppable(Protocol):
    """A scorer, or what is in flight in one."""

    @property
    def should_stop(self) -> Callable[[], bool]: ...


# A database that restarts costs seconds; one that stays away ends the pass, and the leases run out.
patiently = retry(
    retry=retry_if_exception_type(OperationalError),
    wait=wait_exponential(multiplier=0.5, max=5),
    stop=_give_up,
    reraise=True,
)


@dataclass
class Tally:
    """Counts of one pass."""

    studies: int = 0
    scored: int = 0
    skipped: int = 0
    quarantined: int = 0
    put_off: int = 0  # studies whose files could not be reached; they wait
    films: int = 0
    copies_tried: int = 0  # files rejected at intake, which took the place of films that failed

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(own + others for own, others in zip(astuple(self), astuple(other), strict=True)))

    def settle(self, state: SettledState, *, films: int) -> None:
        """Count a study and its scored films."""
        self.studies += 1
        self.films += films
        match state:
            case "scored":
                self.scored += 1
            case "skipped":
                self.skipped += 1
            case "quarantined":
                self.quarantined += 1


@dataclass
class StudyInFlight:
    """A claimed study and what is known of its films so far."""

    claimed: ClaimedStudy
    inputs: dict[int, NetworkInput] = field(default_factory=dict)  # by instance id
    failures: dict[int, Failure] = field(default_factory=dict)
    probabilities: dict[int, tuple[float, ...]] = field(default_factory=dict)
    by_shadow: dict[int, tuple[float, ...]] = field(default_factory=dict)  # where it looked and did not fail

    @property
    def complete(self) -> bool:
        return len(self.probabilities) + len(self.failures) == len(self.claimed.films)


@dataclass
class Scorer:
    """One worker process: a checkpoint on a device, decoders, and a name to hold leases under."""

    context: Context
    live: Live
    classifier: Classifier
    shadow: Shadow
    reader: DecoderPool
    metrics: WorkMetrics
    worker: str
    should_stop: Callable[[], bool]

    @property
    def engine(self) -> Engine:
        return self.context.engine

    @property
    def films_ahead(self) -> int:
        """Films to keep claimed: two batches for the network and one in each decoder."""
        return 2 * self.classifier.batch_size + self.context.settings.decoders


@contextmanager
def open_scorer(
    context: Context, *, metrics: WorkMetrics | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Scorer]:
    """Load the live checkpoint and the shadow onto the device and start the decoders; all end with the block."""
    live, metrics = context.live(), metrics or WorkMetrics()
    if live.header.purpose != context.purpose:
        log.warning("checkpoint_not_for_real_films", digest=live.short, purpose=live.header.purpose)
    worker = process_name()
    with open_network(context, live) as (classifier, reader):
        shadow = open_shadow(context, live, classifier, metrics=metrics)
        yield Scorer(context, live, classifier, shadow, reader, metrics, worker, should_stop)


@contextmanager
def open_network(context: Context, live: Live) -> Iterator[tuple[Classifier, DecoderPool]]:
    """A checkpoint's network on the device, and decoders that make the inputs it reads.

    Raises TooLittleMemory where these could decode no film.
    """
    settings, options = context.settings, DecodeOptions.of(context, live.header.preprocessing)
    with DecoderPool(options, decoders=settings.decoders) as reader:
        require_working = reader.begin_proof()  # while the network is loaded
        checkpoint, device = load_checkpoint(live.path, expected_digest=live.digest), choose_device(settings.device)
        if device.type == "cpu":
            share_processor()
        classifier = Classifier(checkpoint, device=device, batch_size=settings.batch_size)
        require_working()
        yield classifier, reader


def with_shadow(scorer: Scorer) -> Scorer:
    """The same scorer with what is in shadow now; only between two studies, or it would mix two checkpoints in one."""
    return replace(scorer, shadow=open_shadow(scorer.context, scorer.live, scorer.classifier, metrics=scorer.metrics))


def score_waiting(
    scorer: Scorer,
    *,
    kind: str,
    first: int | None = None,
    may_claim: Callable[[], bool] = lambda: True,
    on_settled: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Score what waits, the study `first` before the others, until nothing more can be claimed or the scorer must stop.

    While `may_claim()` is false what is in flight is finished and nothing is added (a new checkpoint is live). Whatever
    ends this (a stop, Ctrl-C, an error) gives back what is in flight; what was recorded stays.
    """
    tally, in_flight = Tally(), InFlight(scorer)
    run_id = None
    try:
        while True:
            if scorer.should_stop():
                return tally
            if may_claim():
                in_flight.claim(first)
            first = None
            if not in_flight.studies:
                scorer.metrics.progressed()
                return tally
            run_id = run_id or _open_run(scorer, kind)
            in_flight.predict(in_flight.next_batch())
            finished = in_flight.take_finished()
            if finished:
                record(scorer, finished, run_id=run_id, tally=tally)
                on_settled(len(finished))
            scorer.metrics.progressed()
    finally:
        in_flight.give_back()
        if run_id is not None and kind == "score":
            with session_scope(scorer.engine) as session:
                runs.close(session, run_id)


def score_until_done(scorer: Scorer, *, on_settled: Callable[[int], None] = lambda _: None) -> Tally:
    """`score_waiting` until no study is held by anyone: what a process that died held comes free within its lease."""
    total = score_waiting(scorer, kind="score", on_settled=on_settled)
    while _any_held(scorer.engine):
        time.sleep(1)
        total += score_waiting(scorer, kind="score", on_settled=on_settled)
    return total


def _any_held(engine: Engine) -> bool:
    with read_scope(engine) as session:
        return ledger.any_held(session)


def _open_run(scorer: Scorer, kind: str) -> int:
    settings = scorer.context.settings.model_dump(
        mode="json", include={"batch_size", "decoders", "device", "modalities", "allow_secondary_capture"}
    )
    with session_scope(scorer.engine) as session:
        return runs.open_run(
            session,
            kind=kind,
            checkpoint_id=scorer.live.checkpoint_id,
            policy_id=scorer.live.policy_id,
            settings=settings,
            shared=kind == "night",
        )


class InFlight:
    """The studies that this worker holds, and their films on the way to the network."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.studies: dict[int, StudyInFlight] = {}
        self._reading: dict[int, tuple[int, PendingFilm]] = {}  # instance id -> (study id, reading)
        # (study id, instance id, network input), waiting for a batch
        self._ready: list[tuple[int, int, NetworkInput]] = []
        self._renewed = time.monotonic()

    @property
    def should_stop(self) -> Callable[[], bool]:
        return self.scorer.should_stop

    def claim(self, first: int | None) -> None:
        """Claim studies until enough films are on their way, and begin to read them."""
        missing = self._room()
        if missing <= 0 or any(study.claimed.suspect for study in self.studies.values()):
            return
        claimed = self._claimed(missing, first)
        # All of them before the first is submitted: they may be given back.
        self.studies |= {study.study_id: StudyInFlight(study) for study in claimed}
        for study in claimed:
            for film in study.films:
                reading = self.scorer.reader.submit(film.path, film.sop_instance_uid)
                self._reading[film.instance_id] = (study.study_id, reading)

    def _room(self) -> int:
        """How many more films to claim. Those at their second try do not count: they may take long."""
        reading = sum(not pending.second for _, pending in self._reading.values())
        return self.scorer.films_ahead - reading - len(self._ready)

    @patiently
    def _claimed(self, studies: int, first: int | None) -> list[ClaimedStudy]:
        """The ledger's claim. With nothing in flight it first ends dead workers' leases: a busy queue's sweep may be
        late, and `nightread score` has none."""
        settings = self.scorer.context.settings
        with self._stage("claim"), session_scope(self.scorer.engine) as session:
            if not self.studies:
                end_leases(session, settings)
            return ledger.claim(
                session,
                worker=self.scorer.worker,
                studies=studies,
                lease_minutes=settings.lease_minutes,
                first=first,
                alone=not self.studies,
            )

    @patiently
    def _keep_leases(self) -> None:
        """Now and then: renew our leases and end those of dead workers."""
        settings = self.scorer.context.settings
        if time.monotonic() - self._renewed < settings.lease_minutes * 60 / 4:
            return
        held = [study.claimed for study in self.studies.values()]
        with session_scope(self.scorer.engine) as session:
            ledger.renew(session, held, worker=self.scorer.worker, lease_minutes=settings.lease_minutes)
            end_leases(session, settings)
        self._renewed = time.monotonic()

    def next_batch(self) -> list[tuple[int, int, NetworkInput]]:
        """The next films for the network: a full batch, or fewer when the next film takes longer than a straggler may.

        A pass costs the same however few films are in it, so slow films are worth waiting for, one after the other.
        """
        size, patience = self.scorer.classifier.batch_size, self.scorer.context.settings.straggler_seconds
        with self._stage("read"):
            self._keep_leases()
            while self._collect() < size and self._reading and not self.scorer.should_stop():
                pending = [reading.future for _, reading in self._reading.values()]
                if not wait(pending, timeout=patience, return_when=FIRST_COMPLETED).done:
                    break
                self._keep_leases()
        batch, self._ready = self._ready[:size], self._ready[size:]
        return batch

    def _collect(self) -> int:
        """Move what the decoders have finished to where it belongs; returns how many films are ready."""
        for instance_id, (study_id, reading) in list(self._reading.items()):
            outcome = reading.result()
            if outcome is None:
                continue
            del self._reading[instance_id]
            study = self.studies[study_id]
            if isinstance(outcome, Failure):
                study.failures[instance_id] = outcome
            else:
                study.inputs[instance_id] = outcome
                self._ready.append((study_id, instance_id, outcome))
        return len(self._ready)

    def predict(self, batch: Sequence[tuple[int, int, NetworkInput]]) -> None:
        """Run the network on a batch; one that raises is split until the culprit stands alone.

        Raises DeviceGone where a film that stands alone fails and a black network input does too.
        """
        if not batch:
            return
        classifier, shadow = self.scorer.classifier, self.scorer.shadow
        size, inputs = classifier.batch_size, np.stack([network_input.image for _, _, network_input in batch])
        try:
            with self._stage("predict"):
                probabilities = classifier.predict(inputs)
        except RuntimeError as error:
            if len(batch) > 1:
                self.predict(batch[: len(batch) // 2])
                self.predict(batch[len(batch) // 2 :])
            else:
                self._fail_single(batch[0], error)
            return
        if classifier.batch_size < size and shadow.give_up("shadow_gave_way"):
            classifier.batch_size = size
        self.scorer.metrics.predicted(len(batch), batch_size=classifier.batch_size)
        by_shadow = shadow.look(inputs)
        for i, (study_id, instance_id, _) in enumerate(batch):
            study = self.studies[study_id]
            study.probabilities[instance_id] = tuple(map(rounded, probabilities[i]))
            if by_shadow is not None:
                study.by_shadow[instance_id] = tuple(map(rounded, by_shadow[i]))

    def _fail_single(self, film: tuple[int, int, NetworkInput], error: RuntimeError) -> None:
        """The network raised on one film alone: the shadow gives way, the device is gone, or it is the film's fault."""
        if self.scorer.shadow.give_up("shadow_gave_way"):  # the memory that it took may be what lacked
            self.predict([film])
            return
        if not self.scorer.classifier.still_works():
            raise DeviceGone("the device no longer computes: start the worker again, and see its log") from error
        study_id, instance_id, _ = film
        self.studies[study_id].failures[instance_id] = Failure("prediction_failed", sentence("prediction_failed"))

    def take_finished(self) -> list[StudyInFlight]:
        """The studies all of whose films are through; they are no longer in flight."""
        finished = [study for study in self.studies.values() if study.complete]
        for study in finished:
            del self.studies[study.claimed.study_id]
        return finished

    def give_back(self) -> None:
        """Release whatever is still held. If the database is away the leases run out by themselves."""
        if self.studies:
            with suppress(DBAPIError), session_scope(self.scorer.engine) as session:
                held = [study.claimed for study in self.studies.values()]
                ledger.release(session, held, worker=self.scorer.worker)
        self.studies.clear()

    def _stage(self, name: str) -> AbstractContextManager[None]:
        return self.scorer.metrics.stage(name)


# ------------------------------------------------------------------------------------------------------- recording


@patiently
def record(scorer: Scorer, finished: Sequence[StudyInFlight], *, run_id: int, tally: Tally) -> None:
    """Films, priorities and outcomes of finished studies, in one transaction; then count and log them."""
    away = [study for study in finished if _must_wait(study, hours=scorer.context.settings.unavailable_hours)]
    done = [study for study in finished if study not in away]
    done_by_id = {study.claimed.study_id: study for study in done}
    films = {i: film_results(study) for i, study in done_by_id.items()}
    outcomes = {i: study_outcome(study, films[i]) for i, study in done_by_id.items()}
    blind = {i: scorer.context.blinding.draws(study.claimed.study_instance_uid) for i, study in done_by_id.items()}
    with scorer.metrics.stage("record"), session_scope(scorer.engine) as session:
        for study in away:
            failure = next(failure for failure in study.failures.values() if failure.transient)
            ledger.put_off(session, study.claimed, worker=scorer.worker, reason=failure.reason, detail=failure.sentence)
        settled = ledger.settle(session, list(outcomes.values()), worker=scorer.worker, run_id=run_id)
        settled_ids = [outcome.study.study_id for outcome in settled]
        results.record_films(
            session,
            [film for study_id in settled_ids for film in films[study_id]],
            checkpoint_id=scorer.live.checkpoint_id,
            run_id=run_id,
        )
        listed = [i for i in settled_ids if outcomes[i].state != "skipped"]
        places = [study_priority(scorer.live, outcomes[i], films[i], blind=blind[i]) for i in listed]
        results.record_priorities(session, places, policy_id=scorer.live.policy_id)
        without_films = [i for i in settled_ids if outcomes[i].state == "skipped"]
        arrivals.unplace(session, without_films, placement=scorer.live.unscored)
        broken = [film.instance_id for i in settled_ids for film in films[i] if film.state == "quarantined"]
        copies_tried = arrivals.take_up_copies(session, broken)
        if settled:
            runs.touch(session, run_id)
    tally.put_off += len(away)
    tally.copies_tried += copies_tried
    for outcome in settled:
        _count(scorer, outcome, films[outcome.study.study_id], tally)
    # Last, and in a transaction of its own: nothing that the shadow does can undo what has just been recorded.
    shadowed = [seen_by_shadow(done_by_id[i], outcomes[i], films[i], blind=blind[i]) for i in settled_ids]
    scorer.shadow.record(scorer.engine, [study for study in shadowed if study is not None], run_id=run_id)


def _must_wait(study: StudyInFlight, *, hours: float) -> bool:
    unreachable = any(failure.transient for failure in study.failures.values())
    return unreachable and study.claimed.unavailable_hours < hours


def film_results(study: StudyInFlight) -> list[FilmResult]:
    """The outcome of each film of a finished study. Of films with the same pixels only the first counts."""
    digests: set[str] = set()
    return [_film_result(study, film, digests) for film in study.claimed.films]


def _film_result(study: StudyInFlight, film: ClaimedFilm, digests: set[str]) -> FilmResult:
    failure = study.failures.get(film.instance_id)
    if failure is not None:
        return FilmResult(film.instance_id, "quarantined", reason=failure.reason, evidence=failure.sentence)
    digest, file_digest = study.inputs[film.instance_id].pixel_digest, study.inputs[film.instance_id].file_digest
    if digest in digests:
        why = sentence("duplicate_pixels")
        return FilmResult(film.instance_id, "skipped", "duplicate_pixels", why, digest, file_digest)
    digests.add(digest)
    probabilities = study.probabilities[film.instance_id]
    return FilmResult(film.instance_id, "scored", None, None, digest, file_digest, probabilities)


def study_outcome(study: StudyInFlight, films: Sequence[FilmResult]) -> Outcome:
    """Scored if any film was; quarantined, with the first film's reason, if films failed and none was scored."""
    failed = [film for film in films if film.state == "quarantined"]
    if any(film.state == "scored" for film in films):
        partly = f"{len(failed)} of {len(films)} films could not be read" if failed else None
        return Outcome(study.claimed, "scored", failed[0].reason if failed else None, partly)
    if failed:
        return Outcome(study.claimed, "quarantined", failed[0].reason, failed[0].evidence)
    if study.claimed.broken_films:
        return Outcome(study.claimed, "quarantined", "films_quarantined", sentence("films_quarantined"))
    return Outcome(study.claimed, "skipped", "no_film", sentence("no_film"))


def study_priority(live: Live, outcome: Outcome, films: Sequence[FilmResult], *, blind: bool = False) -> PriorityResult:
    """Where the policy puts a study: by the highest probability of each finding over its films."""
    scored = [film.probabilities for film in films if film.state == "scored"]
    return placed(
        outcome.study.study_id,
        priority.study_probabilities(scored) if scored else None,
        rules=live.policy,
        thresholds=live.thresholds,
        checkpoint_id=live.checkpoint_id,
        complete=is_complete(outcome),
        blind=blind and bool(scored),
    )


def is_complete(outcome: Outcome) -> bool:
    """Whether every film of the study that is in scope was scored, now or before."""
    return outcome.reason is None and not outcome.study.broken_films and not outcome.study.other_patients


def seen_by_shadow(study: StudyInFlight, outcome: Outcome, films: Sequence[FilmResult], *, blind: bool) -> Seen | None:
    """The shadow's scores of a study; None if it missed a film, or there was none."""
    scored = [film.instance_id for film in films if film.state == "scored"]
    if not scored or any(i not in study.by_shadow for i in scored):
        return None
    scores = {i: study.by_shadow[i] for i in scored}
    return Seen(study.claimed.study_id, scores, complete=is_complete(outcome), blind=blind)


def _count(scorer: Scorer, outcome: Outcome, films: Sequence[FilmResult], tally: Tally) -> None:
    states = [film.state for film in films]
    tally.settle(outcome.state, films=states.count("scored"))
    scorer.metrics.settled(outcome.state, reason=outcome.reason, attempts=outcome.study.attempts)
    log.info(
        f"study_{outcome.state}",
        study_id=outcome.study.study_id,
        films=states.count("scored"),
        failed=states.count("quarantined"),
        reason=outcome.reason,
        attempts=outcome.study.attempts,
    )
