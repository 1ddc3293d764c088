"""The shadow: a second checkpoint that looks at the inputs the champion reads, and ranks nothing.

Whatever befalls it (no file, a damaged one, an error, no memory, no time) is a line in the log and a count among the
metrics; it never costs a study, a batch or an attempt.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import registry, results
from db import shadow as seen_by_shadow
from db.models import Checkpoint as CheckpointRow
from db.session import read_scope, session_scope
from training.checkpoint import CheckpointError, load_checkpoint, read_header
from training.imaging.preprocessing import Greys, Preprocessing
from worker.context import Context, Live, actor
from worker.monitoring.prometheus import WorkMetrics
from worker.ranking import policy, priority
from worker.scoring.inference import Classifier, prove

log = structlog.get_logger()

TRY_AGAIN_SECONDS = 60.0  # a shadow that cannot be loaded is tried again after this long, once no study is in flight


class NoThresholds(CheckpointError):
    """The policy needs a threshold that the checkpoint does not bring."""


class NoShadow(ValueError):
    """The checkpoint cannot go into shadow, or none is there; the text says why."""


@dataclass(frozen=True)
class Seen:
    """One study's scores by a checkpoint that does not rank: its films' (11,) probabilities, by instance id."""

    study_id: int
    films: Mapping[int, tuple[float, ...]]
    complete: bool
    blind: bool

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """The study's own, (11,)."""
        return priority.study_probabilities(list(self.films.values()))


def beside(context: Context, row: CheckpointRow, champion: Live) -> Live:
    """A checkpoint as if it ranked: with the active policy as its promotion would make it. Raises CheckpointError."""
    if row.id == champion.checkpoint_id:
        return champion
    path = context.file_of(row)
    rules = policy.as_promoted(champion.policy)
    live = Live(row.id, row.digest, path, read_header(path), rules, champion.policy_id)
    try:
        priority.thresholds_in_force(rules, live.thresholds)
    except priority.PolicyError as error:
        raise NoThresholds(str(error)) from error
    return live


# ---------------------------------------------------------------------------------------------------- into it, and out


def enter(context: Context, session: Session, row: CheckpointRow, *, champion: Live, reason: str) -> None:
    """Put a challenger into shadow; the one that was there is a challenger again. Workers follow between two batches.

    Its file is loaded and tried first. Raises NoShadow or CheckpointError with the reason.
    """
    if row.state != "challenger":
        raise NoShadow(f"checkpoint {row.short} is {row.state}; only a challenger goes into shadow")
    live = beside(context, row, champion)
    if not same_inputs(live.header.preprocessing, champion.header.preprocessing):
        raise NoShadow(
            f"checkpoint {row.short} reads other inputs ({_inputs(live)}) than the champion "
            f"({_inputs(champion)}): both must read the same"
        )
    prove(live.path, digest=live.digest)
    registry.set_state(session, row, "shadow", by=actor(), reason=reason)


def leave(session: Session, *, reason: str) -> CheckpointRow:
    """End the shadow: it is a challenger again, and what it saw is kept. Raises NoShadow where there is none."""
    row = registry.shadow(session)
    if row is None:
        raise NoShadow("no checkpoint is in shadow")
    registry.set_state(session, row, "challenger", by=actor(), reason=reason)
    return row


