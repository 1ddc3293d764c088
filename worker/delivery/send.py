"""One delivery: its object is made, and given to its destination. What makes an object is imported where it is made."""

import json
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from db import deliveries
from db.deliveries import Claimed
from db.models import DeliveryKind
from db.session import read_scope
from worker.context import Context
from worker.delivery.errors import Refused, Stopped
from worker.delivery.result import Result, result_of
from worker.peers import peer_named
from worker.setting_peers import Peer
from worker.settings import WrongSettings

Give: TypeAlias = Callable[[], object]
"""Gives what was made to its destination. Raises DestinationAway and Refused."""


def send(context: Context, claimed: Claimed) -> None:
    """Make what is claimed and send it; when this returns, its destination has it.

    Raises DestinationAway, Refused, OutOfDate where the study has moved on, and Stopped where all deliveries were
    stopped while it was made.
    """
    result = result_of(context, claimed)
    try:
        peer = peer_named(context.settings, claimed.destination)
        give = MAKERS[claimed.kind](context, result, peer)
        _require_not_stopped(context)
        give()
    except WrongSettings:
        raise Refused("peer_unusable") from None


def _require_not_stopped(context: Context) -> None:
    with read_scope(context.engine) as session:
        if deliveries.is_paused(session):
            raise Stopped


def _report(context: Context, result: Result, peer: Peer) -> Give:
    from worker.delivery import dicom
    from worker.delivery.structured_report import structured_report

    return partial(dicom.store, context, structured_report(result), peer)


def _picture(context: Context, result: Result, peer: Peer) -> Give:
    from worker.delivery import dicom
    from worker.delivery.secondary_capture import secondary_capture

    return partial(dicom.store, context, secondary_capture(context, result), peer)


def _message(context: Context, result: Result, peer: Peer) -> Give:
    from worker.delivery import hl7
    from worker.delivery.identifiers import message_id

    content = hl7.message(result, url=peer.mllp or "", sender=context.settings.receive.ae_title)
    return partial(hl7.send_message, peer, content, control_id=message_id(result.object_uid))


def _bundle(_context: Context, result: Result, peer: Peer) -> Give:
    from worker.delivery import http
    from worker.delivery.fhir import bundle

    kind, content = "application/fhir+json", json.dumps(bundle(result)).encode()
    return partial(http.post, peer, peer.fhir or "", content, content_type=kind, accept=kind, refused="bundle_refused")


MAKERS: Final[dict[DeliveryKind, Callable[[Context, Result, Peer], Give]]] = {
    "sr": _report,
    "sc": _picture,
    "oru": _message,
    "fhir": _bundle,
}
