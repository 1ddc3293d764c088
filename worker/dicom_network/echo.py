"""C-ECHO as an SCU: does a DICOM node answer?"""

import ssl

from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from worker.dicom_network.association import ANSWER_BYTES, PDU_BYTES, associated, quieten_pynetdicom
from worker.dicom_network.bounds import reading_within
from worker.setting_peers import Peer

ECHO_SECONDS = 5.0


def answers(peer: Peer, *, calling: str) -> bool:
    """Whether a peer answers a C-ECHO. Raises PeerAway, and WrongSettings, where there is no association with it."""
    with associated(peer, calling=calling, contexts=[build_context(Verification)]) as association:
        return _is_answered(association)


def echo(host: str, port: int, *, called: str, calling: str, tls: bool = False) -> bool:
    """Whether the node at `host`:`port` accepts an association from `calling` to `called` and answers a C-ECHO.

    tls: speak TLS without checking the node's certificate, which is for our own node on this machine alone.
    """
    quieten_pynetdicom()
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = ECHO_SECONDS
    entity.add_requested_context(Verification)
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    bounded = reading_within(pdu_bytes=PDU_BYTES, message_bytes=ANSWER_BYTES)
    tls_args = (context, host) if context else None
    association = entity.associate(host, port, ae_title=called, tls_args=tls_args, evt_handlers=[bounded])
    if not association.is_established:
        return False
    try:
        return _is_answered(association)
    finally:
        association.release()


def _is_answered(association: Association) -> bool:
    return getattr(association.send_c_echo(), "Status", None) == 0x0000
