"""A DICOM header -> frontal chest film, or the reason why not, with the evidence.

Every attribute that speaks of the body part or of the projection makes a Statement; the Standard's own attribute
outweighs text about the series, which outweighs text about the whole study. What contradicts the heaviest statement
is flagged, and where nothing speaks the answer is a reason, never a guess. No pixel is looked at here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from worker.intake.view_evidence import (
    EVIDENCE_TAGS,
    FRONTAL,
    HINT,
    SERIES,
    SERIES_TEXTS,
    STUDY,
    Statement,
    body_statements,
    orientation_of,
    shown,
    text_of,
    view_statements,
)
from worker.intake.view_rules import CR_IMAGE, DEFAULT_RULES, ViewRules
from worker.intake.view_words import is_animal
from worker.reasons import VIEW_SENTENCES, ViewReason

DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"  # and .7.1 to .7.4, its multi-frame siblings

# Modalities other than the accepted ones that converters and old consoles give to plain films.
FILM_MODALITIES: Final = frozenset({"CR", "DX", "DR", "RG", "RF", "OT", "SC", "XC"})

FLAGS: Final = {
    "modality_missing": "Modality is empty; the SOP class told what the object is.",
    "sop_class_missing": "SOP Class UID is empty; the modality told what the object is.",
    "body_part_contradicted": "A lesser attribute names another part of the body.",
    "view_contradicted": "A lesser attribute says that the film is not frontal.",
    "ap_or_pa_contradicted": "One attribute says AP, another PA.",
    "ap_or_pa_unknown": "The film is frontal; whether AP or PA is not said.",
    "ap_inferred": "Nothing names the view; a bedside or supine chest film is taken as AP.",
    "view_from_study_text": "Only a text about the whole study names the view.",
    "not_upright": "Patient Orientation says that the film is mirrored or turned.",
    "image_type_secondary": "Image Type says SECONDARY: re-encoded or changed after the acquisition.",
    "secondary_capture": "The film is a secondary capture, accepted by the site's setting.",
}
"""Every entry of `View.flags` -> a sentence for people."""

HEADER_TAGS: Final = (
    "SOPClassUID",
    "Modality",
    "ImageType",
    "PresentationIntentType",
    "DerivationDescription",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "AnatomicalOrientationType",
    *EVIDENCE_TAGS,
)
"""Keywords of every attribute that `frontal` consults, as `pydicom.dcmread(specific_tags=...)` takes them."""

_PARTLY_CHEST: Final = frozenset({"chest", "mixed"})
_NOT_FRONTAL: Final[Mapping[str, ViewReason]] = {
    "lateral": "lateral_view",
    "oblique": "oblique_view",
    "special": "special_view",
}


@dataclass(frozen=True)
class View:
    """A film to score. `view` is "PA", "AP", or "frontal" where the header says frontal and not which of the two."""

    view: str
    evidence: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """An object not to score.

    `in_scope`: it is, or may be, a chest film, so that its study enters the worklist unscored, with a flag.
    """

    reason: ViewReason
    evidence: str
    in_scope: bool = True


@dataclass(frozen=True)
class _Verdict:
    """The weightiest statement, and those that contradict it."""

    leading: Statement | None
    against: tuple[Statement, ...]
    tolerated: int  # the greatest weight of a contradiction that is only flagged

    @property
    def says(self) -> str | None:
        return self.leading.says if self.leading else None

    @property
    def split(self) -> bool:
        """Whether too much contradicts the leading statement to follow it: a peer, a weighty one, or two."""
        if self.leading is None or not self.against:
            return False
        heaviest = max(statement.weight for statement in self.against)
        return len(self.against) > 1 or heaviest == self.leading.weight or heaviest > self.tolerated

    @property
    def evidence(self) -> str:
        return " but ".join(str(statement) for statement in (self.leading, *self.against))


def frontal(header: Dataset, *, rules: ViewRules = DEFAULT_RULES) -> View | Skipped:
    """Decide from a header whether it is a frontal chest film. Never raises: an unreadable element counts as absent.

    Where several reasons apply, what the object plainly shows comes before how it was made, and both before what
    is not known: a CT saved as secondary capture is refused as a CT.
    """
    # BodyPartExamined=CHEST is often a default: a series text that names the ribs or a hand is believed before it.
    body = _weigh(body_statements(header, words=rules.words), agreeing=_PARTLY_CHEST, tolerated=STUDY)
    statements = _view_statements(header, rules)
    view = _weigh(statements, agreeing=FRONTAL, tolerated=SERIES)
    refusal = (
        _refused_kind(header, rules=rules, body=body)
        or _refused_species(header)
        or _refused_body_part(body)
        or _refused_view(view)
        or _refused_image(header, rules=rules)
        or _undecided_body_part(body, header=header)
        or _undecided_view(view, header=header)
    )
    if refusal:
        return refusal
    flags = (*_image_flags(header), *_contradiction_flags(body, view=view), *_view_flags(statements))
    return View(_exact_view(statements), f"{view.evidence}; {body.evidence}", flags)


def evidence_lines(header: Dataset, *, rules: ViewRules = DEFAULT_RULES) -> list[str]:
    """The decision for people: every attribute that says something, what it says, the flags, and last the outcome."""
    kind = ("Modality", "SOPClassUID", "PresentationIntentType", "ImageType")
    lines = [shown(keyword, text) for keyword in kind if (text := text_of(header, keyword))]
    statements = (*body_statements(header, words=rules.words), *_view_statements(header, rules))
    lines += [f"{statement} says {statement.says}" for statement in statements]
    decision = frontal(header, rules=rules)
    if isinstance(decision, Skipped):
        return [*lines, f"skipped, {decision.reason}: {VIEW_SENTENCES[decision.reason]} ({decision.evidence})"]
    return [*lines, *(f"{flag}: {FLAGS[flag]}" for flag in decision.flags), f"kept as {decision.view}"]


def _view_statements(header: Dataset, rules: ViewRules) -> list[Statement]:
    return view_statements(header, trust_orientation=rules.trust_patient_orientation, words=rules.words)


def _weigh(statements: Sequence[Statement], *, agreeing: frozenset[str], tolerated: int) -> _Verdict:
    """The first statement leads; those on the other side of `agreeing` contradict it."""
    if not statements:
        return _Verdict(None, (), tolerated)
    leading = statements[0]
    side = leading.says in agreeing
    against = (s for s in statements[1:] if s.weight > HINT and (s.says in agreeing) != side)
    return _Verdict(leading, tuple(against), tolerated)


def _exact_view(statements: Sequence[Statement]) -> str:
    """AP or PA from the weightiest statement that tells them apart, else "frontal"."""
    return next((statement.says for statement in statements if statement.says in {"AP", "PA"}), "frontal")


# The reasons, in the order in which they are tried


def _refused_kind(header: Dataset, *, rules: ViewRules, body: _Verdict) -> Skipped | None:
    modality, sop_class = text_of(header, "Modality").upper(), _sop_class(header)
    if modality and modality not in rules.modalities:
        chest_film = modality in FILM_MODALITIES and body.says in _PARTLY_CHEST
        return Skipped("modality_not_accepted", shown("Modality", modality), in_scope=chest_film)
    if sop_class in (*rules.sop_classes, DX_FOR_PROCESSING):
        return None
    if sop_class and not _is_secondary_capture(sop_class):
        chest_film = bool(modality) and body.says in _PARTLY_CHEST and sop_class.startswith(CR_IMAGE)
        return Skipped("sop_class_not_accepted", shown("SOPClassUID", UID(sop_class).name), in_scope=chest_film)
    if not modality:
        return Skipped("modality_unknown", shown("Modality", modality), in_scope=body.says in _PARTLY_CHEST)
    return None


def _refused_species(header: Dataset) -> Skipped | None:
    if text_of(header, "AnatomicalOrientationType").upper() == "QUADRUPED":
        return Skipped("not_human", shown("AnatomicalOrientationType", "QUADRUPED"), in_scope=False)
    for keyword in ("PatientSpeciesDescription", "PatientSpeciesCodeSequence", *SERIES_TEXTS):
        if is_animal(text := text_of(header, keyword)):
            return Skipped("not_human", shown(keyword, text), in_scope=False)
    return None


def _refused_body_part(body: _Verdict) -> Skipped | None:
    if body.says == "mixed":
        return Skipped("body_part_mixed", body.evidence)
    if body.says == "other" and not body.against:  # with one attribute that says chest it is undecided, below
        return Skipped("body_part_not_chest", body.evidence, in_scope=False)
    return None


def _refused_view(view: _Verdict) -> Skipped | None:
    if view.says is None or view.says in FRONTAL or view.split:
        return None
    return Skipped(_NOT_FRONTAL[view.says], view.evidence)


def _refused_image(header: Dataset, *, rules: ViewRules) -> Skipped | None:
    intent, sop_class = text_of(header, "PresentationIntentType"), _sop_class(header)
    if intent.upper().replace("_", " ") == "FOR PROCESSING":
        return Skipped("for_processing", shown("PresentationIntentType", intent))
    if sop_class == DX_FOR_PROCESSING:
        return Skipped("for_processing", shown("SOPClassUID", UID(sop_class).name))
    for keyword in ("ImageType", "DerivationDescription", *SERIES_TEXTS):
        if rules.words.is_processed(text := text_of(header, keyword)):
            return Skipped("processed_image", shown(keyword, text))
    if _is_secondary_capture(sop_class) and not rules.allow_secondary_capture:
        return Skipped("secondary_capture", shown("SOPClassUID", UID(sop_class).name))
    return None


def _undecided_body_part(body: _Verdict, *, header: Dataset) -> Skipped | None:
    if body.leading is None:
        return Skipped("body_part_unknown", shown("BodyPartExamined", text_of(header, "BodyPartExamined")))
    if body.says == "other" or body.split:
        return Skipped("body_part_contradictory", body.evidence)
    return None


def _undecided_view(view: _Verdict, *, header: Dataset) -> Skipped | None:
    if view.leading is None:
        instead = ("ViewPosition", "PatientPosition", "PatientOrientation")  # what stands there and names no view
        found = [shown(keyword, text) for keyword in instead if (text := text_of(header, keyword))]
        return Skipped("view_unknown", "; ".join(found) or shown("ViewPosition", ""))
    return Skipped("view_contradictory", view.evidence) if view.split else None


# The flags


def _image_flags(header: Dataset) -> Iterator[str]:
    sop_class = _sop_class(header)
    if not text_of(header, "Modality"):
        yield "modality_missing"
    if not sop_class:
        yield "sop_class_missing"
    # DERIVED alone is what every compressed film says; SECONDARY is rarer, and re-encoded films say it too.
    if "SECONDARY" in text_of(header, "ImageType").upper().split("\\"):
        yield "image_type_secondary"
    if _is_secondary_capture(sop_class):
        yield "secondary_capture"
    orientation, plane = orientation_of(header)
    if plane == "coronal" and [axis[0] for axis in orientation.split("\\")] != ["L", "F"]:
        yield "not_upright"


def _contradiction_flags(body: _Verdict, *, view: _Verdict) -> Iterator[str]:
    if body.against:
        yield "body_part_contradicted"
    if view.against:
        yield "view_contradicted"


def _view_flags(statements: Sequence[Statement]) -> Iterator[str]:
    stated = {statement.says for statement in statements if statement.weight > HINT}
    if {"AP", "PA"} <= stated:
        yield "ap_or_pa_contradicted"
    if _exact_view(statements) == "frontal":
        yield "ap_or_pa_unknown"
    elif not stated & {"AP", "PA"}:
        yield "ap_inferred"
    if statements[0].weight == STUDY:
        yield "view_from_study_text"


def _sop_class(header: Dataset) -> str:
    """SOP Class UID, or what the file meta information says in its place (a DICOMDIR has no other)."""
    meta = getattr(header, "file_meta", None) or Dataset()
    return text_of(header, "SOPClassUID") or text_of(meta, "MediaStorageSOPClassUID")


def _is_secondary_capture(sop_class: str) -> bool:
    return sop_class == SECONDARY_CAPTURE or sop_class.startswith(f"{SECONDARY_CAPTURE}.")
