"""DICOM objects to an archive: C-STORE to a node, or STOW-RS to a DICOMweb service."""

from io import BytesIO
from typing import Any, Final

from pydicom import Dataset, dcmwrite
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from worker.context import Context
from worker.delivery import http
from worker.delivery.errors import DestinationAway, Refused
from worker.dicom_network.association import associated
from worker.dicom_network.commitment import commitment_request
from worker.peers import PeerAway
from worker.setting_peers import Peer

SUCCESS: Final = 0x0000
WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000)})  # PS3.7 annex C: stored, if not as it was
DUPLICATES: Final = frozenset({0x0111, 0xB00E})  # held already, as after an answer that was lost; the second is Azure's
OUT_OF_RESOURCES: Final = range(0xA700, 0xA800)


def store(context: Context, dataset: Dataset, peer: Peer) -> None:
    """Give an object to an archive: by C-STORE where it has an AE title, else by STOW-RS."""
    if peer.ae_title is None:
        _store_by_web(dataset, peer)
    else:
        _store_by_association(context, dataset, peer)


def _store_by_association(context: Context, dataset: Dataset, peer: Peer) -> None:
    """C-STORE and, where the archive offers storage commitment, the request to keep the object.

    The default transfer syntax is offered too (PS3.5 10.1); pynetdicom writes the object in the one that is accepted.
    It reports to our own AE title on an association of its own, which `nightread receive` answers.
    """
    contexts = [
        build_context(dataset.SOPClassUID, [dataset.file_meta.TransferSyntaxUID, ImplicitVRLittleEndian]),
        build_context(StorageCommitmentPushModel),
    ]
    try:
        with associated(peer, calling=context.settings.receive.ae_title, contexts=contexts) as association:
            if not _accepts(association, dataset.SOPClassUID):
                raise Refused("sop_class_refused")
            _store(association, dataset)
            if _accepts(association, StorageCommitmentPushModel):
                _ask_to_commit(association, dataset, peer)
    except PeerAway:
        raise DestinationAway from None


def _accepts(association: Association, sop_class: str) -> bool:
    return any(each.abstract_syntax == sop_class for each in association.accepted_contexts)


def _store(association: Association, dataset: Dataset) -> None:
    try:
        status = getattr(association.send_c_store(dataset), "Status", None)
    except RuntimeError:  # the archive ended the association
        status = None
    if status is None or status in OUT_OF_RESOURCES:
        raise DestinationAway
    if status != SUCCESS and status not in WARNINGS | DUPLICATES:
        raise Refused("object_refused")


def _ask_to_commit(association: Association, dataset: Dataset, peer: Peer) -> None:
    """Storage commitment (PS3.4 annex J); whatever the archive says to it, the object is stored."""
    request = commitment_request(dataset.SOPClassUID, dataset.SOPInstanceUID, peer=peer.name)
    try:
        association.send_n_action(request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    except (RuntimeError, ValueError):  # the archive ended the association
        return


def _store_by_web(dataset: Dataset, peer: Peer) -> None:
    """STOW-RS (PS3.18 chapter 10.5). An archive may answer 200 with an empty list of failures."""
    boundary = str(dataset.SOPInstanceUID)
    part = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    try:
        answer = http.post(
            peer,
            f"{peer.dicomweb}/studies",
            b"".join((part, _encoded(dataset), f"\r\n--{boundary}--\r\n".encode())),
            content_type=f'multipart/related; type="application/dicom"; boundary={boundary}',
            accept="application/dicom+json",
            refused="object_refused",
        )
    except http.Conflict as conflict:  # nothing new was stored
        if not _failures(conflict.answer):
            raise
        answer = conflict.answer
    if not DUPLICATES.issuperset(_failures(answer)):
        raise Refused("object_refused")


def _encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _failures(answer: Any) -> list[int | None]:
    """The Failure Reason (0008,1197) of each item of FailedSOPSequence (0008,1198) in DICOM's JSON; None: not told."""
    reasons = [_values(item, "00081197")[:1] for item in _values(answer, "00081198") if item]
    return [told[0] if told and isinstance(told[0], int) else None for told in reasons]


def _values(item: Any, tag: str) -> list[Any]:
    attribute = item.get(tag) if isinstance(item, dict) else None
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return values if isinstance(values, list) else []
