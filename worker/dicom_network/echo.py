"""C-ECHO as an SCU: does a DICOM node answer?"""

import ssl

from pynetdicom import AE
from pynetdicom.sop_class import Verification

ECHO_SECONDS = 5.0


def echo(host: str, port: int, *, called: str, calling: str, tls: bool = False) -> bool:
    """Whether the node at `host`:`port` accepts an association from `calling` to `called` and answers a C-ECHO.

    tls: speak TLS without checking the node's certificate, which is for our own node on this machine alone.
    """
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = ECHO_SECONDS
    entity.add_requested_context(Verification)
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    association = entity.associate(host, port, ae_title=called, tls_args=(context, host) if context else None)
    if not association.is_established:
        return False
    try:
        return getattr(association.send_c_echo(), "Status", None) == 0x0000
    finally:
        association.release()
