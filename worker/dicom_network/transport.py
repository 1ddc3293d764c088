"""The receiver's server: it waits for no peer that is silent, and takes a limited number of connections.

pynetdicom bounds neither. What is replaced here is the server's way to accept a connection; the reading of each is
bounds.py's.
"""

import socket as sockets
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from pynetdicom import _config, dimse_messages
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from worker.dicom_network.association import quieten_pynetdicom
from worker.dicom_network.bounds import BoundedReader
from worker.dicom_network.inbox import ArrivingFilm
from worker.dicom_network.pace import decode_without_copies, wait_for_messages


def receive_to_files() -> None:
    """Let pynetdicom write each film to a file while it comes, in `tempfile`'s folder, and log nothing of it."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    dimse_messages.NamedTemporaryFile = ArrivingFilm
    quieten_pynetdicom()


@dataclass(frozen=True)
class Bounds:
    """Limits of one connection. pdu_bytes: the maximum length that is announced (PS3.8 D.1). message_bytes: a whole
    C-STORE with its film. connections: those of one address, with or without an
    association. first_word_seconds: how long a peer may be silent at first."""

    pdu_bytes: int
    message_bytes: int
    connections: int
    first_word_seconds: float


class BoundedHandler(RequestHandler):  # type: ignore[misc]
    """One connection: it is waited for until its peer says something, and only then becomes an association.

    An association takes two threads that look around a thousand times a second: a hundred silent peers would take the
    processor away from those that send.
    """

    server: "BoundedServer"

    def handle(self) -> None:
        """Wait for the peer's first word, then associate; a connection that fails before leaves only a count."""
        try:
            self.request.settimeout(self.server.bounds.first_word_seconds)
            if isinstance(self.request, ssl.SSLSocket):
                self.request.do_handshake()
            elif not self.request.recv(1, sockets.MSG_PEEK):
                raise ConnectionAbortedError
            self.request.settimeout(self.server.ae.network_timeout)
        except OSError as error:
            self.server.on_refused("tls_failed" if isinstance(error, ssl.SSLError) else "silent_connection")
            self.server.shutdown_request(self.request)
            return
        finally:
            self.server.has_spoken(self.client_address[0])
        super().handle()

    def _create_association(self) -> Any:
        association = super()._create_association()
        bounds = self.server.bounds
        BoundedReader(association, pdu_bytes=bounds.pdu_bytes, message_bytes=bounds.message_bytes)
        decode_without_copies(association)
        wait_for_messages(association)
        association.dimse.receive_primitive = partial(self._take, association, association.dimse.receive_primitive)
        return association

    def _take(self, association: Any, take: Callable[[Any], None], fragments: Any) -> None:
        """Abort where a message cannot be read: left to itself, pynetdicom ends its thread with a traceback."""
        try:
            take(fragments)
        except Exception:  # noqa: BLE001 - whatever a sender's bytes make it raise
            self.server.on_refused("message_unreadable")
            association.dul.event_queue.put("Evt19")  # an invalid PDU (PS3.8 table 9-6)


class BoundedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """A server that never waits for one peer, and takes a limited number of connections from one address.

    pynetdicom's own shakes hands while it accepts: one silent TLS client would keep all others out.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        *args: Any,
        bounds: Bounds,
        is_allowed: Callable[[str], bool],
        on_refused: Callable[[str], None],
        **options: Any,
    ) -> None:
        self.bounds, self.is_allowed, self.on_refused = bounds, is_allowed, on_refused
        self._silent: Counter[str] = Counter()
        self._lock = Lock()
        super().__init__(*args, request_handler=BoundedHandler, **options)

    def get_request(self) -> tuple[sockets.socket, Any]:
        """Accept a connection; a TLS handshake comes later, in the connection's own thread."""
        connection, address = self.socket.accept()
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, _request: Any, client_address: Any) -> bool:
        """Whether the address may connect at all, and does not hold too many connections already."""
        host = client_address[0]
        if not self.is_allowed(host):
            self.on_refused("network_not_allowed")
            return False
        associating = sum(1 for each in self.active_associations if each.remote["address"] == host)
        with self._lock:
            if associating + self._silent[host] >= self.bounds.connections:
                self.on_refused("too_many_connections")
                return False
            self._silent[host] += 1
        return True

    def has_spoken(self, host: str) -> None:
        """Note that a peer has said its first word, or is gone."""
        with self._lock:
            self._silent[host] -= 1
            if not self._silent[host]:
                del self._silent[host]
