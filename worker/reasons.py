"""Every reason that the database can hold, with its sentence for people."""

from training.imaging.pixels import UnusablePixels
from worker.intake.views import REASONS
from worker.ranking import priority
from worker.wording import in_words

SENTENCES = {
    **REASONS,
    **{kind.reason: (kind.__doc__ or "").partition("\n")[0] for kind in UnusablePixels.__subclasses__()},
    priority.BLIND: "It belongs to the blind share: the model has scored it, and it is listed as if it had not.",
    "decoder_crashed": "Decoding the film ended the decoder’s process, twice.",
    "decoder_raised": "Decoding the film failed with an unexpected error.",
    "decoder_timeout": "Decoding the film took longer than the time limit, twice.",
    "duplicate_pixels": "Another film of the study has the same pixels; it counts once.",
    "file_replaced": "The file now holds another film than the one that was registered.",
    "folder_closed": "A folder could not be listed, so nothing in it was looked at; send it again once it can be.",
    "folder_link": "A link to a folder is not followed; name the folder itself.",
    "header_raised": "Reading the file’s header failed with an unexpected error.",
    "file_name_unusable": "The name of the file, or of a folder above it, is not UTF-8.",
    "header_not_storable": "A value of its header does not fit the database.",
    "file_unavailable": "The file could not be reached.",
    "films_quarantined": "All films of the study were quarantined before.",
    "no_film": "No film of the study was left to read.",
    "outside_roots": "The file lies outside the folders that this site receives from.",
    "prediction_failed": "The network failed on the film.",
    "sop_uid_illegal": "The file’s SOP Instance UID is not one that the Standard allows.",
    "sop_uid_missing": "The file has no SOP Instance UID.",
    "study_uid_illegal": "The file’s Study Instance UID is not one that the Standard allows.",
    "study_uid_missing": "The file has no Study Instance UID.",
    "uid_taken": "Another file with different content has the same SOP Instance UID; the first was kept.",
    "worker_lost": "The worker died while it held the study, as often as it may.",
}
"""Every reason that the database can hold -> a sentence for people."""


def sentence(reason: str | None) -> str:
    """A stored reason as a sentence; an unknown one (an older version's) is at least readable."""
    return SENTENCES.get(reason or "") or f"{in_words(reason or 'no reason was kept')}."
