"""The demo: a whole morning in a folder of its own."""

import hashlib
import sqlite3
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from training.findings import FINDINGS, column
from training.imaging.pixels import PixelLimits
from worker.demo import film, night
from worker.demo import run as demo
from worker.demo.canvas import Map
from worker.demo.film import Film
from worker.demo.night import Written
from worker.demo.run import (
    SQL_TO_ASK,
    Morning,
    films_by_study,
    own_settings,
    ranked_findings,
    run_demo,
    surprises,
    thumbnail,
)
from worker.settings import Settings

SHOWN = (1, 12, 13, 17, 22, 24, 28)  # a normal film, PA and lateral, STAT, lateral, hand, cut short, half cut short


@pytest.fixture
def short_night(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven studies with small grey pictures."""

    def grey(film: Film, *, rng: np.random.Generator) -> Map:
        return rng.random((64, 48), dtype=np.float32)

    studies = tuple(study for study in night.plan() if study.number in SHOWN)
    monkeypatch.setattr(film, "picture", grey)
    monkeypatch.setattr(demo, "plan", lambda: studies)


def run(folder: Path, settings: Settings) -> tuple[Morning, str]:
    console = Console(file=StringIO(), width=140, markup=False)  # as the commands print
    morning = run_demo(folder, settings=settings, console=console)
    return morning, console.file.getvalue()  # type: ignore[attr-defined]


def ranks(morning: Morning) -> list[tuple[int, str, str]]:
    with sqlite3.connect(morning.database) as connection:
        query = "SELECT priority_rank, accession_number, category FROM worklist ORDER BY priority_rank"
        return list(connection.execute(query))


@pytest.mark.slow
def test_a_morning_from_nothing_to_a_worklist_and_again(short_night: None, settings: Settings, tmp_path: Path) -> None:
    morning, output = run(tmp_path / "morning", settings)

    assert morning.surprises == ()
    assert (morning.tally.scored, morning.tally.quarantined) == (4, 1)
    listed = ranks(morning)
    assert listed[0][1] == "DEMO-13", "the one STAT study is read first"
    assert {accession for _, accession, _ in listed} == {f"DEMO-{n:02d}" for n in SHOWN if n != 22}, "all but the hand"
    assert Image.open(morning.sheet).size[0] > 1000
    for words in ("phantoms", "mean little", "DEMO-13", "STAT", "balance", "SELECT", str(morning.database)):
        assert words in output
    assert "[/" not in output, "markup that nobody reads"

    with sqlite3.connect(morning.database) as connection:
        assert all(connection.execute(query).fetchall() for query in SQL_TO_ASK)

    films = {each.path: hashlib.sha256(each.path.read_bytes()).hexdigest() for each in morning.written}
    again, _ = run(tmp_path / "morning", settings)
    assert ranks(again) == listed
    assert {each.path: hashlib.sha256(each.path.read_bytes()).hexdigest() for each in again.written} == films


def test_the_demo_never_touches_the_users_database_broker_or_rules(settings: Settings, tmp_path: Path) -> None:
    users = settings.model_copy(update={"broker_url": "redis://site", "modalities": ("CR",), "roots": ("/site",)})
    own = own_settings(users, tmp_path / "morning.db")
    assert own.database_url == f"sqlite:///{tmp_path / 'morning.db'}"
    assert (own.broker_url, own.modalities, own.roots) == (None, ("CR", "DX", "DR"), ())
    assert (own.checkpoint, own.decoders) == (users.checkpoint, users.decoders)


def test_the_finding_that_made_the_rank_comes_first_then_the_most_probable() -> None:
    scores = {column(finding): 0.1 for finding in FINDINGS} | {"mass": 0.7, "effusion": 0.4, "pneumothorax": 0.3}
    assert ranked_findings({"top_finding": "Effusion"}, scores)[:3] == (
        ("Effusion", 0.4),
        ("Mass", 0.7),
        ("Pneumothorax", 0.3),
    )
    assert ranked_findings({"top_finding": None}, None) == ()


def test_a_film_that_did_not_end_as_planned_is_told() -> None:
    written = [
        Written(Path("a"), "normal", "kept", sop_instance_uid="1.1"),
        Written(Path("b"), "lateral", "skipped", "lateral_view", sop_instance_uid="1.2"),
        Written(Path("c"), "a letter", "ignored", "not_dicom"),
    ]
    assert surprises(written, {"1.1": ("scored", ""), "1.2": ("skipped", "lateral_view")}) == ()
    told = surprises(written, {"1.1": ("quarantined", "truncated")})
    assert told == (
        "normal: scored was planned, but it is quarantined truncated",
        "lateral: skipped lateral_view was planned, but it is missing",
    )


def test_a_study_is_shown_by_its_first_film_that_can_be() -> None:
    written = [
        Written(Path("cut"), "s", "quarantined", study_instance_uid="1"),
        Written(Path("whole"), "s", "kept", study_instance_uid="1"),
        Written(Path("lateral"), "t", "skipped", study_instance_uid="2"),
        Written(Path("letter"), "a letter", "ignored"),
    ]
    assert films_by_study(written) == {"1": Path("whole"), "2": Path("lateral")}


def test_a_file_without_a_picture_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("no film")
    assert thumbnail(tmp_path / "letter", limits=PixelLimits()) is None
    assert thumbnail(tmp_path / "missing", limits=PixelLimits()) is None
