"""A DICOM structured report: Comprehensive 3D SR with TID 1500, as IHE's profile AI Results (AIR) asks.

One measurement group per finding holds its probability, the threshold in force and whether it counts; one more holds
where the study stands on the worklist. The document is unverified and preliminary: no person has looked at it.
"""

from datetime import UTC
from importlib.metadata import version
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage

from worker.delivery.identifiers import device_uid, part_uid, series_uid
from worker.delivery.result import NOT_FOR_DIAGNOSIS, FindingResult, Result

MANUFACTURER: Final = "Nightread"
SCHEME: Final = "99NIGHTREAD"  # our own codes: docs/reference/conformance.md lists them
SERIES_NUMBER: Final = 9001
NO_UNITS: Final = codes.UCUM.NoUnits
PROBABILITY: Final = codes.DCM.Probability
PROCEDURE: Final = codes.SCT.ImagingProcedure
THRESHOLD: Final = CodedConcept("threshold", SCHEME, "Threshold")
COUNTS: Final = CodedConcept("counts", SCHEME, "At or above threshold")
CATEGORY: Final = CodedConcept("category", SCHEME, "Urgency category")
URGENCY: Final = CodedConcept("urgency", SCHEME, "Urgency")
PLACE: Final = CodedConcept("reading-priority", SCHEME, "Reading priority")
USE: Final = CodedConcept("intended-use", SCHEME, "Intended use")
NOT_DIAGNOSTIC: Final = CodedConcept("not-for-diagnosis", SCHEME, NOT_FOR_DIAGNOSIS)
YES, NO = codes.SCT.Yes, codes.SCT.No


def structured_report(result: Result) -> Comprehensive3DSR:
    """The report of one result."""
    algorithm = AlgorithmIdentification(
        name=result.network,
        version=result.version,
        parameters=[
            f"checkpoint SHA-256 {result.checkpoint_digest}",
            f"policy version {result.policy_version}",
            NOT_FOR_DIAGNOSIS,
        ],
    )
    report = Comprehensive3DSR(
        evidence=[_evidence(result, number) for number in range(len(result.films))],
        content=MeasurementReport(
            observation_context=_observer(result),
            procedure_reported=PROCEDURE,
            imaging_measurements=[
                _place(result, algorithm),
                *(_finding(result, finding, algorithm) for finding in result.findings),
            ],
        ),
        series_instance_uid=series_uid("sr", result.study_instance_uid, checkpoint_digest=result.checkpoint_digest),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result.object_uid,
        instance_number=result.revision,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=result.network,
        software_versions=[version("nightread"), result.version],
        device_serial_number=result.checkpoint_digest,
        series_description=f"Nightread: {NOT_FOR_DIAGNOSIS}",
        is_complete=True,
        previous_versions=[predecessor] if (predecessor := _predecessor(result)) else None,
        content_date=result.published_at.astimezone(UTC).date(),
        content_time=result.published_at.astimezone(UTC).time(),
    )
    describe(report, result)
    return report


def describe(dataset: Dataset, result: Result) -> None:
    """Attributes that all objects of a result share, and that highdicom leaves out or takes from the clock."""
    at = result.published_at.astimezone(UTC)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = f"{at:%Y%m%d}", f"{at:%H%M%S.%f}"
    dataset.TimezoneOffsetFromUTC = "+0000"
    for equipment in dataset.ContributingEquipmentSequence:  # highdicom itself
        equipment.ContributionDateTime = f"{at:%Y%m%d%H%M%S.%f}"
    for keyword in ("IssuerOfPatientID", "StudyDescription"):
        if value := result.patient.get(keyword):
            setattr(dataset, keyword, value)


def _evidence(result: Result, number: int) -> Dataset:
    """One film as highdicom refers to it; patient and study come from the first."""
    film, evidence = result.films[number], Dataset()
    evidence.update(result.patient)
    evidence.SOPClassUID, evidence.SOPInstanceUID = film.sop_class_uid, film.sop_instance_uid
    evidence.SeriesInstanceUID = film.series_instance_uid
    return evidence


def _predecessor(result: Result) -> Dataset | None:
    """The report before this one, as highdicom names it (PS3.3 C.17.2.2)."""
    if result.predecessor is None:
        return None
    before, digest = Dataset(), result.predecessor.checkpoint_digest
    before.StudyInstanceUID = result.study_instance_uid
    before.SeriesInstanceUID = series_uid("sr", result.study_instance_uid, checkpoint_digest=digest)
    before.SOPClassUID, before.SOPInstanceUID = Comprehensive3DSRStorage, result.predecessor.object_uid
    return before


def _observer(result: Result) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(result.checkpoint_digest),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=result.network,
        serial_number=result.checkpoint_digest,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device))


def _finding(
    result: Result, finding: FindingResult, algorithm: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    measurements = [Measurement(PROBABILITY, round(finding.probability, 6), NO_UNITS)]
    if finding.threshold is not None:
        measurements.append(Measurement(THRESHOLD, round(finding.threshold, 6), NO_UNITS))
    return _group(
        result,
        finding.finding,
        finding_code(finding),
        algorithm,
        measurements=measurements,
        evaluations=[
            QualitativeEvaluation(COUNTS, YES if finding.counts else NO),
            QualitativeEvaluation(CATEGORY, _category(finding.category)),
        ],
    )


def _place(result: Result, algorithm: AlgorithmIdentification) -> MeasurementsAndQualitativeEvaluations:
    evaluations = [
        QualitativeEvaluation(CATEGORY, _category(result.category)),
        QualitativeEvaluation(USE, NOT_DIAGNOSTIC),
    ]
    measurements = [Measurement(URGENCY, round(result.urgency, 6), NO_UNITS)]
    return _group(result, "Reading priority", PLACE, algorithm, measurements=measurements, evaluations=evaluations)


def _group(
    result: Result,
    name: str,
    code: CodedConcept,
    algorithm: AlgorithmIdentification,
    *,
    measurements: list[Measurement],
    evaluations: list[QualitativeEvaluation],
) -> MeasurementsAndQualitativeEvaluations:
    films = [SourceImageForMeasurementGroup(film.sop_class_uid, film.sop_instance_uid) for film in result.films]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=part_uid(result.object_uid, name), identifier=name),
        finding_type=code,
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=films,
    )


def finding_code(finding: FindingResult) -> CodedConcept:
    """The finding's SNOMED CT code, or ours where the policy knows none."""
    if finding.snomed_ct is not None:
        return CodedConcept(finding.snomed_ct, "SCT", finding.words)
    return CodedConcept(finding.finding[:16], SCHEME, finding.words)


def _category(letter: str) -> CodedConcept:
    return CodedConcept(f"category-{letter}", SCHEME, f"Urgency category {letter}")
