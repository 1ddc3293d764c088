"""A result as every kind of delivery says it: the rows behind it, and of the film's header what says whose it is.

The patient's name and identifiers are read from the film at the moment when something is made, and stored nowhere.
"""

import re
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Final

from pydicom import Dataset
from pydicom.valuerep import TM

from db.base import short
from db.deliveries import Claimed
from db.delivery_content import Content, FilmOfStudy, Predecessor, content_of
from db.session import read_scope
from training.findings import FINDINGS
from training.imaging.dicom import UnusablePixels, element_value, read_header
from worker.context import Context
from worker.delivery.errors import OutOfDate, Refused
from worker.intake.view_evidence import text_of
from worker.ranking import policy, priority

NOT_FOR_DIAGNOSIS: Final = "AI, not for diagnosis"
TEXTS: Final = ("PatientID", "IssuerOfPatientID", "StudyID", "AccessionNumber", "StudyDescription")
NAMES: Final = ("PatientName", "ReferringPhysicianName")
DATES: Final = ("PatientBirthDate", "StudyDate")
TAGS: Final = (
    "SpecificCharacterSet",
    "StudyInstanceUID",
    "SOPInstanceUID",
    "PatientSex",
    "StudyTime",
    *TEXTS,
    *NAMES,
    *DATES,
)


@dataclass(frozen=True)
class FindingResult:
    """One finding of a study. `threshold` None: there is none, and it never counts."""

    finding: str
    probability: float
    threshold: float | None
    counts: bool
    category: str
    snomed_ct: str | None
    radlex: str | None

    @property
    def words(self) -> str:
        return self.finding.replace("_", " ")


@dataclass(frozen=True)
class Result:
    """Content of one study's result. `patient`: Patient and Study modules of its first film, in UTF-8."""

    study_instance_uid: str
    revision: int
    object_uid: str
    predecessor: Predecessor | None
    published_at: datetime
    network: str
    checkpoint_digest: str
    policy_version: int
    category: str
    urgency: float
    flag: str | None
    top_finding: str
    findings: tuple[FindingResult, ...]  # in the vocabulary's order
    films: tuple[FilmOfStudy, ...]
    patient: Dataset

    @property
    def first_finding(self) -> FindingResult:
        """The finding to name first: the one that made the category, else the nearest to its threshold."""
        return next(each for each in self.findings if each.finding == self.top_finding)

    @property
    def version(self) -> str:
        """The checkpoint as people write it."""
        return short(self.checkpoint_digest)


def result_of(context: Context, claimed: Claimed) -> Result:
    """The content of a delivery. Raises OutOfDate, and Refused where the film's header cannot be read now."""
    with read_scope(context.engine) as session:
        content = content_of(session, claimed.id)
        if content is None:
            raise OutOfDate
        if not content.films:
            raise Refused("no_film")
        rules = policy.from_rows(session, content.policy)
    patient = _patient(context, content)
    return Result(
        study_instance_uid=content.study.study_instance_uid,
        revision=content.delivery.revision,
        object_uid=content.delivery.object_uid,
        predecessor=content.predecessor,
        published_at=content.delivery.published_at,
        network=content.checkpoint.network,
        checkpoint_digest=content.checkpoint.digest,
        policy_version=content.policy.version,
        category=content.place.category,
        urgency=content.place.urgency,
        flag=content.place.flag,
        top_finding=content.place.top_finding or FINDINGS[0],
        findings=_findings(content, rules),
        films=content.films,
        patient=patient,
    )


def _findings(content: Content, rules: priority.Policy) -> tuple[FindingResult, ...]:
    probabilities = priority.study_probabilities([film.probabilities for film in content.films])
    thresholds = policy.checkpoint_thresholds(content.checkpoint.header)
    in_force = priority.thresholds_in_force(rules, thresholds)
    by_name = {row.finding: row for row in rules.findings}
    return tuple(
        FindingResult(
            finding=finding,
            probability=float(probability),
            threshold=in_force.get(finding),
            counts=finding in in_force and float(probability) >= in_force[finding],
            category=by_name[finding].category,
            snomed_ct=by_name[finding].snomed_ct,
            radlex=by_name[finding].radlex,
        )
        for finding, probability in zip(FINDINGS, probabilities, strict=True)
    )


def _patient(context: Context, content: Content) -> Dataset:
    film = content.films[0]
    try:
        header = read_header(Path(film.path), limits=context.pixel_limits, specific_tags=TAGS, follow_links=False)
    except UnusablePixels as error:
        raise Refused(error.reason) from None
    except OSError:
        raise Refused("file_unavailable") from None
    uids = (str(element_value(header, "StudyInstanceUID")), str(element_value(header, "SOPInstanceUID")))
    if uids != (content.study.study_instance_uid, film.sop_instance_uid):
        raise Refused("file_replaced")
    return patient_of(header)


def patient_of(header: Dataset) -> Dataset:
    """Patient and Study modules of a header: every attribute is there, in UTF-8, and empty where its value is none that
    the Standard allows."""
    patient = Dataset()
    patient.SpecificCharacterSet = "ISO_IR 192"
    patient.StudyInstanceUID = str(element_value(header, "StudyInstanceUID"))
    for keyword in TEXTS:
        setattr(patient, keyword, text_of(header, keyword).replace("\\", " ")[:64])
    patient.StudyID, patient.AccessionNumber = patient.StudyID[:16], patient.AccessionNumber[:16]
    for keyword in NAMES:
        setattr(patient, keyword, _name(header, keyword))
    for keyword in DATES:
        setattr(patient, keyword, _date(text_of(header, keyword)))
    patient.StudyTime = _time(text_of(header, "StudyTime"))
    sex = text_of(header, "PatientSex").upper()
    patient.PatientSex = sex if sex in ("M", "F", "O") else ""
    return patient


def _name(header: Dataset, keyword: str) -> str:
    """A person's name with its component groups, each of at most 64 characters (PS3.5 table 6.2-1)."""
    groups = text_of(header, keyword).replace("\\", " ").split("=")[:3]
    return "=".join(group.strip()[:64] for group in groups).rstrip("=")


def _date(text: str) -> str:
    try:
        return f"{date.fromisoformat(text):%Y%m%d}" if re.fullmatch(r"\d{8}", text) else ""
    except ValueError:
        return ""


def _time(text: str) -> str:
    try:
        return text if TM(text) is not None and re.fullmatch(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", text) else ""
    except ValueError:
        return ""
