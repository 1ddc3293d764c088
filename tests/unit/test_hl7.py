"""The HL7 message: its segments, its escapes, and what an acknowledgement means."""

from dataclasses import replace

import pytest
from pydicom.dataset import Dataset

from db.delivery_content import Predecessor
from tests.support.results import a_result
from worker.delivery.errors import Refused
from worker.delivery.hl7 import escaped, judge, message
from worker.delivery.identifiers import message_id
from worker.delivery.result import Result

URL = "mllp://ris.example:2575/RIS/HOSPITAL"


def segments(result: Result) -> list[list[str]]:
    """Fields by their number: fields[3] is OBX-3, and MSH-1 is the separator itself."""
    text = message(result, url=URL, sender="NIGHTREAD").decode()
    assert text.endswith("\r")
    rows = [segment.split("|") for segment in text.rstrip("\r").split("\r")]
    rows[0].insert(1, "|")
    return rows


def test_the_header_names_both_sides_utf_8_and_an_id_that_stays_the_same() -> None:
    (header, *_), again = segments(a_result("oru")), segments(a_result("oru"))[0]
    assert header == again
    assert (header[2], header[3], header[5], header[6]) == ("^~\\&", "NIGHTREAD", "RIS", "HOSPITAL")
    assert (header[7], header[9], header[11], header[12]) == ("20261128031500+0000", "ORU^R01^ORU_R01", "P", "2.5.1")
    assert header[10] == message_id(a_result("oru").object_uid)
    assert len(header[10]) <= 20
    assert header[18] == "UNICODE UTF-8"


def test_the_patient_and_the_order_are_the_films() -> None:
    patient, order = segments(a_result("oru"))[1:3]
    assert (patient[3], patient[5], patient[7], patient[8]) == (
        "PHANTOM-1^^^HOSPITAL^MR", "Müller^Jürgen", "19500131", "M")  # fmt: skip
    assert (order[2], order[3], order[7], order[24], order[25]) == ("A1", "A1", "20260101030000", "RAD", "P")


def test_every_finding_is_an_observation_with_threshold_and_flag() -> None:
    result = a_result("oru")
    observations = {row[3].split("^")[1]: row for row in segments(result) if row[0] == "OBX"}
    assert observations["Study Instance UID"][5] == "1.2.3"
    assert observations["Urgency category"][5] == "A"
    assert float(observations["Urgency"][5]) == pytest.approx(result.urgency, abs=1e-6)
    for finding in result.findings:
        row = observations[finding.words]
        assert float(row[5]) == pytest.approx(finding.probability, abs=1e-6)
        assert row[3].split("^")[0] == (finding.snomed_ct or finding.finding)
        assert row[11] == "P"
        if finding.threshold is None:
            assert (row[7], row[8]) == ("", ""), "nothing says that it is normal"
        else:
            assert (row[7], row[8]) == ("<0.500000", "A" if finding.counts else "N")
    assert [row[1] for row in segments(result) if row[0] == "OBX"] == [str(n) for n in range(1, 15)]


def test_it_says_that_it_is_not_for_diagnosis_and_what_it_replaces() -> None:
    before = a_result("oru")
    after = replace(before, object_uid="1.2.3.9", predecessor=Predecessor(before.object_uid, "0d" * 32))
    notes = [row[3] for row in segments(after) if row[0] == "NTE"]
    names = [row[0] for row in segments(after)]
    assert names == ["MSH", "PID", "OBR", *["NTE"] * 3, *["OBX"] * 14], "behind OBR, so that they hold for all of it"
    assert notes[0] == "AI, not for diagnosis"
    assert notes[-1] == f"Replaces message {message_id(before.object_uid)}."


def test_separators_and_line_ends_in_a_name_make_no_field_and_no_segment() -> None:
    assert escaped("a|b^c&d~e\\f\rg\nh") == "a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f\\X0D\\g\\X0A\\h"
    result = a_result("oru")
    patient = Dataset()
    patient.update(result.patient)
    patient.PatientID, patient.AccessionNumber = "P|1^2&3~4", "A|1"
    assert len(segments(replace(result, patient=patient))) == len(segments(result))
    assert segments(replace(result, patient=patient))[1][3] == "P\\F\\1\\S\\2\\T\\3\\R\\4^^^HOSPITAL^MR"


def test_a_film_without_patient_and_accession_number_still_makes_a_message() -> None:
    result = a_result("oru")
    patient = Dataset()
    patient.update(result.patient)
    patient.PatientName = patient.PatientID = patient.AccessionNumber = patient.IssuerOfPatientID = ""
    rows = segments(replace(result, patient=patient))
    assert rows[1][:2] == ["PID", "1"]
    assert rows[2][3] == "1.2.3"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("MSH|^~\\&|RIS\rMSA|AA|ID7\r", None),
        ("MSH|^~\\&|RIS\rMSA|CA|ID7|fine\r", None),
        ("MSH#^~\\&#RIS\rMSA#AA#ID7\r", None),
        ("MSH|^~\\&|RIS\nMSA|AA|ID7\n", None),
        ("MSH|^~\\&|RIS\rMSA|AE|ID7|Kanarienvogel\r", "ack_error"),
        ("MSH|^~\\&|RIS\rMSA|AR|ID7\r", "ack_rejected"),
        ("MSH|^~\\&|RIS\rMSA|CR|ID7\r", "ack_rejected"),
        ("MSH|^~\\&|RIS\rMSA|AA|ANOTHER\r", "ack_unreadable"),
        ("MSH|^~\\&|RIS\rMSA|XX|ID7\r", "ack_unreadable"),
        ("MSH|^~\\&|RIS\r", "ack_unreadable"),
        ("", "ack_unreadable"),
    ],
)
def test_an_acknowledgement_means_what_its_code_says(answer: str, reason: str | None) -> None:
    if reason is None:
        judge(answer, control_id="ID7")
        return
    with pytest.raises(Refused) as refusal:
        judge(answer, control_id="ID7")
    assert refusal.value.reason == reason
    assert "Kanarienvogel" not in str(refusal.value)
