"""Tasks of the scoring queue: score, sweep and judge the day's drift.

Each task is a few lines; the work is in scoring/pipeline.py, queue/maintenance.py and monitoring/drift.py.
"""

import os
import signal
import threading
import time
from contextlib import ExitStack

import structlog
from celery import Celery

from db import ledger, registry
from db.policies import active
from db.session import read_scope
from training.checkpoint import CheckpointError, UnsoundCheckpoint
from worker.checkpoints.promotion import NoSoundCheckpoint, take_back
from worker.context import Context
from worker.monitoring.drift import daily
from worker.monitoring.prometheus import WorkMetrics
from worker.queue.app import DRIFT, SCORE, SWEEP, ask_for_retraining
from worker.queue.maintenance import sweep
from worker.scoring import shadow
from worker.scoring.decoder_pool import DecodersGone
from worker.scoring.inference import DeviceGone
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import Scorer, open_scorer, with_shadow

log = structlog.get_logger()

LOOK_FOR_CHAMPION_SECONDS = 5.0
TRY_REFUSED_SECONDS = 60.0  # a champion that cannot be loaded is tried again so often


class Service:
    """One worker process: its scorer, opened once and again when another checkpoint or policy goes live."""

    def __init__(self, context: Context, *, metrics: WorkMetrics) -> None:
        self.context, self.metrics = context, metrics
        self.stopping = threading.Event()
        self.failure: DeviceGone | NoSoundCheckpoint | None = None  # for which this process ends
        self._stack = ExitStack()
        self._scorer: Scorer | None = None
        self._looked_at = 0.0
        self._may_claim = True
        self._refused_at: float | None = None

    def scorer(self) -> Scorer:
        """The scorer for what is live now; while that cannot be loaded, the one at work goes on."""
        if self._scorer is None or self._is_stale(self._scorer):
            self._scorer = self._opened(self._scorer)
        elif self._has_other_shadow(self._scorer) or self._scorer.shadow.is_due:
            self._scorer = with_shadow(self._scorer)
        return self._scorer

    def _opened(self, at_work: Scorer | None) -> Scorer:
        stack = ExitStack()
        try:
            opened = open_scorer(self.context, metrics=self.metrics, should_stop=self.stopping.is_set)
            scorer = stack.enter_context(opened)
        except UnsoundCheckpoint as unsound:
            take_back(self.context, unsound)
            return self._opened(at_work)
        except CheckpointError as error:
            if at_work is None:
                raise
            log.error("checkpoint_refused", error=type(error).__name__)
            self._refused_at = time.monotonic()
            return at_work
        self._stack.close()
        self._stack = stack
        log.info("checkpoint_loaded", digest=scorer.live.short, device=str(scorer.classifier.device))
        return scorer

    def close(self) -> None:
        """End the decoders and drop the network."""
        self._stack.close()
        self._scorer = None

    def _is_stale(self, scorer: Scorer) -> bool:
        if self._refused_at is not None and time.monotonic() - self._refused_at < TRY_REFUSED_SECONDS:
            return False
        with read_scope(self.context.engine) as session:
            champion, policy = registry.champion(session), active(session)
        named = self.context.settings.checkpoint is not None  # by the settings: then the champion does not matter
        other_checkpoint = not named and champion is not None and champion.digest != scorer.live.digest
        return other_checkpoint or (policy is not None and policy.id != scorer.live.policy_id)

    def _has_other_shadow(self, scorer: Scorer) -> bool:
        return shadow.has_changed(scorer.shadow, self.context, scorer.live)

    def may_claim(self) -> bool:
        """Whether what is loaded is still live; looked up every few seconds, between two batches."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_FOR_CHAMPION_SECONDS:
            self._looked_at = now
            at_work = self._scorer
            self._may_claim = not (at_work is None or self._is_stale(at_work) or self._has_other_shadow(at_work))
        return self._may_claim

    def score(self, study_id: int) -> None:
        """Score everything that waits, beginning with the study that the message names, if it still waits.

        What names no row, as only a stranger's message would, is refused.
        """
        if not isinstance(study_id, int) or not 0 < study_id < 2**63:
            log.warning("message_refused")
            return
        with read_scope(self.context.engine) as session:
            if not ledger.is_waiting(session, study_id):
                return
        try:
            while not self.stopping.is_set() and not self._nothing_left(study_id):
                pass
        except DecodersGone:
            self.close()  # the next message gets new ones
            raise
        except (DeviceGone, NoSoundCheckpoint) as gone:  # a CUDA context that broke stays so until a new process
            self.failure = gone
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    def _nothing_left(self, study_id: int) -> bool:
        """Score what waits; False where another checkpoint or policy is to go on, by now or by this one's fault."""
        scorer = self.scorer()
        try:
            score_waiting(scorer, kind="night", first=study_id, may_claim=self.may_claim)
        except UnsoundCheckpoint as unsound:
            self.close()
            take_back(self.context, unsound)
            return False
        return self.scorer() is scorer


def register(app: Celery, service: Service) -> None:
    """Give the app its tasks."""

    @app.task(name=SCORE)  # type: ignore[untyped-decorator]
    def score(study_id: int) -> None:
        service.score(study_id)

    @app.task(name=SWEEP)  # type: ignore[untyped-decorator]
    def sweep_() -> None:
        sweep(service.context, app)

    @app.task(name=DRIFT)  # type: ignore[untyped-decorator]
    def drift() -> None:
        if daily(service.context).retrain:
            ask_for_retraining(app, "drift")
