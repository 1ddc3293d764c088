"""Storage commitment (PS3.4 annex J, push model), in both directions.

A sender asks which of its films it may delete. The answer goes to the sender on an association of its own, since the
one that asked may be long closed. It is not kept over a restart: a sender that hears nothing keeps its films and asks
again.

An archive is asked to keep what was delivered to it. It reports in the same way, and the delivery is confirmed.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import build_context, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from sqlalchemy.exc import SQLAlchemyError

from db import deliveries, lookup
from db.session import read_scope, session_scope
from worker.context import Context
from worker.dicom_network.association import associated
from worker.errors import Unavailable
from worker.peers import peer_titled
from worker.setting_peers import Peer
from worker.settings import WrongSettings

log = structlog.get_logger()

PAUSES_SECONDS: Final = (1.0, 10.0, 60.0, 300.0)  # before each try
SEND_AGAIN_SECONDS: Final = 300.0  # after a report that an object was not kept
ALL_COMMITTED: Final = 1
SOME_FAILED: Final = 2
NO_SUCH_INSTANCE: Final = 0x0112
MOST_REFERENCES: Final = 10_000


@dataclass(frozen=True)
class Request:
    """One request: its transaction, (SOP Class UID, SOP Instance UID) pairs, and who wants to know."""

    transaction_uid: str
    references: Sequence[tuple[str, str]]
    peer: Peer
    tries: int = 0
    not_before: float = 0.0


class Committer:
    """Answers commitment requests, in a thread of its own."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()

    def take(self, information: Dataset, *, title: str) -> bool:
        """Accept a request, if it is whole and its sender's address is among the peers."""
        peer = peer_titled(self.context.settings, title)
        references = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in information.get("ReferencedSOPSequence", [])
        ]
        if peer is None or not references or len(references) > MOST_REFERENCES or "TransactionUID" not in information:
            log.warning("commitment_refused", peer_known=peer is not None, references=len(references))
            return False
        self._requests.put(Request(str(information.TransactionUID), references, peer))
        return True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer requests while the block runs."""
        thread = threading.Thread(target=self._answer_all, name="commitment", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._requests.put(None)
            thread.join()

    def _answer_all(self) -> None:
        while (request := self._requests.get()) is not None:
            time.sleep(max(0.0, min(1.0, request.not_before - time.monotonic())))
            if time.monotonic() < request.not_before:
                self._requests.put(request)
            elif not self._answered(request):
                self._try_later(request)

    def _try_later(self, request: Request) -> None:
        if request.tries >= len(PAUSES_SECONDS):
            log.warning("commitment_given_up", references=len(request.references))
            return
        not_before = time.monotonic() + PAUSES_SECONDS[request.tries]
        self._requests.put(
            Request(request.transaction_uid, request.references, request.peer, request.tries + 1, not_before)
        )

    def _answered(self, request: Request) -> bool:
        role = build_role(StorageCommitmentPushModel, scp_role=True)  # PS3.4 J.3.3: the SCP reports, so it is the SCP
        contexts, calling = [build_context(StorageCommitmentPushModel)], self.context.settings.receive.ae_title
        try:
            report, event_type = self.report_on(request)
            with associated(request.peer, calling=calling, contexts=contexts, roles=[role]) as association:
                status, _ = association.send_n_event_report(
                    report, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
                )
                return bool(status) and status.Status == 0x0000
        except (SQLAlchemyError, Unavailable, WrongSettings):
            return False
        except (RuntimeError, ValueError):  # the peer ended it, or accepted no context
            return False

    def report_on(self, request: Request) -> tuple[Dataset, int]:
        """The data set of the N-EVENT-REPORT (PS3.4 table J.3-2) and its event type."""
        report = Dataset()
        report.TransactionUID = request.transaction_uid
        committed, failed = [], []
        for sop_class, uid in request.references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(sop_class), UID(uid)
            if self._is_safe(uid):
                committed.append(item)
            else:
                item.FailureReason = NO_SUCH_INSTANCE
                failed.append(item)
        if committed:
            report.ReferencedSOPSequence = committed
        if failed:
            report.FailedSOPSequence = failed
        return report, SOME_FAILED if failed else ALL_COMMITTED

    def _is_safe(self, uid: str) -> bool:
        """Whether a film is in the ledger, its file in our folder: what was pointed at is not ours to promise."""
        with read_scope(self.context.engine) as session:
            path = lookup.path_of(session, uid)
        return path is not None and Path(path).is_relative_to(self.context.receive_folder) and Path(path).exists()


# ------------------------------------------------------------------------------------------------------- as an SCU


def commitment_request(sop_class_uid: str, sop_instance_uid: str, *, peer: str) -> Dataset:
    """The data set of the N-ACTION that asks a peer, by its name, to keep one object (PS3.4 table J.3-1)."""
    request, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(sop_class_uid), UID(sop_instance_uid)
    request.TransactionUID, request.ReferencedSOPSequence = _transaction_uid(sop_instance_uid, peer), [item]
    return request


def _transaction_uid(sop_instance_uid: str, peer: str) -> UID:
    """Derived, so that a report is matched with what was asked for, whichever process asked."""
    return generate_uid(entropy_srcs=["nightread commitment", sop_instance_uid, peer])


def note_report(context: Context, report: Dataset) -> None:
    """Note what an archive reports of the objects that it was asked to keep; one that it has not is sent again, later.

    A report that nobody asked for changes nothing.
    """
    transaction = str(report.get("TransactionUID", ""))
    kept, missing = _referenced(report, "ReferencedSOPSequence"), _referenced(report, "FailedSOPSequence")
    with session_scope(context.engine) as session:
        for delivery in deliveries.sent_objects(session, [*kept, *missing]):
            if transaction != _transaction_uid(delivery.object_uid, delivery.destination):
                continue
            if delivery.object_uid in kept:
                deliveries.confirm(session, delivery)
            else:
                deliveries.send_again(
                    session,
                    delivery,
                    reason="commitment_failed",
                    seconds=SEND_AGAIN_SECONDS,
                    max_refusals=context.settings.deliver.max_refusals,
                )
            log.info("commitment_reported", delivery_id=delivery.id, state=delivery.state)


def _referenced(report: Dataset, keyword: str) -> list[str]:
    items = list(report.get(keyword) or [])[:MOST_REFERENCES]
    return [str(item.get("ReferencedSOPInstanceUID", "")) for item in items]
