"""One delivery: its object is made, and given to its destination. What makes an object is imported where it is made."""

import json

from db.deliveries import Claimed
from worker.context import Context
from worker.delivery.errors import Refused
from worker.delivery.result import Result, result_of
from worker.peers import peer_named
from worker.setting_peers import Peer
from worker.settings import WrongSettings


def send(context: Context, claimed: Claimed) -> None:
    """Make what is claimed and send it; when this returns, its destination has it.

    Raises DestinationAway, Refused, and OutOfDate where the study has moved on.
    """
    result = result_of(context, claimed)
    try:
        peer = peer_named(context.settings, claimed.destination)
        SENDERS[claimed.kind](context, result, peer)
    except WrongSettings:
        raise Refused("peer_unusable") from None


def _send_report(context: Context, result: Result, peer: Peer) -> None:
    from worker.delivery import dicom
    from worker.delivery.structured_report import structured_report

    dicom.store(context, structured_report(result), peer)


def _send_picture(context: Context, result: Result, peer: Peer) -> None:
    from worker.delivery import dicom
    from worker.delivery.secondary_capture import secondary_capture

    dicom.store(context, secondary_capture(context, result), peer)


def _send_message(context: Context, result: Result, peer: Peer) -> None:
    from worker.delivery import hl7
    from worker.delivery.identifiers import message_id

    content = hl7.message(result, url=peer.mllp or "", sender=context.settings.receive.ae_title)
    hl7.send_message(peer, content, control_id=message_id(result.object_uid))


def _send_bundle(_context: Context, result: Result, peer: Peer) -> None:
    from worker.delivery import http
    from worker.delivery.fhir import bundle

    fhir_json, content = "application/fhir+json", json.dumps(bundle(result)).encode()
    http.post(peer, peer.fhir or "", content, content_type=fhir_json, accept=fhir_json, refused="bundle_refused")


SENDERS = {"sr": _send_report, "sc": _send_picture, "oru": _send_message, "fhir": _send_bundle}
