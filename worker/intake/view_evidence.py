"""Evidence of a header's attributes on the body part and the projection, whatever the header holds."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from pydicom.dataset import Dataset

from training.imaging.dicom import element_value
from worker.intake.view_words import BUILT_IN, CHEST_CODES, VIEW_CODES, Words

FRONTAL: Final = frozenset({"PA", "AP", "frontal"})

STANDARD, SERIES, STUDY, HINT = 3, 2, 1, 0  # the weight of a statement; a hint never contradicts

_TEXTS: Final = {
    "AcquisitionDeviceProcessingDescription": SERIES,  # (0018,1400): the menu entry chosen at the console
    "SeriesDescription": SERIES,
    "ProtocolName": SERIES,
    "PerformedProtocolCodeSequence": SERIES,
    "PerformedProcedureStepDescription": STUDY,
    "RequestAttributesSequence": STUDY,
    "RequestedProcedureDescription": STUDY,
    "RequestedProcedureCodeSequence": STUDY,
    "ProcedureCodeSequence": STUDY,
    "StudyDescription": STUDY,
}
SERIES_TEXTS: Final = tuple(keyword for keyword, weight in _TEXTS.items() if weight == SERIES)
EVIDENCE_TAGS: Final = (
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "ViewPosition",
    "ViewCodeSequence",
    "PatientPosition",
    "PatientOrientation",
    *_TEXTS,
)
"""Keywords of the attributes that are consulted here."""

_ITEM_TEXTS: Final = ("CodeMeaning", "RequestedProcedureDescription", "ScheduledProcedureStepDescription")

_TEXT_LIMIT, _SHOWN_LIMIT = 1024, 64  # characters read from a value, characters of it shown as evidence
_MOST_VALUES = 64  # of an element, or items of a sequence, that are looked at


class Statement(NamedTuple):
    """One attribute's evidence: a body part ("chest", "other", "mixed") or a projection (a value of VIEW_CODES)."""

    attribute: str
    value: str
    says: str
    weight: int

    def __str__(self) -> str:
        return shown(self.attribute, self.value)


def body_statements(header: Dataset, *, words: Words = BUILT_IN) -> list[Statement]:
    """Each attribute's evidence on the body part, the weightiest first."""
    part = text_of(header, "BodyPartExamined")
    stated = [("BodyPartExamined", part, words.body_part_in(part), STANDARD)]
    for code, meaning, _ in _codes(header, "AnatomicRegionSequence", words):
        says = "chest" if code in CHEST_CODES else words.body_part_in(meaning)
        stated.append(("AnatomicRegionSequence", f"{code} {meaning}", says, STANDARD))
    for keyword, weight, text in _texts(header):
        says = words.body_part_in(text)
        if says != "mixed" or weight != STUDY:  # an order for chest and hip tells nothing of one of its films
            stated.append((keyword, text, says, weight))
    return _statements(stated)


def view_statements(header: Dataset, *, trust_orientation: bool = False, words: Words = BUILT_IN) -> list[Statement]:
    """Each attribute's evidence on the projection, the weightiest first.

    `trust_orientation`: a coronal Patient Orientation alone makes a film frontal.
    """
    position, misused = text_of(header, "ViewPosition"), text_of(header, "PatientPosition")
    stated = [("ViewPosition", position, _view_of_film(position, words), STANDARD)]
    for code, meaning, modified in _codes(header, "ViewCodeSequence", words):
        value = f"{code} {meaning} {modified}".strip()
        stated.append(("ViewCodeSequence", value, modified or _view_of_code(code, meaning, words), STANDARD))
    # Some converters put PA/AP into (0018,5100); its own terms (HFS, FFP, ...) name no view.
    stated.append(("PatientPosition", misused, _view_of_film(misused, words), SERIES))
    texts = _texts(header)
    for keyword, weight, text in texts:
        stated.append(
            (keyword, text, _view_of_film(text, words) if weight == SERIES else _single(words.views_in(text)), weight)
        )
    orientation, plane = orientation_of(header)
    if plane == "coronal":
        stated.append(("PatientOrientation", orientation, "frontal" if trust_orientation else None, HINT))
    else:
        stated.append(("PatientOrientation", orientation, plane, SERIES))
    if all(words.views_in(text) <= FRONTAL for _, _, text in texts):
        # A chest film taken in bed is AP: the tube stands before the patient, the plate lies behind.
        stated += [(keyword, text, "AP", HINT) for keyword, _, text in texts if words.is_bedside(text)]
    return _statements(stated)


