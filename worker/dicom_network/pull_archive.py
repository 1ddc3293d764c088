"""An archive to pull from, however it is spoken to, and which of the films that it offers are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, Protocol

from pydicom.dataset import Dataset
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from worker.intake.view_evidence import text_of
from worker.intake.view_rules import ViewRules
from worker.intake.views import HEADER_TAGS, Skipped, frontal
from worker.peers import PeerAway

OFFER_KEYWORDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", *HEADER_TAGS)
"""Attributes that are asked for before a film is fetched: where it is, and what decides its view."""

_VIEW: Final = ("ViewPosition", "ViewCodeSequence")
_DECISIVE: Final = {
    "lateral_view": _VIEW,
    "oblique_view": _VIEW,
    "special_view": _VIEW,
    "body_part_not_chest": ("BodyPartExamined", "AnatomicRegionSequence"),
    "modality_not_accepted": ("Modality",),
    "sop_class_not_accepted": ("SOPClassUID",),
    "secondary_capture": ("SOPClassUID",),
    "for_processing": ("SOPClassUID", "PresentationIntentType"),
    "processed_image": HEADER_TAGS,
    "not_human": HEADER_TAGS,
}
"""Reasons for which a film is not fetched -> attributes of which the archive must have told one. A film of which the
view or the body part is not known is fetched: its study then stands on the worklist, unscored, and a person looks."""


@dataclass(frozen=True)
class Offer:
    """A film that an archive holds. `header`: OFFER_KEYWORDS of it; `whole`: what is not there is not in the film."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    header: Dataset
    whole: bool

    def left_out_because(self, rules: ViewRules) -> str | None:
        """The reason not to fetch it; None where it is wanted, or where the archive does not tell enough to say."""
        decision = frontal(self.header, rules=rules)
        if not isinstance(decision, Skipped) or decision.reason not in _DECISIVE:
            return None
        told = any(keyword in self.header and _is_told(self.header, keyword) for keyword in _DECISIVE[decision.reason])
        return decision.reason if self.whole or told else None


def _is_told(header: Dataset, keyword: str) -> bool:
    return bool(header[keyword].value) if keyword.endswith("Sequence") else bool(text_of(header, keyword))


patiently = retry(
    retry=retry_if_exception_type(PeerAway),
    wait=wait_exponential(multiplier=0.5, max=5),
    stop=stop_after_attempt(3),
    reraise=True,
)


class FilmFailed(Exception):
    """One film cannot be fetched now, or one study not be listed; `reason` is a code. What comes after it can."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MoveBrokenOff(PeerAway):
    """An archive that breaks off in a C-MOVE, as some do for a destination that they do not know (others: A801)."""


class Archive(Protocol):
    """Questions to an archive. Every method raises PeerAway, and WrongSettings where the peer refuses us."""

    def studies(self, day: date, modality: str) -> Sequence[str]:
        """Study Instance UIDs of a day that have a series of this modality."""

    def offers(self, study_instance_uid: str, modalities: Sequence[str]) -> Sequence[Offer]:
        """The films of a study's series of these modalities. Raises FilmFailed where it does not list them."""

    def fetch(self, offer: Offer, into: Path) -> bool:
        """Write a film to a new file; False where the archive sent it to our receiver instead. Raises FilmFailed."""
