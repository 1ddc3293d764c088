"""From folders and files to registered studies: headers only, committed before any message is sent."""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path

import structlog
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session
from tenacity import retry, retry_if_exception, stop_after_delay, wait_exponential

from db import arrivals, lookup
from db.arrivals import Arrival, Placement, Registered
from db.session import is_away, read_scope, session_scope
from training.dicom import UnusablePixels, read_header
from worker.errors import UnusableStudy
from worker.house import House, file_digest
from worker.view_evidence import text_of
from worker.views import HEADER_TAGS, Skipped, ViewRules, frontal

log = structlog.get_logger()

FILES_PER_TRANSACTION = 64

# A database that restarts must not end a backfill of a year. No lease runs out meanwhile, as a worker's would.
patiently = retry(
    retry=retry_if_exception(is_away),
    wait=wait_exponential(multiplier=0.5, max=5),
    stop=stop_after_delay(120),
    reraise=True,
)

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

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass
class Received:
    """What became of the files of one intake."""

    files: int = 0
    new_instances: int = 0
    known: int = 0
    rejected: int = 0
    studies: set[int] = field(default_factory=set)  # ids of the studies that got something new

    def add(self, other: "Received") -> None:
        """Count the files of another intake too."""
        self.files += other.files
        self.new_instances += other.new_instances
        self.known += other.known
        self.rejected += other.rejected
        self.studies |= other.studies


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Every regular file at or below `paths`, folders in sorted order; links to folders are not followed.

    What cannot be walked or opened (a closed folder, a dangling link, a pipe) is yielded as it is: whoever reads it
    will say what is wrong with it, and so it leaves a trace.
    """
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder above is closed
            yield from _files_below(path)
        else:
            yield path


def _files_below(top: Path) -> Iterator[Path]:
    closed: list[Path] = []
    for folder, folders, names in os.walk(top, onerror=lambda error: closed.append(Path(error.filename))):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
        yield from (Path(folder, name) for name in sorted([*names, *links]))
    yield from closed


def receive(house: House, paths: Iterable[Path], *, on_file: Callable[[], None] = lambda: None) -> Received:
    """Register every instance found at `paths`; a file that cannot be one is recorded with its reason.

    Each file is committed with a few neighbours, and what fails costs only itself.
    """
    received, (unscored, secret) = Received(), _placement_and_secret(house)
    found = find_files(paths)
    while files := list(islice(found, FILES_PER_TRANSACTION)):
        read = [(file, _read(house, file, secret)) for file in files]
        taken = _register_all(house, read, unscored, received)
        for file, arrival, known in taken:
            _resolve_taken(house, file, arrival, known, received)
        for _ in files:
            on_file()
    log.info("files_received", files=received.files, instances=received.new_instances, rejected=received.rejected)
    return received


@patiently
def _placement_and_secret(house: House) -> tuple[Placement, str]:
    """Where a new study stands, and what makes this site's patient keys."""
    unscored = house.live().unscored
    with read_scope(house.engine) as session:
        return unscored, lookup.patient_key_secret(session)


def _read(house: House, file: Path, secret: str) -> Arrival | UnusableStudy:
    try:
        path = confined(file, house.settings.roots)
        header = read_header(path, limits=house.pixel_limits, specific_tags=list(INTAKE_TAGS))
        return arrival_of(header, path=path, rules=house.view_rules, secret=secret)
    except UnusablePixels as error:
        return UnusableStudy(error.reason, str(error))
    except UnusableStudy as error:
        return error
    except MemoryError:
        return UnusableStudy("too_large", "its header needs more memory than there is")
    except OSError as error:
        return UnusableStudy("file_unavailable", f"the file cannot be read: {error.strerror}; send it again")


def confined(file: Path, roots: Sequence[str]) -> Path:
    """The file's real path. Raises UnusableStudy when it lies (or links) outside the roots, if there are any."""
    try:
        path = Path(os.path.realpath(file))  # Path.resolve raises where links lead in a circle
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UnusableStudy(
            "file_name_unusable", "its name or a folder's is not UTF-8: rename it, send it again"
        ) from error
    if roots and not any(path.is_relative_to(Path(root).resolve()) for root in roots):
        raise UnusableStudy("outside_roots", "the file lies outside the folders that this site receives from")
    return path


