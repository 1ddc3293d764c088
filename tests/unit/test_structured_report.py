"""The structured report: what it says is what was found, whose it is, and the same however often it is made."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import highdicom.sr
import pydicom
import pytest
from pydicom.dataset import Dataset

from db.delivery_content import Predecessor
from tests.support.dicom_files import make_film
from tests.support.results import a_result
from worker.delivery.identifiers import device_uid, object_uid
from worker.delivery.result import NOT_FOR_DIAGNOSIS, Result, patient_of
from worker.delivery.structured_report import structured_report


def encoded(result: Result) -> bytes:
    buffer = BytesIO()
    structured_report(result).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def report() -> highdicom.sr.Comprehensive3DSR:
    """A report as a reader gets it."""
    report = highdicom.sr.srread(BytesIO(encoded(a_result())))
    assert isinstance(report, highdicom.sr.Comprehensive3DSR)
    return report


def groups(report: highdicom.sr.Comprehensive3DSR) -> dict[str, Any]:
    content: Any = report.content  # a MeasurementReport, which highdicom's annotation does not say
    return {group.tracking_identifier: group for group in content.get_image_measurement_groups()}


def test_every_finding_has_its_probability_its_threshold_and_whether_it_counts(report) -> None:
    found = groups(report)
    for finding in a_result().findings:
        group = found[finding.finding]
        values = {each.name.meaning: each.value for each in group.get_measurements()}
        assert values["Probability"] == pytest.approx(finding.probability, abs=1e-6)
        assert values.get("Threshold") == (None if finding.threshold is None else pytest.approx(finding.threshold))
        evaluations = {each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()}
        assert evaluations["At or above threshold"] == ("Yes" if finding.counts else "No")
        assert evaluations["Urgency category"] == f"Urgency category {finding.category}"
        assert group.finding_type.value == (finding.snomed_ct or finding.finding[:16])


def test_it_says_where_the_study_stands_and_that_it_is_not_for_diagnosis(report) -> None:
    place = groups(report)["Reading priority"]
    assert place.get_measurements()[0].value == pytest.approx(1.1234567, abs=1e-6)
    evaluations = {each.name.meaning: each.value.meaning for each in place.get_qualitative_evaluations()}
    assert evaluations == {"Urgency category": "Urgency category A", "Intended use": NOT_FOR_DIAGNOSIS}


def test_it_is_unverified_preliminary_and_names_model_and_device(report) -> None:
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    result = a_result()
    (observer,) = report.content.get_observer_contexts()
    attributes = observer.observer_identifying_attributes
    assert attributes.uid == device_uid(result.checkpoint_digest)
    assert (attributes.model_name, attributes.serial_number) == (result.network, result.checkpoint_digest)
    assert device_uid("other") != attributes.uid, "every checkpoint is another device"


def test_it_is_in_the_films_study_and_refers_to_every_film(report) -> None:
    assert report.StudyInstanceUID == "1.2.3"
    assert (str(report.PatientName), report.PatientID, report.IssuerOfPatientID) == (
        "Müller^Jürgen", "PHANTOM-1", "HOSPITAL")  # fmt: skip
    assert {str(uid) for _, _, uid, _ in report.get_evidence()} == {"1.2.3.1.1", "1.2.3.1.2"}


def test_made_again_it_is_the_same_byte_for_byte() -> None:
    assert encoded(a_result()) == encoded(a_result())


def test_a_successor_names_its_predecessor() -> None:
    before = a_result()
    after = structured_report(
        replace(before, revision=2, object_uid="1.2.3.4", predecessor=Predecessor(before.object_uid, "0d" * 32))
    )
    (study,) = after.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.object_uid
    assert series.SeriesInstanceUID != after.SeriesInstanceUID, "another checkpoint, another series"


def test_uids_differ_by_study_checkpoint_policy_revision_and_kind() -> None:
    known: dict[str, Any] = {"checkpoint_digest": "a", "policy_version": 1, "revision": 1}
    uids = {
        object_uid("sr", "1.2", **known),
        object_uid("sc", "1.2", **known),
        object_uid("sr", "1.3", **known),
        *(object_uid("sr", "1.2", **known | {name: 2}) for name in known if name != "checkpoint_digest"),
        object_uid("sr", "1.2", **known | {"checkpoint_digest": "b"}),
    }
    assert len(uids) == 6
    assert all(uid.is_valid for uid in uids)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PatientSex": "X"}, {"PatientSex": ""}),
        ({"PatientBirthDate": "19500231"}, {"PatientBirthDate": ""}),
        ({"StudyTime": "99"}, {"StudyTime": ""}),
        ({"StudyTime": "0315"}, {"StudyTime": "0315"}),
        ({"PatientName": None, "PatientID": None}, {"PatientName": "", "PatientID": ""}),
        ({"PatientName": "A" * 80}, {"PatientName": "A" * 64}),
        ({"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
         {"PatientName": "Yamada^Tarou=山田^太郎"}),
    ],
)  # fmt: skip
def test_a_header_that_breaks_the_standard_makes_a_report_that_keeps_it(attributes, expected) -> None:
    buffer = BytesIO()
    with pydicom.config.disable_value_validation():
        film = make_film(**attributes)
        film.save_as(buffer, enforce_file_format=True)
    header: Dataset = pydicom.dcmread(BytesIO(buffer.getvalue()))
    patient = patient_of(header)
    assert {name: str(patient[name].value or "") for name in expected} == expected
    report = pydicom.dcmread(BytesIO(encoded(a_result(patient=patient))))
    assert {name: str(report[name].value or "") for name in expected} == expected
