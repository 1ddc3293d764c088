"""Whether the destinations of results answer: a C-ECHO, a question by HTTP, or a connection, and no result."""

import socket
from contextlib import suppress
from typing import Final

import httpx
from pynetdicom import build_context
from pynetdicom.sop_class import Verification

from worker.context import Context
from worker.delivery import hl7
from worker.delivery.outbox import Destination, destinations
from worker.dicom_network.association import associated
from worker.peers import PeerAway, http_client, peer_named
from worker.setting_peers import Peer

REFUSAL_SECONDS: Final = 0.5
NO_STUDY: Final = "studies?StudyInstanceUID=1.2.3&limit=1"  # asks for nothing that an archive holds


def silent_destinations(context: Context) -> list[str]:
    """The peers that do not answer, by name."""
    return list(dict.fromkeys(each.peer for each in destinations(context.settings) if not _answers(context, each)))


def _answers(context: Context, destination: Destination) -> bool:
    peer = peer_named(context.settings, destination.peer)
    match destination.kind:
        case "oru":
            return _takes_connections(peer)
        case "fhir":
            return _answers_http(peer, peer.fhir or "", "metadata")
        case _:
            return _echoes(context, peer) if peer.ae_title else _answers_http(peer, peer.dicomweb or "", NO_STUDY)


def _echoes(context: Context, peer: Peer) -> bool:
    with suppress(PeerAway, RuntimeError):
        calling = context.settings.receive.ae_title
        with associated(peer, calling=calling, contexts=[build_context(Verification)]) as association:
            return getattr(association.send_c_echo(), "Status", None) == 0x0000
    return False


def _answers_http(peer: Peer, base_url: str, question: str) -> bool:
    with suppress(httpx.HTTPError), http_client(peer, base_url) as client:
        return client.get(question).status_code < 400
    return False


def _takes_connections(peer: Peer) -> bool:
    """Whether it takes a connection and keeps it; by mllps:// its certificate is verified, and ours shown."""
    with suppress(OSError), hl7.connected(peer) as connection:
        return _is_kept(connection)
    return False


def _is_kept(connection: socket.socket) -> bool:
    """Whether the peer says nothing: that it refuses our certificate comes after the handshake (TLS 1.3)."""
    connection.settimeout(REFUSAL_SECONDS)
    try:
        return bool(connection.recv(1))
    except TimeoutError:
        return True
