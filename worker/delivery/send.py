"""One delivery: its object is made, and given to its destination."""

from pydicom import Dataset

from db.deliveries import Claimed
from worker.context import Context
from worker.delivery import dicom
from worker.delivery.errors import Refused
from worker.delivery.result import Result, result_of
from worker.peers import peer_named
from worker.setting_peers import Peer
from worker.settings import Settings, WrongSettings


def send(context: Context, claimed: Claimed) -> None:
    """Make what is claimed and send it; when this returns, its destination has it.

    Raises DestinationAway, Refused, and OutOfDate where the study has moved on.
    """
    result, peer = result_of(context, claimed), _peer(context.settings, claimed.destination)
    match claimed.kind:
        case "sr":
            dicom.store(context, _report(result), peer)


def _peer(settings: Settings, name: str) -> Peer:
    try:
        return peer_named(settings, name)
    except WrongSettings:
        raise Refused("destination_unknown") from None


def _report(result: Result) -> Dataset:
    from worker.delivery.structured_report import structured_report  # highdicom takes a second to import

    return structured_report(result)
