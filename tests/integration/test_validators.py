"""Objects that are sent, before the validators of others: an archive takes invalid ones too, so it proves nothing."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from db import deliveries
from db.delivery_content import Predecessor
from db.session import session_scope
from tests.support.contexts import MakeContext
from tests.support.debian import need
from tests.support.dicom_files import make_film, texture
from tests.support.results import a_result
from worker.delivery import outbox
from worker.delivery.result import patient_of, result_of
from worker.delivery.secondary_capture import secondary_capture
from worker.delivery.structured_report import structured_report
from worker.intake.receive import receive
from worker.scoring.pipeline import score_until_done
from worker.scoring.scorer import open_scorer
from worker.setting_peers import Peer

FEW = ("Pleural_Thickening", "Hernia")  # without a code, and without a threshold
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"revision": 2, "predecessor": Predecessor("2.25.1", "ab" * 32)},
        {"patient": patient_of(make_film(PatientName=None, PatientID=None, StudyDate="", AccessionNumber="A" * 16))},
    ],
)
def test_dciodvfy_finds_no_error_in_a_report(changes: dict[str, Any], tmp_path: Path) -> None:
    need("dciodvfy", packages="dicom3tools")
    structured_report(a_result(**changes)).save_as(tmp_path / "report.dcm", enforce_file_format=True)
    text = output("dciodvfy", "-new", str(tmp_path / "report.dcm"))
    assert "Comprehensive3DSR" in text
    assert "Error" not in text


def test_dsrdump_reads_a_report(report: Path) -> None:
    need("dsrdump", packages="dcmtk")
    text = output("dsrdump", str(report))
    assert 'NUM:(,,"Probability")="0.1"' in text
    assert "E: " not in text


def test_dicom_sr_validator_finds_no_error_in_a_report(report: Path) -> None:
    need("DicomSRValidator", packages="pixelmed-apps libpixelmed-java default-jre-headless")
    options = " ".join(f"-D{name}={value}" for name, value in JAVA.items())
    text = output("DicomSRValidator", str(report), JDK_JAVA_OPTIONS=options)
    assert "Found Root Template TID_1500" in text
    assert "IOD validation complete" in text
    assert "Error" not in text


@pytest.fixture(scope="module")
def picture(make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of a film that was scored as in any night."""
    archive = Peer(name="archive", ae_title="ARCHIVE", host="archive.example")
    context = make_context(peers=(archive,), deliver={"sc": ("archive",), "quiet_seconds": 0})
    path = context.state_folder / "film.dcm"
    make_film(path, pixels=texture(600, 500), bits=12, PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100")
    receive(context, [path])
    with open_scorer(context) as scorer:
        score_until_done(scorer)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        claimed = deliveries.claim(session, worker="test", lease_minutes=1)
    assert claimed is not None
    made = tmp_path_factory.mktemp("picture") / "picture.dcm"
    secondary_capture(context, result_of(context, claimed)).save_as(made, enforce_file_format=True)
    return made


def test_dciodvfy_finds_no_error_in_a_picture(picture: Path) -> None:
    need("dciodvfy", packages="dicom3tools")
    text = output("dciodvfy", "-new", str(picture))
    assert "SCImage" in text
    assert "Error" not in text


def test_a_picture_has_its_films_shape_and_the_colours_of_a_heat_map(picture: Path) -> None:
    image = pydicom.dcmread(picture)
    assert (image.Rows, image.Columns) == (1024 + 122, 853)
    film = image.pixel_array[122:]
    assert (film.max(axis=2) > film.min(axis=2)).any(), "a heat map has colours"
