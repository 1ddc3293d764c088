"""Every reason that the database can hold, once, with its sentence for people.

SQL groups by these codes: they are a contract (docs/reference/reasons.md). The sentences of what is wrong with a file's
pixels stand with the exceptions in training.imaging.dicom, which serves the training too.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal, TypeAlias

from training.imaging.pixel_reasons import PixelReason
from worker.wording import in_words

ViewReason = Literal[
    "modality_not_accepted", "sop_class_not_accepted", "modality_unknown", "not_human", "body_part_not_chest",
    "body_part_mixed", "body_part_contradictory", "body_part_unknown", "lateral_view", "oblique_view", "special_view",
    "view_contradictory", "view_unknown", "for_processing", "processed_image", "secondary_capture",
]  # fmt: skip
"""Why the view filter skips an object."""
FileReason = Literal[
    "duplicate_pixels", "file_name_unusable", "file_replaced", "file_unavailable", "folder_closed", "folder_link",
    "header_not_storable", "header_raised", "other_patient", "outside_roots", "sop_uid_differs", "sop_uid_illegal",
    "sop_uid_missing", "study_uid_illegal", "study_uid_missing", "uid_taken",
]  # fmt: skip
"""Why a file is rejected, skipped or waited for; what is wrong with its pixels is a PixelReason."""
WorkReason = Literal[
    "decoder_crashed", "decoder_raised", "decoder_timeout", "films_quarantined", "no_film", "prediction_failed",
    "worker_lost",
]  # fmt: skip
"""Given while a study is worked on."""
DeliveryReason = Literal[
    "ack_error", "ack_rejected", "ack_unreadable", "bundle_refused", "commitment_failed", "credentials_refused",
    "delivery_left", "delivery_raised", "destination_away", "object_refused", "peer_unusable", "picture_impossible",
    "sop_class_refused",
]  # fmt: skip
"""Why a result is not (yet) where it should be; others are those of files and the flags blind and two_patients."""
Flag = Literal["blind", "not_scored", "two_patients", "partly_scored"]
"""Why a study stands higher than what was seen in it: every flag of the worklist."""
ReasonCode: TypeAlias = ViewReason | FileReason | PixelReason | WorkReason | DeliveryReason

VIEW_SENTENCES: Final[Mapping[ViewReason, str]] = {
    "modality_not_accepted": "The modality is not one that this site reads as a chest film.",
    "sop_class_not_accepted": "The object is not a radiograph, whatever its modality says.",
    "modality_unknown": "Neither modality nor SOP class says what kind of object this is.",
    "not_human": "The patient is an animal.",
    "body_part_not_chest": "The film shows another part of the body.",
    "body_part_mixed": "The film shows the chest together with other parts of the body.",
    "body_part_contradictory": "The attributes contradict each other about the part of the body.",
    "body_part_unknown": "No attribute says which part of the body the film shows.",
    "lateral_view": "The film is a lateral view.",
    "oblique_view": "The film is an oblique view.",
    "special_view": "The film is a special projection: decubitus, lordotic, axial or the like.",
    "view_contradictory": "The attributes contradict each other about the view.",
    "view_unknown": "No attribute says whether the film is frontal (AP or PA).",
    "for_processing": "The pixels are raw detector values, meant for processing and not for reading.",
    "processed_image": "The image was computed from a film (bone suppression, subtraction) or is a localizer.",
    "secondary_capture": "The object is a secondary capture; a setting would allow those.",
}

FILE_SENTENCES: Final[Mapping[FileReason, str]] = {
    "duplicate_pixels": "Another film of the study has the same pixels; it counts once.",
    "file_name_unusable": "The name of the file, or of a folder above it, is not UTF-8.",
    "file_replaced": "The file now holds another film than the one that was registered.",
    "file_unavailable": "The file could not be reached.",
    "folder_closed": "A folder could not be listed, so nothing in it was looked at; send it again once it can be.",
    "folder_link": "A link to a folder is not followed; name the folder itself.",
    "header_not_storable": "A value of its header does not fit the database.",
    "header_raised": "Reading the file’s header failed with an unexpected error.",
    "other_patient": "The file came under another patient’s Study Instance UID; it is kept apart and not scored.",
    "outside_roots": "The file lies outside the folders that this site receives from.",
    "sop_uid_differs": "The file’s SOP Instance UID is not the one that its sender announced.",
    "sop_uid_illegal": "The file’s SOP Instance UID is not one that the Standard allows.",
    "sop_uid_missing": "The file has no SOP Instance UID.",
    "study_uid_illegal": "The file’s Study Instance UID is not one that the Standard allows.",
    "study_uid_missing": "The file has no Study Instance UID.",
    "uid_taken": "Another file with different content has the same SOP Instance UID; the first was kept.",
}

WORK_SENTENCES: Final[Mapping[WorkReason, str]] = {
    "decoder_crashed": "Decoding the film ended the decoder’s process, twice.",
    "decoder_raised": "Decoding the film failed with an unexpected error.",
    "decoder_timeout": "Decoding the film took longer than its time limits, at two tries.",
    "films_quarantined": "All films of the study were quarantined before.",
    "no_film": "No film of the study was left to read.",
    "prediction_failed": "The network failed on the film.",
    "worker_lost": "The worker died while it held the study, as often as it may.",
}

DELIVERY_SENTENCES: Final[Mapping[DeliveryReason, str]] = {
    "ack_error": "The receiver of HL7 messages reports an error in the message (AE).",
    "ack_rejected": "The receiver of HL7 messages rejects the message (AR).",
    "ack_unreadable": "The answer of the receiver of HL7 messages is no acknowledgement of this message.",
    "bundle_refused": "The FHIR server refused the bundle.",
    "commitment_failed": "The archive reports that it has not kept the object; it is sent again.",
    "credentials_refused": "The server does not accept our user, password or token.",
    "delivery_left": "The process that was sending the result ended before it said how that went; it is sent again.",
    "delivery_raised": "Making or sending the result failed with an unexpected error; see the log.",
    "destination_away": "The destination does not answer, or it rejects our association.",
    "object_refused": "The archive refused the object.",
    "peer_unusable": "The settings do not name this peer any more, or its certificate, password or token is unusable.",
    "picture_impossible": "The film or the checkpoint cannot be read now, so no picture can be drawn.",
    "sop_class_refused": "The archive does not take objects of this kind.",
}

FLAG_SENTENCES: Final[Mapping[Flag, str]] = {
    "blind": "It belongs to the blind share: the model has scored it, and it is listed as if it had not.",
    "not_scored": "No film of it was scored: it stands as if its heaviest finding of category B were certain.",
    "two_patients": "Films of another patient came under its Study Instance UID; they are not scored: look at both.",
    "partly_scored": "Some film of it could not be read: it stands at least where an unscored study does.",
}


@cache
def sentences() -> dict[str, str]:
    """Every reason -> a sentence for people."""
    from training.imaging.dicom import UnusablePixels  # pydicom, which most commands do without

    pixels = {kind.reason: (kind.__doc__ or "").partition("\n")[0] for kind in UnusablePixels.__subclasses__()}
    tables: list[Mapping[Any, str]] = [
        VIEW_SENTENCES, FILE_SENTENCES, pixels, WORK_SENTENCES, DELIVERY_SENTENCES, FLAG_SENTENCES
    ]  # fmt: skip
    return {code: text for table in tables for code, text in table.items()}


def sentence(reason: str | None) -> str:
    """A stored reason as a sentence; an unknown one (an older version's) is at least readable."""
    return sentences().get(reason or "") or f"{in_words(reason or 'no reason was kept')}."
