"""Pace: what pynetdicom does several times for each film where once is enough.

It copies a film's bytes four times on their way from the connection to the file, and an association looks for a message
a thousand times a second. What is replaced here are `DULServiceProvider._decode_pdu` and `DIMSEServiceProvider.get_msg`
of one association; tests/integration/test_receive.py fails where a new pynetdicom no longer calls them.
"""

import queue
import struct
from functools import partial
from typing import Any, Final

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_items import PresentationDataValueItem

P_DATA: Final = 0x04  # the type of a P-DATA-TF PDU (PS3.8 table 9-22)
PDU_HEADER_BYTES: Final = 6
ITEM_HEADER: Final = struct.Struct(">LB")  # length of what follows, presentation context id (PS3.8 table 9-23)
WAIT_SECONDS: Final = 0.01  # for a message; a release or an abort is seen as late as this


def decode_without_copies(association: Association) -> None:
    """Hand on what is received as views of the bytes that were read."""
    decode = association.dul._decode_pdu

    def decode_pdu(received: bytearray) -> tuple[Any, str]:
        return (p_data(received), "Evt10") if received[0] == P_DATA else decode(received)

    association.dul._decode_pdu = decode_pdu


def p_data(received: bytearray) -> P_DATA_TF:
    """A P-DATA-TF PDU. Raises ValueError or struct.error where its items do not fill it; pynetdicom then aborts."""
    pdu, view, at = P_DATA_TF(), memoryview(received), PDU_HEADER_BYTES
    while at < len(view):
        length, context_id = ITEM_HEADER.unpack_from(view, at)
        fragment = view[at + ITEM_HEADER.size : at + 4 + length]
        if len(fragment) != length - 1:
            raise ValueError("an item of a P-DATA-TF PDU is longer or shorter than it says")
        item = PresentationDataValueItem()
        item.presentation_context_id, item.presentation_data_value = context_id, fragment
        pdu.presentation_data_value_items.append(item)
        at += 4 + length
    return pdu


def wait_for_messages(association: Association) -> None:
    """Let the association of a sender sleep until a message is there."""
    association.dimse.get_msg = partial(_next_message, association.dimse)


def _next_message(provider: DIMSEServiceProvider, block: bool = False) -> Any:
    try:
        return provider.msg_queue.get(timeout=provider.dimse_timeout if block else WAIT_SECONDS)
    except queue.Empty:
        return None, None
