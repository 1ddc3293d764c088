"""Objects that are sent, before the validators of others: an archive takes invalid ones too, so it proves nothing."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.debian import need
from tests.support.results import a_result
from worker.delivery.structured_report import structured_report

FEW = ("Pneumothorax", "Pleural_Thickening", "Hernia")  # with a code and without, with a threshold and without
# Java 17 counts what an XPath expression costs, and the validator's cost more than it allows.
JAVA = {f"jdk.xml.xpath{name}Limit": "0" for name in ("TotalOp", "ExprOp", "ExprGrp")}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.dcm"
    result = a_result()
    few = tuple(each for each in result.findings if each.finding in FEW)
    structured_report(replace(result, findings=few)).save_as(path, enforce_file_format=True)
    return path


def output(*command: str, **environment: str) -> str:
    found = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return found.stdout


def test_dciodvfy_finds_no_error_in_a_report(report: Path) -> None:
    need("dciodvfy", packages="dicom3tools")
    said = output("dciodvfy", "-new", str(report))
    assert "Comprehensive3DSR" in said
    assert "Error" not in said


def test_dsrdump_reads_a_report(report: Path) -> None:
    need("dsrdump", packages="dcmtk")
    said = output("dsrdump", str(report))
    assert 'NUM:(,,"Probability")="0.876543"' in said
    assert "E: " not in said


def test_dicom_sr_validator_finds_no_error_in_a_report(report: Path) -> None:
    need("DicomSRValidator", packages="pixelmed-apps libpixelmed-java default-jre-headless")
    options = " ".join(f"-D{name}={value}" for name, value in JAVA.items())
    said = output("DicomSRValidator", str(report), JDK_JAVA_OPTIONS=options)
    assert "Found Root Template TID_1500" in said
    assert "IOD validation complete" in said
    assert "Error" not in said
