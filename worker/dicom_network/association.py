"""Associations with the peers of the settings (PS3.8), bounded in what they read; errors name a peer by its name."""

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from worker.dicom_network.bounds import reading_within
from worker.dicom_network.pace import decode_without_copies
from worker.peers import ANSWER_SECONDS, CONNECT_SECONDS, PeerAway, tls_of
from worker.setting_peers import Peer
from worker.settings import WrongSettings

PDU_BYTES: Final = 256 * 1024  # pynetdicom's own 16 KiB make a transfer several times as dear
ANSWER_BYTES: Final = 2**20  # of a peer that answers statuses and no data


@contextmanager
def associated(
    peer: Peer,
    *,
    calling: str,
    contexts: Sequence[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
    message_bytes: int = ANSWER_BYTES,
) -> Iterator[Association]:
    """An association with a peer that has an AE title, ended with the block. Raises PeerAway and WrongSettings.

    message_bytes: what the peer may send until `association.reader.begin_message()` is called.
    """
    quieten_pynetdicom()
    if peer.ae_title is None or peer.host is None:
        raise WrongSettings(f"peer {peer.name} has no ae_title and host in NIGHTREAD_PEERS")
    entity = AE(ae_title=calling)
    entity.maximum_pdu_size = PDU_BYTES
    entity.connection_timeout = entity.acse_timeout = CONNECT_SECONDS
    entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
    association = entity.associate(
        peer.host,
        peer.port,
        contexts=list(contexts),
        ae_title=peer.ae_title,
        ext_neg=list(roles),
        tls_args=(tls_of(peer), peer.host) if peer.tls else None,
        evt_handlers=[
            (evt.EVT_CONN_OPEN, _send_at_once),
            (evt.EVT_CONN_OPEN, lambda event: decode_without_copies(event.assoc)),
            reading_within(pdu_bytes=PDU_BYTES, message_bytes=message_bytes),
            *handlers,
        ],
    )
    if not association.is_established:
        raise PeerAway(_why_not(peer, rejected=association.is_rejected))
    try:
        yield association
    finally:
        with suppress(RuntimeError):  # it ended meanwhile
            association.release()


def _send_at_once(event: evt.Event) -> None:
    """Let no message wait for the peer's word on the one before it (Nagle's algorithm): a query takes half the time."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def quieten_pynetdicom() -> None:
    """Let pynetdicom log nothing that a peer sends or is sent: identifiers and data sets name patients."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


def _why_not(peer: Peer, *, rejected: bool) -> str:
    if rejected:
        return f"peer {peer.name} rejects our association: compare the AE titles on both sides"
    tls = " and its certificate" if peer.tls else ""
    return f"peer {peer.name} does not answer at its host and port: look at both{tls}, and at the network between"
