"""Drift of a filled database: which films make a day, what is kept of it, and what command, page and monitor say."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from sqlalchemy import func, insert, select, update
from typer.testing import CliRunner, Result

from db import drift as facts
from db import registry, runs
from db.models import Drift, FilmScore, Instance, Study
from db.session import read_scope, session_scope
from tests.support.contexts import MakeContext, with_settings
from tests.support.crew import environment_of
from tests.support.dicom_files import make_film
from tests.support.night_rows import add_studies, open_run
from tests.support.page_reading import Page
from training.calibration import reference
from training.checkpoint import SHIPPED, Header, save_checkpoint
from training.findings import FINDINGS
from training.networks import make_network
from worker.cli import app as cli
from worker.context import Context
from worker.intake.receive import receive
from worker.monitoring.drift import daily
from worker.monitoring.prometheus import LedgerCollector
from worker.report import page
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer

DAY = date(2026, 11, 25)
MORNING = datetime(2026, 11, 25, tzinfo=UTC)
FILMS = 60


def scores(films: int, *, power: float = 1.0) -> list[dict[str, float]]:
    """Probabilities of films; another power than 1 is another hospital."""
    drawn = np.random.default_rng(films).beta(0.5, 8, size=(films, len(FINDINGS))) ** power
    return [dict(zip(FINDINGS, row, strict=True)) for row in drawn.tolist()]


@pytest.fixture(scope="session")
def referenced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose reference is what `scores` draws."""
    table = np.array([list(row.values()) for row in scores(1000)])
    header = Header(network="mobilenet", reference=reference(table, findings=FINDINGS))
    path = tmp_path_factory.mktemp("checkpoint") / "referenced.safetensors"
    save_checkpoint(path, header, state=make_network("mobilenet").state_dict(), half=True)
    return path


@pytest.fixture
def context(make_context: MakeContext, database_url: str, referenced: Path) -> Iterator[Context]:
    context = make_context(database_url=database_url, checkpoint=referenced, drift={"min_films": 50})
    yield context
    context.engine.dispose()


def fill(context: Context, *, received_at: datetime, films: int = FILMS, power: float = 1.0, first: int = 1) -> None:
    """Studies of one scored film each, received at one moment."""
    with session_scope(context.engine) as session:
        run = open_run(session)
        add_studies(session, run, scores(films, power=power), first=first, received_at=received_at)
        runs.close(session, run.id)


def kept(context: Context) -> list[dict[str, Any]]:
    with read_scope(context.engine) as session:
        columns = (Drift.day, Drift.measure, Drift.subject, Drift.value, Drift.reference, Drift.level, Drift.films)
        rows = session.execute(select(*columns).order_by(Drift.day, Drift.measure, Drift.subject))
        return [dict(row) for row in rows.mappings()]


def test_a_day_judged_twice_leaves_the_same_rows(context: Context) -> None:
    fill(context, received_at=MORNING)
    first = daily(context, day=DAY)
    rows = kept(context)
    assert daily(context, day=DAY) == first
    assert kept(context) == rows
    assert {row["day"] for row in rows} == {"2026-11-25"}
    assert {row["subject"] for row in rows if row["measure"] == "psi"} == set(FINDINGS)
    assert {row["level"] for row in rows} == {"quiet"}
    assert {row["films"] for row in rows} == {FILMS}
    fill(context, received_at=MORNING, power=0.4, first=1000)
    assert daily(context, day=DAY).level == "act"
    assert len(kept(context)) == len(rows)


def test_a_day_judged_again_with_less_to_say_leaves_no_old_alarm(context: Context) -> None:
    with session_scope(context.engine) as session:
        figures = [facts.Figure("psi", finding, 0.5, 0.1, "act", 300) for finding in FINDINGS]
        facts.record(session, figures, day=DAY.isoformat(), checkpoint_id=context.live().checkpoint_id)
    assert daily(context, day=DAY).level == "quiet"
    with read_scope(context.engine) as session:
        assert session.scalars(select(Drift).where(Drift.level == "act")).all() == []