def same_inputs(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether two checkpoints read the same inputs; what follows them (channels, mean) is each one's own."""
    return (one.name, one.size) == (other.name, other.size)


def _inputs(live: Live) -> str:
    return f"{live.header.preprocessing.name}, {live.header.preprocessing.size} pixels"


# -------------------------------------------------------------------------------------------------------------- at work


class Shadow:
    """The shadow in one worker. Without a network (nothing is in shadow, or it failed) it scores nothing."""

    def __init__(self, digest: str | None, *, metrics: WorkMetrics, patience_seconds: float) -> None:
        self.digest = digest
        self.live: Live | None = None
        self.classifier: Classifier | None = None
        self.try_again_at = math.inf
        self._metrics = metrics
        self._patience_seconds = patience_seconds

    @property
    def is_due(self) -> bool:
        """Whether it could not be loaded and may be tried again."""
        return time.monotonic() >= self.try_again_at

    @contextmanager
    def alone(self, code: str) -> Iterator[None]:
        """Log an error in the block and count it by `code`; it goes no further."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever the shadow runs into, only the shadow pays
            self._tell(code, error=type(error).__name__)

    def _tell(self, code: str, **facts: object) -> None:
        self._metrics.shadow_failed(code)
        log.warning(code, digest=(self.digest or "")[:12], **facts)

    def give_up(self, code: str) -> bool:
        """Let go of the network, until the worker starts anew; False where there was none."""
        if self.classifier is None:
            return False
        self.classifier = None
        self._tell(code)
        return True

    def look(self, inputs: Greys) -> NDArray[np.float32] | None:
        """(N, size, size) in 0 to 255 -> float32 (N, findings), or None where there is no network or it fails.

        One that takes a quarter of a lease gives up: leases are renewed between batches.
        """
        if self.classifier is None:
            return None
        began, probabilities = time.monotonic(), None
        with self.alone("shadow_failed"), self._metrics.stage("shadow"):
            probabilities = self.classifier.predict(inputs)
        if time.monotonic() - began > self._patience_seconds:
            self.give_up("shadow_too_slow")
        return probabilities

    def record(self, engine: Engine, studies: Sequence[Seen], *, run_id: int | None) -> None:
        """Write its scores and places of studies that the champion has settled."""
        if self.live is None or not studies:
            return
        with self.alone("shadow_not_recorded"), session_scope(engine) as session:
            write(session, self.live, studies, run_id=run_id)


def write(session: Session, live: Live, studies: Sequence[Seen], *, run_id: int | None = None) -> None:
    """Store a checkpoint's scores and places that rank nothing; twice gives the same rows."""
    films = [film for study in studies for film in study.films.items()]
    results.record_scores(session, films, checkpoint_id=live.checkpoint_id, run_id=run_id)
    places = [
        live.place(study.study_id, study.probabilities, complete=study.complete, blind=study.blind) for study in studies
    ]
    seen_by_shadow.record_places(
        session, places, checkpoint_id=live.checkpoint_id, policy_id=live.policy_id, run_id=run_id
    )


def open_shadow(context: Context, champion: Live, classifier: Classifier, *, metrics: WorkMetrics) -> Shadow:
    """The shadow of now, ready to score the batches of `champion`'s `classifier` too."""
    row = _wanted(context, champion)
    patience_seconds = context.settings.lease_minutes * 60 / 4
    shadow = Shadow(row.digest if row else None, metrics=metrics, patience_seconds=patience_seconds)
    if row is None:
        return shadow
    shadow.try_again_at = time.monotonic() + TRY_AGAIN_SECONDS
    with shadow.alone("shadow_not_loaded"):
        live = beside(context, row, champion)
        if not same_inputs(live.header.preprocessing, champion.header.preprocessing):
            raise NoShadow  # another champion than the one beside which it began
        checkpoint = load_checkpoint(live.path, expected_digest=live.digest)
        shadow.classifier = Classifier(
            checkpoint, device=classifier.device, batch_size=classifier.batch_size, threads=classifier.threads
        )
        shadow.live, shadow.try_again_at = live, math.inf
        log.info("shadow_loaded", digest=live.short)
    return shadow


def has_changed(shadow: Shadow, context: Context, champion: Live) -> bool:
    """Whether something else is in shadow now, or nothing."""
    row = _wanted(context, champion)
    return (row.digest if row else None) != shadow.digest


def _wanted(context: Context, champion: Live) -> CheckpointRow | None:
    with read_scope(context.engine) as session:
        row = registry.shadow(session)
    return None if row is None or row.id == champion.checkpoint_id else row
