"""The DICOM receiver: C-ECHO, C-STORE and storage commitment (PS3.4 annexes A, B and J).

A film goes from the socket to a file (inbox.py), from there into the ledger in one transaction, and only then does its
sender get 0000. Whatever fails before that is answered with a failure: the sender still has the film and sends it
again. Nothing that names a patient is logged or measured, and neither is a UID.
"""

import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final

import structlog
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from sqlalchemy.exc import SQLAlchemyError

from worker.context import Context
from worker.dicom_network.commitment import Committer, note_report
from worker.dicom_network.inbox import ArrivingFilm, is_given_up
from worker.dicom_network.keeper import Keeper
from worker.dicom_network.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES
from worker.dicom_network.transport import BoundedServer, Bounds, receive_to_files
from worker.errors import Unavailable
from worker.intake.header import is_uid
from worker.monitoring.prometheus import ReceiveMetrics
from worker.setting_groups import ReceiveSettings

log = structlog.get_logger()

# PS3.4 B.2.3 and PS3.7 annex C.
SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
CANNOT_UNDERSTAND: Final = 0xC000
PROCESSING_FAILURE: Final = 0x0110

REJECTED_TEMPORARILY: Final = (0x02, 0x03, 0x02)  # transient, service provider (presentation), local limit exceeded
CLEANING_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 2.0  # for a database that is away; then the sender hears of it and sends again
NOTIFY_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 10.0  # after SIGTERM; a film takes a second or two


class CannotReceive(Unavailable):
    """The receiver cannot start; the text says why and what to do."""


@dataclass
class Receiver:
    """The service behind one port. `arrived` is set when a film gave a study something new."""

    context: Context
    keeper: Keeper
    metrics: ReceiveMetrics
    committer: Committer
    arrived: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, context: Context, *, metrics: ReceiveMetrics) -> "Receiver":
        """The receiver of the settings."""
        return cls(context, Keeper.of(context), metrics, Committer(context))

    @property
    def settings(self) -> ReceiveSettings:
        return self.context.settings.receive

    def requested(self, event: evt.Event) -> None:
        """Refuse an association beyond its calling AE title's share; titles themselves are checked by pynetdicom."""
        association = event.assoc
        title = association.requestor.primitive.calling_ae_title
        others = [each for each in association._server.active_associations if each is not association]
        if sum(1 for each in others if each.requestor.ae_title == title) >= self.settings.associations_per_ae:
            self.metrics.refused("too_many_associations")
            association.acse.send_reject(*REJECTED_TEMPORARILY)
            association.is_rejected = True
            association.kill()  # only when the rejection is sent

    def stored(self, event: evt.Event) -> int:
        """Take one film. Returns the C-STORE status."""
        event.assoc.reader.begin_message()
        try:
            status, reason = self._store(event)
        except OSError as error:
            status, reason = OUT_OF_RESOURCES, "disk_error"
            log.error("film_not_kept", reason=reason, errno=error.errno)
        except SQLAlchemyError:
            status, reason = OUT_OF_RESOURCES, "database_away"
            log.warning("film_not_kept", reason=reason)
        if status == SUCCESS:
            self.metrics.received(event.dataset_path.stat().st_size)
        else:
            self.metrics.refused(reason)
        return status

    def _store(self, event: evt.Event) -> tuple[int, str]:
        uid = str(event.request.AffectedSOPInstanceUID)
        if not is_uid(uid):
            return CANNOT_UNDERSTAND, "sop_uid_illegal"
        if is_given_up(event.dataset_path) or self.keeper.inbox.is_full():
            return OUT_OF_RESOURCES, "disk_full"
        outcome = self.keeper.keep(event.dataset_path, sop_instance_uid=uid, patience_seconds=PATIENCE_SECONDS)
        if outcome.rejected:
            return CANNOT_UNDERSTAND, "rejected_at_intake"
        if outcome.studies:
            self.arrived.set()
        return SUCCESS, ""

    def closed(self, event: evt.Event) -> None:
        """Remove what came of a film whose connection has ended."""
        half = getattr(event.assoc.dimse.message, "_data_set_file", None)
        if isinstance(half, ArrivingFilm):
            self.metrics.refused("film_broken_off")
            half.discard()

    def commitment_reported(self, event: evt.Event) -> tuple[int, None]:
        """N-EVENT-REPORT of an archive that was asked to keep a result of ours (PS3.4 J.3.3)."""
        try:
            note_report(self.context, event.event_information)
        except SQLAlchemyError:
            log.warning("commitment_report_not_kept", reason="database_away")
            return PROCESSING_FAILURE, None  # the archive reports again
        return SUCCESS, None

    def commitment_requested(self, event: evt.Event) -> tuple[int, None]:
        """N-ACTION of a storage commitment request; the report follows on an association of its own (PS3.4 J.3.2)."""
        title = event.assoc.requestor.ae_title
        if event.action_type != 1 or not self.committer.take(event.action_information, title=title):
            self.metrics.refused("commitment_refused")
            return PROCESSING_FAILURE, None
        return SUCCESS, None