def _register_all(
    house: House,
    read: Sequence[tuple[Path, Arrival | UnusableStudy]],
    unscored: Placement,
    received: Received,
) -> list[tuple[Path, Arrival, Registered]]:
    """Register a few files in one transaction; returns those whose SOP Instance UID was taken.

    A file that the database itself refuses is found by trying each alone: it must not cost its neighbours.
    """
    try:
        counted, taken = _register_together(house, read, unscored)
    except DataError:
        if len(read) > 1:
            return [taken for each in read for taken in _register_all(house, [each], unscored, received)]
        refused = UnusableStudy("header_not_storable", "a value of its header does not fit the database")
        counted, taken = _register_together(house, [(read[0][0], refused)], unscored)
    received.add(counted)
    return taken


@patiently
def _register_together(
    house: House, read: Sequence[tuple[Path, Arrival | UnusableStudy]], unscored: Placement
) -> tuple[Received, list[tuple[Path, Arrival, Registered]]]:
    """One transaction: what it counted, and the arrivals whose SOP Instance UID was taken."""
    received, taken = Received(), []
    with session_scope(house.engine) as session:
        arrivals.forget_rejections(session, [_path_digest(file) for file, _ in read])
        for file, arrival in read:
            received.files += 1
            if isinstance(arrival, UnusableStudy):
                _reject(session, file, arrival)
                received.rejected += 1
                continue
            registered = arrivals.register(session, arrival, placement=unscored)
            if registered.outcome == "new" and registered.study_id is not None:
                received.new_instances += 1
                received.studies.add(registered.study_id)
            elif registered.outcome == "known":
                received.known += 1
            else:
                taken.append((file, arrival, registered))
    return received, taken


@patiently
def _resolve_taken(house: House, file: Path, arrival: Arrival, known: Registered, received: Received) -> None:
    """A SOP Instance UID that is registered from another path: a copy, a file that moved, or two films with one UID."""
    if known.same_study and not os.path.lexists(known.path or ""):
        with session_scope(house.engine) as session:
            received.studies.add(arrivals.relocate(session, arrival))
    elif not (known.same_study and _is_copy(Path(known.path or ""), file, roots=house.settings.roots)):
        reason = UnusableStudy("uid_taken", "its SOP Instance UID belongs to another file; the first one is kept")
        with session_scope(house.engine) as session:
            _reject(session, file, reason)
        received.rejected += 1  # after the commit: whatever comes before it may be tried again
        return
    received.known += 1


def _is_copy(held: Path, file: Path, *, roots: Sequence[str]) -> bool:
    """Whether two files have the same bytes; one that cannot be read is no copy of anything, nor is a link or a pipe
    that has taken the place of the file that was registered."""
    try:
        if confined(held, roots) != held:
            return False
        first, second = held.stat(), file.stat()
        alike = stat.S_ISREG(first.st_mode) and first.st_size == second.st_size
        return alike and file_digest(held) == file_digest(file)
    except (OSError, UnusableStudy):
        return False


def _reject(session: Session, file: Path, reason: UnusableStudy) -> None:
    path = os.fsencode(file.absolute()).decode(errors="replace")
    arrivals.reject(session, path=path, path_digest=_path_digest(file), reason=reason.reason, detail=str(reason))


def _path_digest(file: Path) -> str:
    return hashlib.sha256(os.fsencode(file.absolute())).hexdigest()


# ---------------------------------------------------------------------------------------- a header as column values


