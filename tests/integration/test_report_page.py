"""The morning page about a night that was really scored: with its films, on both databases, and in a real browser."""

import shutil
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlalchemy import Engine

from db import morning, registry, runs
from db.session import read_scope, session_scope
from tests.support.contexts import MakeContext
from tests.support.debian import need
from tests.support.dicom_files import make_film, texture
from tests.support.night_rows import add_champion, add_studies, add_unscored, open_run
from tests.support.page_reading import Page
from tests.support.values import present
from training.checkpoint import load_checkpoint
from training.findings import FINDINGS
from worker.context import Context
from worker.intake.receive import receive
from worker.report import pictures
from worker.report.page import write_report
from worker.report.pictures import Wanted
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext) -> tuple[Context, Path]:
    """A small night, scored: two films, one lateral, one cut short; and where the films lie."""
    films = tmp_path_factory.mktemp("films")
    for number in range(2):
        make_film(films / f"{number}.dcm", pixels=texture(120, 100, seed=number), AccessionNumber=f"A{number}")
    make_film(films / "lateral.dcm", view_position="LL", AccessionNumber="A2")
    make_film(films / "short.dcm", AccessionNumber="A3")
    whole = (films / "short.dcm").read_bytes()
    (films / "short.dcm").write_bytes(whole[: len(whole) // 2])
    context = make_context()
    receive(context, [films])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    return context, films


@pytest.fixture(scope="module")
def written(scored: tuple[Context, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    context, _ = scored
    return write_report(context, run="latest", output=tmp_path_factory.mktemp("page") / "morning.html")


def test_films_are_shown_and_studies_without_scores_stand_apart_and_say_why(written: Path) -> None:
    page = Page(written.read_text(encoding="utf-8"))
    films = [attrs for attrs in page.of("img") if (attrs["alt"] or "").startswith("Chest film")]
    assert len(films) == 2
    assert all((attrs["src"] or "").startswith("data:image/jpeg;base64,") for attrs in page.of("img"))
    assert ("266", "320") in {(attrs["width"], attrs["height"]) for attrs in films}  # 100 x 120, not a network input
    assert not page.of("p", class_="no-film")
    apart = page.words[page.words.index("The model could not read these") :]
    assert "The film is a lateral view." in apart


def test_heat_maps_stand_beside_the_films_where_they_can_be_made(written: Path) -> None:
    page = Page(written.read_text(encoding="utf-8"))
    assert sum((attrs["alt"] or "").startswith("The same film") for attrs in page.of("img")) == 2


def test_weights_are_loaded_only_where_a_heat_map_is_wanted(
    scored: tuple[Context, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = scored
    with read_scope(context.engine) as session:
        (film,) = morning.films_of(session, [1])[1]
        file = context.file_of(present(registry.champion(session)))
    load = Mock(wraps=load_checkpoint)
    monkeypatch.setattr(pictures, "load_checkpoint", load)
    shown = [pictures.pictures_of(context, [Wanted(film, finding)], checkpoint=file)[1] for finding in (None, "Edema")]
    assert [picture.film.startswith("data:image/jpeg") for picture in shown] == [True, True]
    load.assert_called_once_with(file)


def test_nothing_of_the_patient_is_on_the_page(written: Path, scored: tuple[Context, Path]) -> None:
    html = written.read_text(encoding="utf-8")
    assert "Phantom" not in html
    assert "PHANTOM" not in html
    assert str(scored[1]) not in html


def test_a_film_that_is_gone_or_changed_is_not_shown(scored: tuple[Context, Path], tmp_path: Path) -> None:
    context, films = scored
    away = tmp_path / "away.dcm"
    (films / "0.dcm").rename(away)
    whole = (films / "1.dcm").read_bytes()
    (films / "1.dcm").write_bytes(whole[:-2] + b"\1\1")  # the same instance with another pixel
    try:
        page = Page(write_report(context, run="latest", output=tmp_path / "page.html").read_text(encoding="utf-8"))
    finally:
        away.rename(films / "0.dcm")
        (films / "1.dcm").write_bytes(whole)
    assert not page.of("img")
    assert page.words.count("The film could not be decoded for this page.") == 2


def test_both_databases_answer_alike(engine: Engine) -> None:
    with session_scope(engine) as session:
        add_champion(session)
        earlier = open_run(session)
        add_studies(session, earlier, [{"Effusion": 0.8}] * 2, first=50)
        runs.close(session, earlier.id)
        run = open_run(session)
        add_studies(session, run, [{"Pneumothorax": 0.9}, {}], first=60)
        add_unscored(session, 70, state="quarantined", reason="truncated")
        session.flush()
        while_it_goes_on = [row["study_id"] for row in morning.ranked(session, run, top=10)]
        runs.close(session, run.id)
        number = run.id
    with read_scope(engine) as session:
        run = morning.run_named(session, "latest")
        rows = morning.ranked(session, run, top=10)
        assert run.id == number
        assert [row["study_id"] for row in rows] == [60, 70, 50, 51, 61] == while_it_goes_on
        assert [(c.category, c.studies, c.flagged) for c in morning.counts(session, run)] == [
            ("A", 1, 0),
            ("B", 3, 1),
            ("D", 1, 0),
        ]
        films = morning.films_of(session, [row["study_id"] for row in rows])
        assert films[60][0].probabilities is not None
        assert films[60][0].probabilities[FINDINGS.index("Pneumothorax")] == pytest.approx(0.9)
        assert films[70][0].probabilities is None
        assert len(list(morning.scores_in(session, run))) == 2
        assert len(list(morning.scores_before(session, run, days=7))) == 2
        assert [row["reason"] for row in morning.quarantined(session, limit=5)] == ["truncated"]
        assert morning.previous_end(session, run) is not None


def test_a_real_browser_opens_it_without_an_error(written: Path, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        need("chromium", packages="chromium")
        browser = "chromium"
    picture, paper = tmp_path / "page.png", tmp_path / "page.pdf"
    command = (browser, *QUIET, f"--user-data-dir={tmp_path / 'profile'}")
    shown = subprocess.run(
        (*command, "--window-size=1280,3000", f"--screenshot={picture}", written.as_uri()),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr  # what a page may complain of: a blocked resource, a broken style, an error
    assert picture.stat().st_size > 50_000
    subprocess.run(
        (*command, "--no-pdf-header-footer", f"--print-to-pdf={paper}", written.as_uri()),
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert paper.read_bytes().startswith(b"%PDF")
