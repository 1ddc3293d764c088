"""FHIR R4: one transaction Bundle with a DiagnosticReport, its Observations and the Device that made them.

Each is created only where the server has none with the same identifier, so that a Bundle sent twice adds nothing. The
patient and the imaging study belong to other systems: they are referred to by their identifiers.
"""

import uuid
from datetime import UTC
from importlib.metadata import version
from typing import Any, Final

from worker.delivery.identifiers import device_uid, part_uid
from worker.delivery.result import NOT_FOR_DIAGNOSIS, FindingResult, Result

Resource = dict[str, Any]

SNOMED: Final = "http://snomed.info/sct"
OUR_CODES: Final = "urn:nightread:code"
UCUM: Final = "http://unitsofmeasure.org"
OF_UIDS: Final = "urn:ietf:rfc3986"
TERMINOLOGY: Final = "http://terminology.hl7.org/CodeSystem"
REPLACES: Final = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-replaces"
PRELIMINARY: Final = "preliminary"  # nobody has verified it
NOTE: Final = f"{NOT_FOR_DIAGNOSIS}; unverified"


def bundle(result: Result) -> Resource:
    """The transaction of one result."""
    device = _device(result)
    observations = [_place(result), *(_finding(result, finding) for finding in result.findings)]
    resources = [device, *observations, _report(result, observations)]
    return {"resourceType": "Bundle", "type": "transaction", "entry": [_entry(resource) for resource in resources]}


def _entry(resource: Resource) -> Resource:
    (identifier,) = resource["identifier"]
    condition = f"identifier={identifier['system']}|{identifier['value']}"
    request = {"method": "POST", "url": resource["resourceType"], "ifNoneExist": condition}
    return {"fullUrl": _full_url(resource), "resource": resource, "request": request}


def _full_url(resource: Resource) -> str:
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, resource['identifier'][0]['value'])}"


def _identifier(uid: str, *, system: str = OF_UIDS) -> Resource:
    return {"system": system, "value": f"urn:oid:{uid}"}


def _device(result: Result) -> Resource:
    return {
        "resourceType": "Device",
        "identifier": [_identifier(device_uid(result.checkpoint_digest))],
        "status": "active",
        "manufacturer": "Nightread",
        "serialNumber": result.checkpoint_digest,
        "deviceName": [{"name": f"Nightread {result.network}", "type": "model-name"}],
        "version": [{"value": result.version}, {"value": version("nightread")}],
        "note": [{"text": NOTE}],
    }


def _report(result: Result, observations: list[Resource]) -> Resource:
    report: Resource = {
        "resourceType": "DiagnosticReport",
        "identifier": [_identifier(result.object_uid)],
        "status": PRELIMINARY,
        "category": [_concept(f"{TERMINOLOGY}/v2-0074", "RAD", "Radiology")],
        "code": _concept("http://loinc.org", "18748-4", "Diagnostic imaging study"),
        **_about(result),
        "result": [{"reference": _full_url(each)} for each in observations],
        "imagingStudy": [_study(result)],
        "conclusion": _conclusion(result),
    }
    if result.patient.AccessionNumber:
        accession = {
            "type": _concept(f"{TERMINOLOGY}/v2-0203", "ACSN", "Accession ID"),
            "value": str(result.patient.AccessionNumber),
        }
        report["basedOn"] = [{"type": "ServiceRequest", "identifier": accession}]
    if result.predecessor is not None:
        before = {"type": "DiagnosticReport", "identifier": _identifier(result.predecessor.object_uid)}
        report["extension"] = [{"url": REPLACES, "valueReference": before}]
    return report


def _conclusion(result: Result) -> str:
    counting = [finding.words for finding in result.findings if finding.counts]
    found = ", ".join(counting) or "no finding at or above its threshold"
    return f"{NOTE}. Urgency category {result.category}: {found}."


def _place(result: Result) -> Resource:
    return _observation(
        result,
        "Reading priority",
        _concept(OUR_CODES, "urgency", "Urgency"),
        value=result.urgency,
        category=result.category,
    )


def _finding(result: Result, finding: FindingResult) -> Resource:
    code = (SNOMED, finding.snomed_ct) if finding.snomed_ct else (OUR_CODES, finding.finding)
    observation = _observation(
        result,
        finding.finding,
        _concept(*code, finding.words),
        value=finding.probability,
        category=finding.category,
    )
    if finding.threshold is not None:
        interpretation = ("POS", "Positive") if finding.counts else ("NEG", "Negative")
        observation["interpretation"] = [_concept(f"{TERMINOLOGY}/v3-ObservationInterpretation", *interpretation)]
        range_ = {"high": _quantity(finding.threshold), "text": "below the threshold from which the finding counts"}
        observation["referenceRange"] = [range_]
    return observation


def _observation(result: Result, name: str, code: Resource, *, value: float, category: str) -> Resource:
    return {
        "resourceType": "Observation",
        "identifier": [_identifier(part_uid(result.object_uid, name))],
        "status": PRELIMINARY,
        "category": [_concept(f"{TERMINOLOGY}/observation-category", "imaging", "Imaging")],
        "code": code,
        **_about(result),
        "valueQuantity": _quantity(value),
        "device": {"reference": _full_url({"identifier": [_identifier(device_uid(result.checkpoint_digest))]})},
        "derivedFrom": [_study(result)],
        "component": [{"code": _concept(OUR_CODES, "category", "Urgency category"), "valueString": category}],
        "note": [{"text": NOTE}],
    }


def _about(result: Result) -> Resource:
    """Whose it is, and since when it is known."""
    about: Resource = {"issued": result.published_at.astimezone(UTC).isoformat(timespec="milliseconds")}
    if result.patient.PatientID:
        identifier: Resource = {
            "type": _concept(f"{TERMINOLOGY}/v2-0203", "MR", "Medical record number"),
            "value": str(result.patient.PatientID),
        }
        if result.patient.IssuerOfPatientID:
            identifier["assigner"] = {"display": str(result.patient.IssuerOfPatientID)}
        about["subject"] = {"type": "Patient", "identifier": identifier}
    return about


def _study(result: Result) -> Resource:
    return {"type": "ImagingStudy", "identifier": _identifier(result.study_instance_uid, system="urn:dicom:uid")}


def _quantity(value: float) -> Resource:
    return {"value": round(value, 6), "unit": "1", "system": UCUM, "code": "1"}


def _concept(system: str, code: str, display: str) -> Resource:
    return {"coding": [{"system": system, "code": code, "display": display}]}