def arrival_of(header: Dataset, *, path: Path, rules: ViewRules, secret: str) -> Arrival:
    """The rows that one header makes. Raises UnusableStudy when it has no usable UIDs."""
    view = frontal(header, rules=rules)
    study = {
        "study_instance_uid": _uid(header, "StudyInstanceUID"),
        "accession_number": _text(header, "AccessionNumber", 64),
        "patient_key": _patient_key(header, secret),
        "patient_sex": _sex(header),
        "patient_age_years": _age_years(header),
        "stat": _is_stat(header),
        "acquired_at": _acquired_at(header),
    }
    instance = {
        "sop_instance_uid": _uid(header, "SOPInstanceUID"),
        "series_instance_uid": _text(header, "SeriesInstanceUID", 64),
        "path": str(path),
        "sop_class_uid": _text(header, "SOPClassUID", 64),
        "modality": _text(header, "Modality", 16),
        "transfer_syntax_uid": _transfer_syntax(header),
        "photometric_interpretation": _text(header, "PhotometricInterpretation", 16),
        "rows": _number(header, "Rows"),
        "columns": _number(header, "Columns"),
        "manufacturer": _text(header, "Manufacturer", 64),
        "evidence": view.evidence,
    }
    if isinstance(view, Skipped):
        decision = {"state": "skipped", "reason": view.reason, "in_scope": view.in_scope}
    else:
        decision = {"state": "waiting", "view": view.view, "flags": ",".join(view.flags) or None, "in_scope": True}
    return Arrival(study, instance | decision)


def _text(header: Dataset, keyword: str, longest: int) -> str | None:
    """An attribute's first value as printable text; None when it is absent, empty, or not what its VR promises."""
    return text_of(header, keyword).split("\\")[0].strip()[:longest] or None


def _uid(header: Dataset, keyword: str) -> str:
    """A UID (PS3.5 section 9: digits and dots, at most 64 characters). Raises UnusableStudy for anything else."""
    name = {"StudyInstanceUID": "Study Instance UID", "SOPInstanceUID": "SOP Instance UID"}[keyword]
    code = {"StudyInstanceUID": "study_uid", "SOPInstanceUID": "sop_uid"}[keyword]
    text = _text(header, keyword, 1024)
    if text is None and max(header.keys(), default=0) < (tag_for_keyword(keyword) or 0):
        raise UnusableStudy("truncated", f"the file ends before its {name}; send it again")
    if text is None:
        raise UnusableStudy(f"{code}_missing", f"the header has no {name}; the sender must add one")
    if len(text) > 64:
        raise UnusableStudy(f"{code}_illegal", f"its {name} has {len(text)} characters; 64 are allowed")
    if not _UID.fullmatch(text):
        raise UnusableStudy(f"{code}_illegal", f"its {name} holds other characters than digits and dots")
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


def _acquired_at(header: Dataset) -> datetime | None:
    """The acquisition's moment, else the content's, else the study's; in UTC, by the header's offset if it has one.

    Without Timezone Offset From UTC (0008,0201) DICOM means the site's local time, which is this machine's.
    """
    pairs = (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"), ("StudyDate", "StudyTime"))
    texts = [_text(header, "AcquisitionDateTime", 26) or ""]
    texts += [(_text(header, day, 8) or "") + (_text(header, clock, 16) or "") for day, clock in pairs]
    for text in texts:
        if found := re.match(r"(\d{8})(\d{2})(\d{2})(\d{2})?", text):
            try:
                moment = datetime.strptime("".join(part or "00" for part in found.groups()), "%Y%m%d%H%M%S")
                own_offset = re.search(r"[+-]\d{4}$", text)  # a DT value may carry its own (PS3.5 6.2)
                return _in_utc(moment, own_offset[0] if own_offset else _text(header, "TimezoneOffsetFromUTC", 5))
            except (ValueError, OverflowError, OSError):  # 20259999, or a year no clock has
                continue
    return None


def _in_utc(moment: datetime, offset: str | None) -> datetime:
    if offset and re.fullmatch(r"[+-]\d{4}", offset):
        return datetime.strptime(f"{moment:%Y%m%d%H%M%S}{offset}", "%Y%m%d%H%M%S%z").astimezone(UTC)
    return moment.astimezone(UTC)


# ------------------------------------------------------------------------------------------------------- patients


def _patient_key(header: Dataset, secret: str) -> str | None:
    """A keyed hash of Patient ID and its issuer: the same for the same patient, and no way back without the secret."""
    patient_id = _text(header, "PatientID", 64)
    if patient_id is None:
        return None
    issuer = _text(header, "IssuerOfPatientID", 64) or ""
    return hmac.new(bytes.fromhex(secret), f"{issuer}\x1f{patient_id}".encode(), hashlib.sha256).hexdigest()
