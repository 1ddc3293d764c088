"""Damaged and odd headers make pydicom complain and quote what they hold; none of it leaves the process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dicom_files import make_film, texture

pytestmark = pytest.mark.slow  # starts two processes that decode a dozen films each

# What a sound film holds, and what it is overwritten with: values that break their VR's rules. pydicom warns about
# each of them in its own words.
ODD = {
    "PatientName": ("Phantom^of^Opera", "CANARY=A=B=C=D=E"),
    "PatientAge": ("077Y", "CAN\0"),
    "PatientBirthDate": ("19310217", "CANARYDA"),
    "StudyDate": ("19990217", "CANARYDA"),
    "AcquisitionTime": ("031415", "CANARY"),
    "BodyPartExamined": ("CHEST PA", "CANARY\0!"),
    "WindowCenter": ("1234.5", "CANARY"),
    "WindowWidth": ("2345.6", "CANARY"),
    "RescaleSlope": ("1.0625", "CANARY"),
    "TimezoneOffsetFromUTC": ("+0130", "CANAR"),
    "StudyInstanceUID": ("1.2.826.0.1.99", "CANARY.UID.000"),
}

SCRIPT = """
import sys
from pathlib import Path
from worker import logs
from worker.context import Context
from worker.intake.receive import receive
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions
from worker.settings import Settings
from training.imaging.preprocessing import Preprocessing

folder, style = Path(sys.argv[1]), sys.argv[2]
logs.configure(level="debug", style=style)
url = f"sqlite:///{folder / 'n.db'}"
context = Context(Settings(database_url=url, checkpoint=Path(sys.argv[3]), state_folder=folder))
context.seed()
print(receive(context, [folder / "CANARY_FOLDER"]))
with DecoderPool(DecodeOptions(Preprocessing(size=32), context.pixel_limits, 30.0, 4096), decoders=1) as reader:
    for film in sorted((folder / "CANARY_FOLDER").iterdir()):
        reading = reader.submit(str(film), "1.2.3")
        while (outcome := reading.result()) is None:
            pass
        print(outcome)
"""


def odd_films(folder: Path) -> None:
    folder.mkdir()
    make_film(folder / "CANARY_0.dcm", pixels=texture(), bits=12)
    whole = (folder / "CANARY_0.dcm").read_bytes()
    (folder / "CANARY_1.dcm").write_bytes(whole[: len(whole) // 2])
    for number, (keyword, (sound, odd)) in enumerate(ODD.items(), 2):
        film = folder / f"CANARY_{number}.dcm"
        uids = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), f"1.2.3.{number}")
        make_film(film, pixels=texture(), bits=12, **(uids | {keyword: sound}))  # no UID holds its digits by chance
        content = film.read_bytes()
        assert content.count(sound.encode()) == 1, keyword
        film.write_bytes(content.replace(sound.encode(), odd.encode()))
        (folder / f"CANARY_{number}_cut.dcm").write_bytes((folder / f"CANARY_{number}.dcm").read_bytes()[:-9])


def test_no_header_value_reaches_a_terminal_or_a_log_even_with_warnings_on(tmp_path: Path, untrained_checkpoint: Path):
    odd_films(tmp_path / "CANARY_FOLDER")
    for style in ("console", "json"):
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", SCRIPT, str(tmp_path), style, str(untrained_checkpoint)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "files=24" in done.stdout
        assert "CANA" not in done.stdout + done.stderr
        assert "Warning" not in done.stderr
