"""A result as deliveries say it, made by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydicom.uid import DigitalXRayImageStorageForPresentation

from db.delivery_content import FilmOfStudy
from tests.support.dicom_files import make_film
from training.findings import FINDINGS
from worker.delivery.identifiers import object_uid
from worker.delivery.result import FindingResult, Result, patient_of
from worker.ranking.priority import DEFAULT_POLICY

DIGEST = "5e" * 32


def a_result(kind: str = "sr", **changes: Any) -> Result:
    """Two films, all eleven findings (pneumothorax first), a patient with an umlaut."""
    header = make_film(
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jürgen",
        PatientBirthDate="19500131",
        PatientSex="M",
        IssuerOfPatientID="HOSPITAL",
        StudyInstanceUID="1.2.3",
    )
    films = tuple(
        FilmOfStudy(
            instance_id=n,
            path=f"/films/{n}.dcm",
            sop_class_uid=DigitalXRayImageStorageForPresentation,
            series_instance_uid="1.2.3.1",
            sop_instance_uid=f"1.2.3.1.{n}",
            pixel_digest=None,
            rows=96,
            columns=80,
            probabilities=(),
        )
        for n in (1, 2)
    )
    rows = {row.finding: row for row in DEFAULT_POLICY.findings}
    findings = tuple(
        FindingResult(
            finding=finding,
            probability=0.87654321 if finding == "Pneumothorax" else 0.1,
            threshold=None if finding == "Hernia" else 0.5,
            counts=finding == "Pneumothorax",
            category=rows[finding].category,
            snomed_ct=rows[finding].snomed_ct,
            radlex=rows[finding].radlex,
        )
        for finding in FINDINGS
    )
    result = Result(
        study_instance_uid="1.2.3",
        revision=1,
        object_uid=object_uid(kind, "1.2.3", checkpoint_digest=DIGEST, policy_version=1, revision=1),
        predecessor=None,
        published_at=datetime(2026, 11, 28, 3, 15, tzinfo=UTC),
        network="mobilenet",
        checkpoint_digest=DIGEST,
        policy_version=1,
        category="A",
        urgency=1.1234567,
        flag=None,
        top_finding="Pneumothorax",
        findings=findings,
        films=films,
        patient=patient_of(header),
    )
    return replace(result, **changes)