def test_a_day_is_a_day_in_utc_of_the_live_checkpoints_scores(context: Context) -> None:
    fill(context, received_at=MORNING - timedelta(seconds=1), power=0.4, first=1000)
    fill(context, received_at=MORNING + timedelta(days=1), power=0.4, first=2000)
    fill(context, received_at=MORNING)
    with session_scope(context.engine) as session:  # another checkpoint, say a shadow, scored the same films
        champion = registry.champion(session)
        assert champion is not None
        other = registry.register(
            session, digest="f" * 64, path="/o", network="mobilenet", header={}, reference={}, by="test"
        )
        for film in session.scalars(select(FilmScore)).all():
            values = {finding.lower(): 0.9 for finding in FINDINGS} | {"scored_at": film.scored_at}
            ids = {"id": 10_000 + film.id, "instance_id": film.instance_id, "checkpoint_id": other.id}
            session.execute(insert(FilmScore).values(**ids, **values))
    judged = daily(context, day=DAY)
    assert (judged.films, judged.level) == (FILMS, "quiet")
    assert daily(context, day=DAY + timedelta(days=1)).level == "act"


def test_without_a_day_the_last_one_that_is_over_is_judged(context: Context) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    fill(context, received_at=yesterday)
    judged = daily(context)
    assert (judged.day, judged.films) == (yesterday.date(), FILMS)


def test_kinds_are_compared_with_the_weeks_before_and_not_with_older_ones(context: Context) -> None:
    fill(context, received_at=MORNING)
    fill(context, received_at=MORNING - timedelta(days=40), first=1000)
    judged = daily(context, day=DAY)
    assert {figure.reference for figure in judged.figures if figure.measure == "shares"} == {None}
    assert any("28 days before" in remark for remark in judged.remarks)
    fill(context, received_at=MORNING - timedelta(days=20), films=300, first=2000)
    with session_scope(context.engine) as session:
        session.execute(update(Instance).where(Instance.id >= 2000).values(manufacturer="Acme^Jane"))
        session.execute(update(Study).where(Study.id.between(1, 20)).values(state="quarantined"))
    figures = {(figure.measure, figure.subject): figure for figure in daily(context, day=DAY).figures}
    assert figures["shares", "manufacturer"].level == "act"
    assert figures["shares", "view"].level == "quiet"
    assert figures["rate", "quarantined"].level == "act"
    assert figures["rate", "quarantined"].value == pytest.approx(20 / FILMS)


def test_drift_asks_for_a_retraining_only_where_the_settings_say_so_and_only_for_films(
    context: Context, referenced: Path
) -> None:
    fill(context, received_at=MORNING, power=0.4)
    assert not daily(context, day=DAY).retrain
    willing = with_settings(context, drift={"retrains": True})
    assert daily(willing, day=DAY).retrain
    fill(willing, received_at=MORNING + timedelta(days=2), first=1000)
    with session_scope(willing.engine) as session:
        session.execute(update(Study).where(Study.id.between(1000, 1030)).values(state="skipped"))
        session.execute(update(Study).where(Study.id < 1000).values(state="scored"))
    judged = daily(willing, day=DAY + timedelta(days=2))
    assert [(figure.measure, figure.subject) for figure in judged.figures if figure.level == "act"] == [
        ("rate", "skipped")
    ]
    assert not judged.retrain
    with read_scope(willing.engine) as session:  # and nothing was promoted
        assert registry.champion(session) is not None
        assert len(registry.everything(session)) == 1
    willing.engine.dispose()


def test_the_monitor_shows_the_last_day_in_codes(context: Context) -> None:
    assert not {name for name in exposed(context) if "drift" in name}
    fill(context, received_at=MORNING - timedelta(days=1), films=300, first=1000)
    fill(context, received_at=MORNING, power=0.4)
    with session_scope(context.engine) as session:
        session.execute(update(Instance).where(Instance.id < 1000).values(manufacturer="Acme^Jane"))
    for back in (1, 0):
        daily(context, day=DAY - timedelta(days=back))
    found = exposed(context)
    assert found["nightread_drift"]["psi", "pleural_thickening"] > 0.25
    assert found["nightread_drift_level"]["psi", "pleural_thickening"] == 2
    assert found["nightread_drift_level"]["shares", "manufacturer"] == 2
    age = (datetime.now(UTC) - MORNING - timedelta(days=1)).total_seconds()
    assert found["nightread_drift_age_seconds"][()] == pytest.approx(age, abs=60)
    assert "Jane" not in str(found)
    assert all(label.islower() for labels in found["nightread_drift"] for label in labels)


