"""UIDs and message ids that say what they are of: made again, they are the same, so that sending twice adds nothing."""

import hashlib
from typing import Final

from pydicom.uid import UID, generate_uid

MESSAGE_ID_CHARACTERS: Final = 20  # MSH-10 of HL7 v2.3 to v2.5


def object_uid(
    kind: str, study_instance_uid: str, *, checkpoint_digest: str, policy_version: int, revision: int
) -> UID:
    """The UID of what is sent as `kind` of one result of one study."""
    return _uid("object", kind, study_instance_uid, checkpoint_digest, str(policy_version), str(revision))


def series_uid(kind: str, study_instance_uid: str, *, checkpoint_digest: str) -> UID:
    """The series of one checkpoint's objects in a study: equipment belongs to a series."""
    return _uid("series", kind, study_instance_uid, checkpoint_digest)


def device_uid(checkpoint_digest: str) -> UID:
    """The device, which is another one with every checkpoint (IHE AIR)."""
    return _uid("device", checkpoint_digest)


def part_uid(object_uid: str, part: str) -> UID:
    """A part of an object, such as one finding of a report."""
    return _uid("part", object_uid, part)


def message_id(object_uid: str) -> str:
    """The control id of the HL7 message whose object UID this is."""
    return hashlib.sha256(object_uid.encode()).hexdigest()[:MESSAGE_ID_CHARACTERS].upper()


def _uid(*words: str) -> UID:
    return generate_uid(entropy_srcs=["nightread", *("\x1f" + word for word in words)])
