"""Bounds on what is read from a connection, whichever side opened it: the length of a PDU and of a message, and time.

pynetdicom bounds none of these: a PDU that announces 800 MB is read into memory before any association exists. What is
replaced here is `AssociationSocket.recv`, which reads every PDU; tests/integration/test_receive.py and test_deliver.py
fail where a new pynetdicom no longer calls it.
"""

import socket as sockets
import time

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType

READ_BYTES = 256 * 1024  # pynetdicom's own 4 KiB a call cost most of the processor time of a transfer
FIRST_PDU_BYTES = 128 * 1024  # an A-ASSOCIATE-RQ with 128 presentation contexts of 30 transfer syntaxes takes 110 KB
PDU_SECONDS = 60.0  # the rest of a PDU whose first bytes have come
PDU_SLACK_BYTES = 1024  # headers beside the maximum length that we announce (PS3.8 D.1)


class OutOfBounds(OSError):
    """The peer sent more, or more slowly, than is accepted."""


class BoundedReader:
    """Reads one connection. pdu_bytes: the maximum length that is announced (PS3.8 D.1). message_bytes: one message,
    such as a C-STORE with its film, or all answers to a query."""

    def __init__(self, association: Association, *, pdu_bytes: int, message_bytes: int) -> None:
        self._association, self._pdu_bytes, self._most_bytes = association, pdu_bytes, message_bytes
        self._connection: sockets.socket = association.dul.socket.socket
        self._message_bytes = 0
        association.reader, association.dul.socket.recv = self, self.recv

    def begin_message(self) -> None:
        """Count from 0 again: the message before this one is complete."""
        self._message_bytes = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, or fewer where the peer closes. Raises OutOfBounds, which ends the connection."""
        limit = self._pdu_bytes + PDU_SLACK_BYTES if self._association.is_established else FIRST_PDU_BYTES
        self._message_bytes += nr_bytes
        if nr_bytes > limit or self._message_bytes > self._most_bytes:
            raise OutOfBounds("the peer announced more than is accepted")
        buffer, filled, deadline = bytearray(nr_bytes), 0, time.monotonic() + PDU_SECONDS
        with memoryview(buffer) as view:
            while filled < nr_bytes:
                count = self._connection.recv_into(view[filled : filled + READ_BYTES])
                if not count:
                    break
                filled += count
                if time.monotonic() > deadline:
                    raise OutOfBounds("the peer sends too slowly")
        del buffer[filled:]
        return buffer


def reading_within(*, pdu_bytes: int, message_bytes: int) -> EventHandlerType:
    """The event handler that bounds an association of ours from its first byte on."""

    def bound(event: evt.Event) -> None:
        event.assoc.dul.socket.socket.settimeout(PDU_SECONDS)  # a peer may stop in the middle of a PDU
        BoundedReader(event.assoc, pdu_bytes=pdu_bytes, message_bytes=message_bytes)

    return evt.EVT_CONN_OPEN, bound