def exposed(context: Context) -> dict[str, dict[tuple[str, ...], float]]:
    registry_ = CollectorRegistry()
    registry_.register(LedgerCollector(context.engine))
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in registry_.collect()
    }


# ---------------------------------------------------------------------------------------------------- people's view


@pytest.fixture
def environment(make_context: MakeContext, referenced: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context on SQLite that commands in this process find by the environment."""
    context = make_context(checkpoint=referenced, drift={"min_films": 50})
    for name, value in environment_of(context.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "160")
    return context


def nightread(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_the_command_ends_with_1_when_somebody_must_act_and_with_0_otherwise(environment: Context) -> None:
    assert nightread("drift").exit_code == 2  # no study has come
    fill(environment, received_at=MORNING)
    quiet = nightread("drift")
    assert quiet.exit_code == 0
    assert "2026-11-25, 60 films" in quiet.output
    assert "quiet" in quiet.output
    fill(environment, received_at=MORNING + timedelta(days=1), power=0.4, first=1000)
    acts = nightread("drift", "--days", "2", "--json")
    assert acts.exit_code == 1
    earlier, last = json.loads(acts.stdout)
    assert (earlier["day"], earlier["level"], last["day"], last["level"]) == (
        "2026-11-25",
        "quiet",
        "2026-11-26",
        "act",
    )
    assert nightread("drift", "--day", "2026-11-25").exit_code == 0
    assert "not judged" in nightread("drift", "--day", "2026-11-01").output


def page_of(context: Context, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setattr(page, "pictures_of", lambda *_, **__: {})
    return Page(page.write_report(context, run="latest", output=folder / "page.html").read_text(encoding="utf-8"))


def test_the_morning_page_shows_the_weeks_or_says_why_there_are_none(
    environment: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    fill(environment, received_at=now - timedelta(days=2), power=0.4)
    page = page_of(environment, tmp_path, monkeypatch)
    assert "No drift results for this checkpoint in the last 28 days." in page.words
    assert not page.of("path", class_="day act")
    fill(environment, received_at=now - timedelta(days=1), first=1000)
    for back in (2, 1):
        daily(environment, day=(now - timedelta(days=back)).date())
    page = page_of(environment, tmp_path, monkeypatch)
    assert "judged on 60 films: quiet" in page.words
    assert "There is nothing to do." in page.words
    assert len(page.of("path", class_="day act")) == len(page.of("path", class_="day quiet")) == len(FINDINGS)
    fill(environment, received_at=now, power=0.4, first=2000)
    daily(environment, day=now.date())
    page = page_of(environment, tmp_path, monkeypatch)
    assert "Somebody must act on" in page.words
    assert "pleural thickening" in page.words


# --------------------------------------------------------------------------------------------------------- real films


@pytest.mark.real
def test_films_of_another_hospital_set_off_the_alarm(shared: Path, make_context: MakeContext, tmp_path: Path) -> None:
    films = sorted((shared / "data" / "hannover_films" / "img256").iterdir())[:FILMS]
    for number, path in enumerate(films):
        with Image.open(path) as film:
            make_film(tmp_path / f"{number}.dcm", pixels=np.asarray(film.convert("L")), AccessionNumber=f"H{number}")
    context = make_context(checkpoint=SHIPPED, drift={"min_films": 50})
    receive(context, [tmp_path])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    with read_scope(context.engine) as session:
        assert session.scalar(select(func.count()).select_from(FilmScore)) == FILMS
        newest = facts.last_arrival(session)
    assert newest is not None
    judged = daily(context, day=newest.date())
    acts = {figure.subject for figure in judged.figures if figure.measure == "psi" and figure.level == "act"}
    assert len(acts) >= 6
