"""The studies that a worker holds: claimed a little ahead, decoded beside the network, predicted in batches."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from sqlalchemy.exc import DBAPIError

from db import ledger
from db.base import rounded
from db.ledger import ClaimedStudy
from db.session import session_scope
from worker.patience import patiently
from worker.reasons import sentence
from worker.scoring.decoder_pool import PendingFilm
from worker.scoring.decoding import Failure, NetworkInput
from worker.scoring.inference import DeviceGone
from worker.scoring.leases import end_leases
from worker.scoring.scorer import Scorer


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


class ReadyFilm(NamedTuple):
    """A decoded film, waiting for a batch."""

    study_id: int
    instance_id: int
    network_input: NetworkInput


class InFlight:
    """The studies that this worker holds, and their films on the way to the network."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.studies: dict[int, StudyInFlight] = {}
        self._decoding: dict[int, tuple[int, PendingFilm]] = {}  # instance id -> (study id, its film)
        self._ready: list[ReadyFilm] = []
        self._renewed = time.monotonic()

    def claim(self, first: int | None) -> None:
        """Claim studies until enough films are on their way, and begin to decode them."""
        if self.room <= 0 or any(study.claimed.suspect for study in self.studies.values()):
            return
        self.begin(self._claimed(self.room, first))

    def begin(self, claimed: Sequence[ClaimedStudy]) -> None:
        """Take claimed studies in flight, and give their films to the decoders."""
        # All of them before the first is submitted: they may be given back.
        self.studies |= {study.study_id: StudyInFlight(study) for study in claimed}
        for study in claimed:
            for film in study.films:
                pending = self.scorer.decoders.submit(film.path, film.sop_instance_uid)
                self._decoding[film.instance_id] = (study.study_id, pending)

    @property
    def room(self) -> int:
        """How many more films to claim. Those at their second try do not count: they may take long."""
        decoding = sum(not film.second for _, film in self._decoding.values())
        return self.scorer.films_ahead - decoding - len(self._ready)

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

    def next_batch(self) -> list[ReadyFilm]:
        """The next films for the network: a full batch, or fewer when the next film takes longer than a straggler may.

        A commit costs the same however few films are in it, and so does a GPU's pass: slow films are worth waiting for,
        one after the other.
        """
        size, patience = self.scorer.classifier.batch_size, self.scorer.context.settings.straggler_seconds
        with self._stage("decode"):
            self._keep_leases()
            while self._collect() < size and self._decoding and not self.scorer.should_stop():
                pending = [film.future for _, film in self._decoding.values()]
                if not wait(pending, timeout=patience, return_when=FIRST_COMPLETED).done:
                    break
                self._keep_leases()
        batch, self._ready = self._ready[:size], self._ready[size:]
        return batch

    def _collect(self) -> int:
        """Move what the decoders have finished to where it belongs; returns how many films are ready."""
        for instance_id, (study_id, film) in list(self._decoding.items()):
            outcome = film.result()
            if outcome is None:
                continue
            del self._decoding[instance_id]
            study = self.studies[study_id]
            if isinstance(outcome, Failure):
                study.failures[instance_id] = outcome
            else:
                study.inputs[instance_id] = outcome
                self._ready.append(ReadyFilm(study_id, instance_id, outcome))
        return len(self._ready)

    def predict(self, batch: Sequence[ReadyFilm]) -> None:
        """Run the network on a batch; one that raises is split until the culprit stands alone.

        Raises DeviceGone where a film that stands alone fails and a black network input does too.
        """
        if not batch:
            return
        classifier, shadow = self.scorer.classifier, self.scorer.shadow
        size, inputs = classifier.batch_size, np.stack([film.network_input.image for film in batch])
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
        for i, film in enumerate(batch):
            study = self.studies[film.study_id]
            study.probabilities[film.instance_id] = tuple(map(rounded, probabilities[i]))
            if by_shadow is not None:
                study.by_shadow[film.instance_id] = tuple(map(rounded, by_shadow[i]))

    def _fail_single(self, film: ReadyFilm, error: RuntimeError) -> None:
        """The network raised on one film alone: the shadow gives way, the device is gone, or it is the film's fault."""
        if self.scorer.shadow.give_up("shadow_gave_way"):  # the memory that it took may be what lacked
            self.predict([film])
            return
        if not self.scorer.classifier.still_works():
            raise DeviceGone("the device no longer computes: start the worker again, and see its log") from error
        failure = Failure("prediction_failed", sentence("prediction_failed"))
        self.studies[film.study_id].failures[film.instance_id] = failure

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