def application_entity(settings: ReceiveSettings) -> AE:
    """The receiver's negotiation: titles, contexts, lengths and times."""
    entity = AE(ae_title=settings.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.calling_ae_titles)
    entity.maximum_pdu_size = settings.pdu_kb * 1024
    entity.maximum_associations = 10_000  # counts bare TCP connections: our own limits are per address and per title
    entity.acse_timeout = settings.association_seconds
    entity.network_timeout = entity.dimse_timeout = settings.idle_seconds
    for storage_class in dict.fromkeys((*STORAGE_CLASSES, *settings.sop_classes)):
        entity.add_supported_context(storage_class, list(TRANSFER_SYNTAXES))
    entity.add_supported_context(Verification)
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)  # asked, and reported to
    return entity


def tls_context(settings: ReceiveSettings) -> ssl.SSLContext | None:
    """TLS for the port, with client certificates where an authority for them is named; None without a certificate.

    Raises CannotReceive for files that cannot be read or do not fit together.
    """
    if settings.tls_certificate_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195, PS3.15 annex B.9
    try:
        context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file)
        if settings.tls_client_ca_file is not None:
            context.load_verify_locations(settings.tls_client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise CannotReceive(f"NIGHTREAD_RECEIVE_TLS_*: {error.strerror or error}: name files that exist") from error
    return context


@contextmanager
def listening(receiver: Receiver) -> Iterator[BoundedServer]:
    """Receive on the settings' port while the block runs. Raises CannotReceive where the port is not to be had.

    Films that a killed receiver kept and did not register are registered first.
    """
    settings = receiver.settings
    receive_to_files()
    entity = application_entity(settings)
    networks = [ip_network(each) for each in settings.networks]

    def is_allowed(host: str) -> bool:
        return not networks or any(ip_address(host) in network for network in networks)

    bounds = Bounds(
        pdu_bytes=settings.pdu_kb * 1024,
        message_bytes=receiver.context.settings.max_file_mb * 2**20,
        connections=settings.connections_per_address,
        first_word_seconds=settings.association_seconds,
    )
    handlers = [
        (evt.EVT_REQUESTED, receiver.requested),
        (evt.EVT_C_ECHO, lambda _: SUCCESS),
        (evt.EVT_C_STORE, receiver.stored),
        (evt.EVT_N_ACTION, receiver.commitment_requested),
        (evt.EVT_N_EVENT_REPORT, receiver.commitment_reported),
        (evt.EVT_CONN_CLOSE, receiver.closed),
        (evt.EVT_REJECTED, lambda _: receiver.metrics.refused("association_rejected")),
        (evt.EVT_ESTABLISHED, lambda _: receiver.metrics.associated()),
    ]
    with ExitStack() as stack:
        stack.enter_context(receiver.keeper.inbox.opened())
        receiver.keeper.register_leftovers()
        try:
            server = entity.make_server(
                (settings.address, settings.port),
                ae_title=settings.ae_title,
                contexts=entity.supported_contexts,
                ssl_context=tls_context(settings),
                evt_handlers=handlers,
                server_class=BoundedServer,
                bounds=bounds,
                is_allowed=is_allowed,
                on_refused=receiver.metrics.refused,
            )
        except OSError as error:
            where = f"{settings.address}:{settings.port}"
            raise CannotReceive(f"cannot listen on {where}: {error.strerror}; see NIGHTREAD_RECEIVE_PORT") from error
        thread = threading.Thread(target=server.serve_forever, name="receiver", daemon=True)
        thread.start()
        stack.enter_context(receiver.committer.running())
        stack.callback(thread.join)
        stack.callback(_shut_down, server)
        log.info("receiver_listening", port=server.server_address[1], tls=server.ssl_context is not None)
        yield server


def _shut_down(server: BoundedServer) -> None:
    """Accept nothing more, let films that are under way come in, then end what is still open."""
    socketserver.BaseServer.shutdown(server)  # pynetdicom's own also looks for the server in a list that it is not in
    server.server_close()
    deadline = time.monotonic() + DRAIN_SECONDS
    while server.active_associations and time.monotonic() < deadline:
        time.sleep(0.1)
    for association in server.active_associations:
        association.abort()


def run_receiver(receiver: Receiver, *, stopping: threading.Event, notify: Callable[[], None]) -> None:
    """Receive until `stopping` is set. `notify` sends messages for waiting studies, at most once a second."""
    with listening(receiver):
        cleaned = time.monotonic()
        while not stopping.wait(NOTIFY_SECONDS):
            if receiver.arrived.is_set():
                receiver.arrived.clear()
                notify()
            if time.monotonic() - cleaned > CLEANING_SECONDS:
                cleaned = time.monotonic()
                receiver.keeper.inbox.remove_abandoned()
                with suppress(SQLAlchemyError):  # away: the next film or minute tries again
                    receiver.keeper.settle()
    if receiver.arrived.is_set():
        notify()
