"""The FHIR bundle: valid R4, and nothing in it is created twice."""

import json
from dataclasses import replace
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from pydicom.dataset import Dataset

from db.delivery_content import Predecessor
from tests.support.results import a_result
from tests.support.values import present
from worker.delivery.fhir import bundle

Resource = dict[str, Any]


def resources(made: Resource, kind: str) -> list[Resource]:
    return [each["resource"] for each in made["entry"] if each["resource"]["resourceType"] == kind]


def test_it_is_a_valid_transaction() -> None:
    found = Bundle.model_validate(json.loads(json.dumps(bundle(a_result("fhir")))))
    assert found.type == "transaction"
    assert len(present(found.entry)) == 1 + 12 + 1


def test_every_resource_is_created_only_where_its_identifier_is_unknown() -> None:
    made = bundle(a_result("fhir"))
    for entry in made["entry"]:
        (identifier,) = entry["resource"]["identifier"]
        assert entry["request"]["ifNoneExist"] == f"identifier={identifier['system']}|{identifier['value']}"
    assert len({entry["request"]["ifNoneExist"] for entry in made["entry"]}) == len(made["entry"])
    assert made == bundle(a_result("fhir")), "made again it is the same"


def test_every_reference_within_the_bundle_leads_to_an_entry() -> None:
    made = bundle(a_result("fhir"))
    urls = {entry["fullUrl"] for entry in made["entry"]}
    (report,) = resources(made, "DiagnosticReport")
    assert {each["reference"] for each in report["result"]} <= urls
    assert {each["device"]["reference"] for each in resources(made, "Observation")} <= urls


def test_each_finding_is_an_observation_with_its_values() -> None:
    result = a_result("fhir")
    by_code = {each["code"]["coding"][0]["code"]: each for each in resources(bundle(result), "Observation")}
    for finding in result.findings:
        observation = by_code[finding.snomed_ct or finding.finding]
        assert observation["valueQuantity"]["value"] == pytest.approx(finding.probability, abs=1e-6)
        if finding.threshold is None:
            assert observation.keys().isdisjoint({"interpretation", "referenceRange"}), "nothing says that it is normal"
        else:
            assert observation["interpretation"][0]["coding"][0]["code"] == ("POS" if finding.counts else "NEG")
            assert observation["referenceRange"][0]["high"]["value"] == finding.threshold
        assert observation["component"][0]["valueString"] == finding.category
    assert by_code["urgency"]["valueQuantity"]["value"] == pytest.approx(result.urgency, abs=1e-6)


def test_the_report_is_preliminary_refers_to_the_study_and_says_what_it_is_for() -> None:
    (report,) = resources(bundle(a_result("fhir")), "DiagnosticReport")
    assert report["status"] == "preliminary"
    assert report["imagingStudy"][0]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}
    assert report["subject"]["identifier"]["value"] == "PHANTOM-1"
    assert report["basedOn"][0]["identifier"]["value"] == "A1"
    assert report["conclusion"] == "AI, not for diagnosis; unverified. Urgency category A: Pneumothorax."
    assert "Müller" not in json.dumps(report), "a name is not needed"


def test_a_successor_names_its_predecessor() -> None:
    before = a_result("fhir")
    after = replace(before, object_uid="1.2.3.9", predecessor=Predecessor(before.object_uid, "0d" * 32))
    made = bundle(after)
    (report,) = resources(made, "DiagnosticReport")
    assert report["extension"][0]["valueReference"]["identifier"]["value"] == f"urn:oid:{before.object_uid}"
    Bundle.model_validate(json.loads(json.dumps(made)))


def test_a_film_without_patient_makes_a_valid_bundle() -> None:
    result, patient = a_result("fhir"), Dataset()
    patient.update(result.patient)
    patient.PatientID = patient.AccessionNumber = ""
    made = bundle(replace(result, patient=patient))
    assert "subject" not in resources(made, "DiagnosticReport")[0]
    Bundle.model_validate(json.loads(json.dumps(made)))