def orientation_of(header: Dataset) -> tuple[str, str | None]:
    """Patient Orientation (PS3.3 C.7.6.1.1.1) and its plane: "coronal", "lateral", "oblique", "special" or None."""
    value = text_of(header, "PatientOrientation").upper()
    axes = [frozenset(axis) for axis in value.split("\\")]
    if len(axes) != 2 or not all(axis and axis <= frozenset("APLRHF") for axis in axes):
        return value, None
    if any(axis & set("AP") and axis & set("LR") for axis in axes):
        return value, "oblique"
    sagittal, transverse, upright = (bool((axes[0] | axes[1]) & set(pair)) for pair in ("AP", "LR", "HF"))
    planes = {(True, False, True): "lateral", (False, True, True): "coronal", (True, True, False): "special"}
    return value, planes.get((sagittal, transverse, upright))


def text_of(header: Dataset, keyword: str) -> str:
    """The attribute as one printable line, several values joined by a backslash; "" when absent or unreadable."""
    value = element_value(header, keyword)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        parts = islice(value, _MOST_VALUES)
        return "\\".join(_item_text(part) if isinstance(part, Dataset) else _line(part) for part in parts)
    return _line(value)


def shown(keyword: str, value: str) -> str:
    """An attribute as evidence: "ViewPosition=PA"."""
    return f"{keyword}={value[:_SHOWN_LIMIT] or '(empty)'}"


def _statements(stated: list[tuple[str, str, str | None, int]]) -> list[Statement]:
    spoken = [Statement(keyword, value, says, weight) for keyword, value, says, weight in stated if says]
    return sorted(spoken, key=lambda statement: -statement.weight)


def _view_of_film(text: str, words: Words) -> str | None:
    """The projection of a text about one film: "AP LLD" is a decubitus, "PA oblique" an oblique, "PA LAT" nothing."""
    views = words.views_in(text)
    return next((decisive for decisive in ("special", "oblique") if decisive in views), None) or _single(views)


def _view_of_code(code: str, meaning: str, words: Words) -> str | None:
    return VIEW_CODES.get(code) or _view_of_film(meaning, words)


def _single(views: frozenset[str]) -> str | None:
    """The only kind of view among those named; None where there are several, as in a text about a whole study."""
    if len(views) == 1:
        return next(iter(views))
    if {"PA", "AP"} <= views:
        return "frontal" if views <= FRONTAL else None
    exact = views - {"frontal"}  # "frontal PA"
    return next(iter(exact)) if len(exact) == 1 and exact <= FRONTAL else None


def _texts(header: Dataset) -> list[tuple[str, int, str]]:
    texts = ((keyword, weight, text_of(header, keyword)) for keyword, weight in _TEXTS.items())
    return [(keyword, weight, text) for keyword, weight, text in texts if text]


def _codes(header: Dataset, keyword: str, words: Words) -> Iterator[tuple[str, str, str]]:
    """Each item of a code sequence as (code value, code meaning, the projection its view modifiers name or "")."""
    for item in _items(header, keyword):
        modifiers = map(_code, _items(item, "ViewModifierCodeSequence"))
        modified = next((says for code, meaning in modifiers if (says := _view_of_code(code, meaning, words))), "")
        yield *_code(item), modified


def _items(header: Dataset, keyword: str) -> Iterator[Dataset]:
    """The items of a sequence; what lies in them deeper down is not looked at, for it can be a thousand levels."""
    items = element_value(header, keyword)
    if isinstance(items, Sequence):
        yield from (item for item in islice(items, _MOST_VALUES) if isinstance(item, Dataset))


def _code(item: Dataset) -> tuple[str, str]:
    return _line(element_value(item, "CodeValue")), _line(element_value(item, "CodeMeaning"))


def _item_text(item: Dataset) -> str:
    return " ".join(line for keyword in _ITEM_TEXTS if (line := _line(element_value(item, keyword))))


def _line(value: object) -> str:
    if value is None or isinstance(value, Dataset):
        return ""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text[:_TEXT_LIMIT]).split())
