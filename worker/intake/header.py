"""A film's header as the rows of a study and an instance."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from db.arrivals import Arrival
from worker.errors import UnusableStudy
from worker.intake.view_evidence import text_of
from worker.intake.view_rules import ViewRules
from worker.intake.views import HEADER_TAGS, Skipped, frontal
from worker.reasons import ReasonCode

# PS3.3 C.4.11: Requested Procedure Priority; C.7.2.1 (retired): Study Priority ID, whose highest value is HIGH.
STAT_ATTRIBUTES = ("RequestedProcedurePriority", "StudyPriorityID")

STAT_VALUES = frozenset({"STAT", "HIGH"})

INTAKE_TAGS = (
    *HEADER_TAGS,
    *STAT_ATTRIBUTES,
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "AccessionNumber",
    "PatientID",
    "IssuerOfPatientID",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "StudyTime",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
    "TimezoneOffsetFromUTC",
    "Manufacturer",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
)

UID_LENGTH: Final = 64
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UIDS: Final[Mapping[str, tuple[str, ReasonCode, ReasonCode]]] = {
    "StudyInstanceUID": ("Study Instance UID", "study_uid_missing", "study_uid_illegal"),
    "SOPInstanceUID": ("SOP Instance UID", "sop_uid_missing", "sop_uid_illegal"),
}


def arrival_of(
    header: Dataset, *, path: Path, rules: ViewRules, secret: str, stamp: str | None = None, zone: tzinfo | None = None
) -> Arrival:
    """The rows that one header makes; `zone`: the site's, None for this machine's.

    Raises UnusableStudy when it has no usable UIDs.
    """
    view = frontal(header, rules=rules)
    study = {
        "study_instance_uid": _uid(header, "StudyInstanceUID"),
        "accession_number": _text(header, "AccessionNumber", 64),
        "patient_key": _patient_key(header, secret),
        "patient_sex": _sex(header),
        "patient_age_years": _age_years(header),
        "stat": _is_stat(header),
        "acquired_at": _acquired_at(header, zone),
    }
    instance = {
        "sop_instance_uid": _uid(header, "SOPInstanceUID"),
        "series_instance_uid": _text(header, "SeriesInstanceUID", 64),
        "path": str(path),
        "file_stamp": stamp,
        "decided_under": rules.digest,
        "sop_class_uid": _text(header, "SOPClassUID", 64),
        "modality": _text(header, "Modality", 16),
        "transfer_syntax_uid": _transfer_syntax(header),
        "photometric_interpretation": _text(header, "PhotometricInterpretation", 16),
        "rows": _number(header, "Rows"),
        "columns": _number(header, "Columns"),
        "manufacturer": _text(header, "Manufacturer", 64),
        "evidence": view.evidence,
    }
    decision: dict[str, Any]
    if isinstance(view, Skipped):
        decision = {"state": "skipped", "reason": view.reason, "in_scope": view.in_scope}
    else:
        decision = {"state": "waiting", "view": view.view, "flags": ",".join(view.flags) or None, "in_scope": True}
    return Arrival(study, instance | decision)


def _text(header: Dataset, keyword: str, longest: int) -> str | None:
    """An attribute's first value as printable text; None when it is absent, empty, or not what its VR promises."""
    return text_of(header, keyword).split("\\")[0].strip()[:longest] or None


def is_uid(text: str) -> bool:
    """Whether this is a UID (PS3.5 section 9: digits and dots, at most 64 characters)."""
    return len(text) <= UID_LENGTH and _UID.fullmatch(text) is not None


def _uid(header: Dataset, keyword: str) -> str:
    """An attribute that is a UID. Raises UnusableStudy for anything else."""
    name, missing, illegal = _UIDS[keyword]
    text = _text(header, keyword, 1024)
    if text is None and max(header.keys(), default=0) < (tag_for_keyword(keyword) or 0):
        raise UnusableStudy("truncated", f"the file ends before its {name}; send it again")
    if text is None:
        raise UnusableStudy(missing, f"the header has no {name}; the sender must add one")
    if not is_uid(text):
        long = f"has {len(text)} characters; {UID_LENGTH} are allowed"
        problem = long if len(text) > UID_LENGTH else "holds other characters than digits and dots"
        raise UnusableStudy(illegal, f"its {name} {problem}")
    return text


