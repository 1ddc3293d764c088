"""The demo: a whole morning in a folder of its own."""

import hashlib
import sqlite3
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from training.checkpoint import load_checkpoint, read_header
from training.findings import FINDINGS
from worker.demo import film, night
from worker.demo import run as demo
from worker.demo.canvas import Map
from worker.demo.film import Film, picture
from worker.demo.learn import CHECKPOINT, PURPOSE, ROWS, draw_films, main, phantom
from worker.demo.night import Written
from worker.demo.run import SQL_TO_ASK, Morning, Place, head_line, own_settings, run_demo, surprises
from worker.scoring.inference import Classifier
from worker.settings import Settings

SHOWN = (1, 10, 17, 18, 20, 29, 33)  # a normal film, lateral, PA and lateral, STAT, hand, cut short, half cut short


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
    assert listed[0][1] == "DEMO-18", "the one STAT study is read first"
    assert {accession for _, accession, _ in listed} == {f"DEMO-{n:02d}" for n in SHOWN if n != 20}, "all but the hand"
    assert Image.open(morning.sheet).size[0] > 1000
    page = (morning.folder / "morning.html").read_text()
    for words in ("phantoms", "learned from", "DEMO-18", "a person marked it STAT", "7 studies = 4 scored", "SELECT"):
        assert words in output
    assert PURPOSE in page, "the page says by what it was ranked"
    scored, unread = output.split("could not read these")
    assert "DEMO-10" not in scored
    assert "DEMO-10" in unread
    assert "The film is a lateral view." in unread
    assert "[/" not in output, "markup that nobody reads"

    with sqlite3.connect(morning.database) as connection:
        assert all(connection.execute(query).fetchall() for query in SQL_TO_ASK)

    films = {each.path: hashlib.sha256(each.path.read_bytes()).hexdigest() for each in morning.written}
    again, repeated = run(tmp_path / "morning", settings)
    assert ranks(again) == listed
    assert repeated == output
    assert {each.path: hashlib.sha256(each.path.read_bytes()).hexdigest() for each in again.written} == films


@pytest.mark.slow
def test_pneumothoraces_come_first_and_normal_films_last(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole night, drawn smaller."""
    monkeypatch.setattr(film, "picture", partial(picture, rows=ROWS))
    morning, output = run(tmp_path / "morning", settings)
    assert morning.surprises == ()
    assert len(morning.scored) == 33
    first, *others = morning.scored
    assert (first.films[0].title, first.why) == ("normal, but STAT", "a person marked it STAT")
    urgent = [place for place in others if place.row["category"] == "A"]
    assert [place.row["category"] for place in others[: len(urgent)]] == ["A"] * len(urgent)
    assert all("Pneumothorax" in place.drawn for place in urgent)
    assert len(urgent) == sum("Pneumothorax" in place.drawn for place in others) == 4
    normal = [place for place in others if not place.drawn]
    assert others[-len(normal) :] == normal
    assert all(not place.found for place in normal)
    assert "Of the first 10, 9 hold what the model names first. Drawn in them:" in output
    assert "4 of 4 pneumothorax" in output


def test_the_demo_never_touches_the_users_database_broker_rules_or_checkpoint(
    settings: Settings, tmp_path: Path
) -> None:
    users = settings.model_copy(update={"broker_url": "redis://site", "modalities": ("CR",), "roots": ("/site",)})
    own = own_settings(users, tmp_path / "morning.db")
    assert own.database_url == f"sqlite:///{tmp_path / 'morning.db'}"
    assert (own.broker_url, own.modalities, own.roots) == (None, ("CR", "DX", "DR"), ())
    assert (own.checkpoint, own.decoders) == (CHECKPOINT, users.decoders)


def place(*drawn: str, found: tuple[str, ...] = (), reason: str = "", **row: Any) -> Place:
    written = Written(Path("film"), "a study", "kept", reason, drawn)
    values = {"stat": False, "flag": None, "category": "B", "urgency": 0.4} | row
    return Place(values, (written,), [{"finding": each, "counts": True, "probability": 0.9} for each in found])


def test_the_head_of_the_list_is_counted_by_what_was_drawn() -> None:
    right = place("Pneumothorax", "Effusion", found=("Pneumothorax",))
    wrong, silent = place("Effusion", found=("Mass",)), place("Hernia")
    assert head_line([right, right, wrong, silent]) == (
        "Of the first 4, 2 hold what the model names first. Drawn in them: 3 of 3 effusion, 2 of 2 pneumothorax, "
        "1 of 1 hernia."
    )
    assert head_line([right] * 12).startswith(
        "Of the first 10, 10 hold what the model names first. Drawn in them: 10 of 12"
    )


def test_a_place_on_the_list_has_its_reason_in_words() -> None:
    assert place(found=("Pneumothorax",), category="A", urgency=1.2).why == "category A, urgency 1.20"
    assert place(found=("Mass",), stat=True).why == "a person marked it STAT"
    assert place(found=("Mass",), flag="partly_scored").why == "urgency 0.40, a film is broken"
    assert place(reason="lateral_view").why == "The film is a lateral view."


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


# ------------------------------------------------------------------------------------------------ the demo's checkpoint


def test_the_demo_checkpoint_is_small_and_says_that_it_learned_from_drawings() -> None:
    assert CHECKPOINT.stat().st_size <= 1.5e6
    header = read_header(CHECKPOINT)
    assert header.purpose == PURPOSE == "demo, learned from drawings"
    assert set(header.thresholds) == set(FINDINGS)


@pytest.mark.slow
def test_the_demo_checkpoint_tells_findings_apart_on_phantoms_that_it_never_saw() -> None:
    classifier = Classifier(load_checkpoint(CHECKPOINT), device=torch.device("cpu"), batch_size=8)
    told = [("Pneumothorax",), ("Effusion",), ("Consolidation",), ("Edema",), ("Cardiomegaly",), ()]
    films = [Film(findings, side, "PA") for findings in told for side in ("left", "right")]
    images = [picture(each, rng=np.random.default_rng([7, n])) for n, each in enumerate(films)]
    inputs = np.stack([classifier.preprocessing.image(image) for image in images])
    probabilities = dict(zip(FINDINGS, classifier.predict(inputs).T, strict=True))
    for (finding,) in told[:-1]:
        holds = np.array([finding in each.findings for each in films])
        assert probabilities[finding][holds].min() > probabilities[finding][~holds].max(), finding


def test_what_it_learns_from_is_drawn_beside_its_table_and_repeatable(tmp_path: Path) -> None:
    first, again = (draw_films(tmp_path / name, films=3) for name in ("a", "b"))
    rows = first.read_text().splitlines()
    assert rows[0] == "image,patient,view," + ",".join(FINDINGS)
    assert len(rows) == 4
    labels = rows[1].split(",")[3:]
    assert labels == [str(int(finding in phantom(0).findings)) for finding in FINDINGS]
    for name in ("labels.csv", "00000.png", "00002.png"):
        assert (first.parent / name).read_bytes() == (again.parent / name).read_bytes()


def test_a_checkpoint_is_not_made_from_what_an_earlier_run_left(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="remove it"):
        main(tmp_path)