def _number(header: Dataset, keyword: str) -> int | None:
    text = _text(header, keyword, 10) or ""
    return int(text) if text.isdecimal() and int(text) <= 65535 else None  # US: sixteen bits


def _transfer_syntax(header: Dataset) -> str | None:
    meta = getattr(header, "file_meta", None)
    return _text(meta, "TransferSyntaxUID", 64) if meta is not None else None


def _is_stat(header: Dataset) -> bool:
    return any((_text(header, keyword, 16) or "").upper() in STAT_VALUES for keyword in STAT_ATTRIBUTES)


def _sex(header: Dataset) -> str | None:
    sex = (_text(header, "PatientSex", 16) or "").upper()[:1]
    return sex if sex in {"F", "M", "O"} else None


def _age_years(header: Dataset) -> int | None:
    """Patient's Age (PS3.5: nnnD, nnnW, nnnM or nnnY), else from birth to study date; None when implausible."""
    found = re.fullmatch(r"(\d{1,3})([DWMY])", (_text(header, "PatientAge", 16) or "").upper())
    if found:
        per_year = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[found[2]]
        age = int(int(found[1]) / per_year)
    else:
        born, studied = _date(header, "PatientBirthDate"), _date(header, "StudyDate")
        if born is None or studied is None:
            return None
        age = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    return age if 0 <= age <= 120 else None


def _date(header: Dataset, keyword: str) -> date | None:
    try:
        return datetime.strptime(_text(header, keyword, 8) or "", "%Y%m%d").date()
    except ValueError:
        return None


def _acquired_at(header: Dataset, zone: tzinfo | None) -> datetime | None:
    """The acquisition's moment, else the content's, else the study's; in UTC, by the header's offset if it has one.

    Without Timezone Offset From UTC (0008,0201) DICOM means the site's local time.
    """
    pairs = (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"), ("StudyDate", "StudyTime"))
    texts = [_text(header, "AcquisitionDateTime", 26) or ""]
    texts += [(_text(header, day, 8) or "") + (_text(header, clock, 16) or "") for day, clock in pairs]
    for text in texts:
        if found := re.match(r"(\d{8})(\d{2})(\d{2})(\d{2})?", text):
            try:
                moment = datetime.strptime("".join(part or "00" for part in found.groups()), "%Y%m%d%H%M%S")
                own_offset = re.search(r"[+-]\d{4}$", text)  # a DT value may carry its own (PS3.5 6.2)
                return _in_utc(moment, own_offset[0] if own_offset else _text(header, "TimezoneOffsetFromUTC", 5), zone)
            except (ValueError, OverflowError, OSError):  # 20259999, or a year no clock has
                continue
    return None


def _in_utc(moment: datetime, offset: str | None, zone: tzinfo | None) -> datetime:
    if offset and re.fullmatch(r"[+-]\d{4}", offset):
        return datetime.strptime(f"{moment:%Y%m%d%H%M%S}{offset}", "%Y%m%d%H%M%S%z").astimezone(UTC)
    return moment.replace(tzinfo=zone).astimezone(UTC)  # no zone: this machine's


def _patient_key(header: Dataset, secret: str) -> str | None:
    """A keyed hash of Patient ID and its issuer: the same for the same patient, and no way back without the secret."""
    patient_id = _text(header, "PatientID", 64)
    if patient_id is None:
        return None
    issuer = _text(header, "IssuerOfPatientID", 64) or ""
    return hmac.new(bytes.fromhex(secret), f"{issuer}\x1f{patient_id}".encode(), hashlib.sha256).hexdigest()
