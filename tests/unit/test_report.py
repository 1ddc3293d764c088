"""The morning page: what is on it, what must not be, and that hostile values stay text."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from db import runs
from db.base import database_now
from db.models import Run, Study, StudyPriority
from db.morning import NoSuchRun
from db.reference import keep_reference
from db.session import session_scope
from tests.support.contexts import MakeContext
from tests.support.night_rows import FOLDER, PATIENT_KEY, add_champion, add_studies, add_unscored, open_run
from tests.support.page_reading import Page
from training.checkpoint import Header
from training.findings import FINDINGS
from training.imaging.pixel_reasons import PixelReason
from worker.context import Context
from worker.reasons import DeliveryReason, FileReason, Flag, ViewReason, WorkReason, sentence, sentences
from worker.report import page
from worker.report.charts import LOG_ODDS, WIDTH, charts_of, flagged_of, reference_of, shares_of, x_of
from worker.report.page import write_report
from worker.wording import percent

HOSTILE = "\"><script>alert('x')</script><img src=http://x.example/p onerror=alert(1)>"


@pytest.fixture
def context(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context with an empty database, and no films to look at."""
    monkeypatch.setattr(page, "pictures_of", lambda *_, **__: {})
    return make_context(checkpoint=None)


def a_night(context: Context, fill: Callable[[Session, Run], None], *, close: bool = True) -> int:
    with session_scope(context.engine) as session:
        add_champion(session)
        run = open_run(session)
        fill(session, run)
        session.flush()
        if close:
            runs.close(session, run.id)
        return run.id


def page_of(context: Context, tmp_path: Path, *, run: str = "latest", top: int = 50) -> tuple[Page, str]:
    html = write_report(context, run=run, output=tmp_path / "morning.html", top=top).read_text(encoding="utf-8")
    return Page(html), html


def ordinary(session: Session, run: Run) -> None:
    scores = [{"Pneumothorax": 0.9}, {"Effusion": 0.8}, {"Cardiomegaly": 0.7}, {}]
    add_studies(session, run, scores * 5)
    add_unscored(session, 100, state="quarantined", reason="truncated", accession_number="ACC00100")
    add_unscored(session, 101, state="skipped", reason="lateral_view")


def test_the_page_stands_alone_and_every_reference_on_it_is_there(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    page, html = page_of(context, tmp_path)
    assert "http://" not in html
    assert "https://" not in html
    assert not page.of("script")
    assert not page.of("link")
    assert all((attrs["src"] or "").startswith("data:") for attrs in page.of("img"))
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert "default-src 'none'" in html


def test_the_list_shows_every_study_in_reading_order(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    page, html = page_of(context, tmp_path)
    shown = [name.removeprefix("study-") for name in page.ids if name.startswith("study-")]
    order = [*range(1, 21, 4), *range(2, 21, 4)]  # category A, then by urgency
    assert [number for number in shown if number not in ("100", "101")][: len(order)] == [str(each) for each in order]
    assert shown.index("100") + 1 == shown.index("101") == 13  # the unscored, in a block of their own after the cards
    assert "Ranks 6 to 7" in page.words
    assert len(shown) == 22
    assert len(page.of("li", class_="card")) == 12
    assert "ACC00001" in page.text
    assert "2.25.101" in page.text  # it has no accession number
    assert "nightread worklist" not in html  # nothing is left out


def test_five_thousand_studies_make_a_small_page_that_says_how_many_more_there_are(
    context: Context, tmp_path: Path
) -> None:
    a_night(context, lambda session, run: add_studies(session, run, [{"Effusion": 0.6}] * 5000))
    page, html = page_of(context, tmp_path)
    assert len(html) < 300_000
    assert sum(name.startswith("study-") for name in page.ids) == 50
    assert "And 4,950 more" in page.words


def test_top_says_how_many_are_shown(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    page, _ = page_of(context, tmp_path, top=3)
    assert sum(name.startswith("study-") for name in page.ids) == 3
    assert "And 19 more" in page.words


def test_nothing_of_a_patient_is_on_the_page(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    _, html = page_of(context, tmp_path)
    assert PATIENT_KEY not in html
    assert FOLDER not in html
    assert "JANE" not in html


def test_hostile_values_stay_text(context: Context, tmp_path: Path) -> None:
    def hostile(session: Session, run: Run) -> None:
        add_studies(session, run, [{"Effusion": 0.8}] * 13, accession_number=HOSTILE)
        add_unscored(session, 100, state="quarantined", reason="odd<b>reason", accession_number=HOSTILE)

    with session_scope(context.engine) as session:
        add_champion(session, network=HOSTILE)
    a_night(context, hostile)
    page, _ = page_of(context, tmp_path)
    assert page.text.count("<script>alert('x')</script>") == 16  # 14 on the list, the quarantine, the network
    assert not page.of("script")
    assert not page.of("img")
    assert not page.of("b")
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_the_finding_that_decides_the_category_is_shown_first(context: Context, tmp_path: Path) -> None:
    # Consolidation adds more to the urgency, but below its threshold it decides nothing.
    a_night(context, lambda session, run: add_studies(session, run, [{"Consolidation": 0.45, "Atelectasis": 0.55}]))
    page, _ = page_of(context, tmp_path)
    assert page.words.index("Atelectasis") < page.words.index("Consolidation")
    assert len(page.of("li", class_="reaches")) == 1


def test_a_blind_study_says_that_it_is_blind_and_shows_nothing_that_the_model_saw(
    context: Context, tmp_path: Path
) -> None:
    def blind(session: Session, run: Run) -> None:
        add_studies(session, run, [{"Pneumothorax": 0.9}])
        session.execute(update(StudyPriority).values(flag="blind", category="B", category_a=False, checkpoint_id=None))

    a_night(context, blind)
    page, _ = page_of(context, tmp_path)
    assert "It belongs to the blind share" in page.words
    assert len(page.of("li", class_="card")) == 1
    assert not page.of("ul", class_="bars")


def test_a_study_under_whose_uid_two_patients_came_says_so(context: Context, tmp_path: Path) -> None:
    def two(session: Session, run: Run) -> None:
        add_studies(session, run, [{"Effusion": 0.9}])
        session.execute(update(StudyPriority).values(flag="two_patients"))

    a_night(context, two)
    page, _ = page_of(context, tmp_path)
    assert "Films of another patient came under its Study Instance UID" in page.words


def test_a_study_that_was_not_scored_says_why(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    page, _ = page_of(context, tmp_path)
    assert "The film is a lateral view." in page.words
    assert page.words.count("The file ends before its pixels do.") == 3  # on the list, in the totals, in quarantine
    assert "not scored" in page.words


def test_stat_overdue_and_read_studies_are_marked(context: Context, tmp_path: Path) -> None:
    def night(session: Session, run: Run) -> None:
        add_studies(session, run, [{}], stat=True)
        add_studies(session, run, [{}], first=2, received_at=database_now(session) - timedelta(hours=13))

    a_night(context, night)
    with session_scope(context.engine) as session:
        session.execute(update(StudyPriority).where(StudyPriority.study_id == 2).values(read_at=database_now(session)))
    page, _ = page_of(context, tmp_path)
    assert len(page.of("span", class_="tag stat")) == 1
    assert "13 h 00" in page.words
    assert len(page.of("li", class_="card read")) == 1
    assert "1 read since" in page.words or "read since 1" in page.words


def test_ranks_are_those_of_the_runs_end_and_of_the_moment_while_it_goes_on(context: Context, tmp_path: Path) -> None:
    number = a_night(context, ordinary)
    with session_scope(context.engine) as session:
        session.execute(update(StudyPriority).where(StudyPriority.study_id == 4).values(stat=True))
        open_run(session)
    ended, _ = page_of(context, tmp_path, run=str(number))
    assert next(name for name in ended.ids if name.startswith("study-")) == "study-1"
    going_on, _ = page_of(context, tmp_path)
    assert next(name for name in going_on.ids if name.startswith("study-")) == "study-4"
    assert "is still running" in going_on.words


@pytest.mark.parametrize("run", ["latest", "7", "yesterday", "-1"])
def test_a_run_that_is_not_there_is_named_as_such(context: Context, tmp_path: Path, run: str) -> None:
    with pytest.raises(NoSuchRun):
        page_of(context, tmp_path, run=run)
    assert not list(tmp_path.glob("*.html*"))


def test_a_run_with_nothing_to_read_still_makes_a_page(context: Context, tmp_path: Path) -> None:
    a_night(context, lambda *_: None)
    page, _ = page_of(context, tmp_path)
    assert "Nothing was left to read." in page.words
    assert page.references <= set(page.ids)


def test_the_totals_of_this_run_begin_where_the_run_before_ended(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    with session_scope(context.engine) as session:
        run = open_run(session)
        add_studies(session, run, [{}] * 3, first=200, received_at=database_now(session))
        runs.close(session, run.id)
    page, _ = page_of(context, tmp_path)
    assert "Received 3 25" in page.words
    assert "The totals add up." in page.words


def test_scores_are_held_against_last_weeks_when_there_are_enough(context: Context, tmp_path: Path) -> None:
    a_night(context, lambda session, run: add_studies(session, run, [{"Effusion": 0.8}] * 60))
    page, _ = page_of(context, tmp_path)
    assert not page.of("path", class_="before")
    with session_scope(context.engine) as session:
        run = open_run(session)
        run.started_at += timedelta(seconds=1)
        add_studies(session, run, [{"Effusion": 0.2}] * 4, first=200, received_at=database_now(session))
        runs.close(session, run.id)
    page, _ = page_of(context, tmp_path)
    assert len(page.of("path", class_="before")) == 1 + len(FINDINGS)  # one in the key
    assert "the 7 days before, 60 films" in page.words
    assert "flagged 0 %, before 100 %" in page.words


def test_every_figure_of_the_model_and_policy_is_there(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    page, _ = page_of(context, tmp_path)
    for words in ("mobilenet", "1,234 films of 987 patients", "ab" * 32, "c0ffee", "version 1", "12 h"):
        assert words in page.words
    assert page.words.count("Not a medical device") == 2


@pytest.mark.parametrize("reason", sentences())
def test_every_reason_is_a_sentence(reason: str) -> None:
    assert sentence(reason).endswith(".")
    assert "_" not in sentence(reason)


def test_every_code_of_a_reason_s_type_has_its_sentence_and_no_other_has() -> None:
    types: list[Any] = [ViewReason, FileReason, PixelReason, WorkReason, DeliveryReason, Flag]
    codes = [code for each in types for code in get_args(each)]
    assert set(codes) == sentences().keys()


def test_the_documentation_lists_every_reason_with_its_sentence() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, flags=re.MULTILINE)) == sentences()


def test_a_reason_of_an_older_version_is_readable() -> None:
    assert sentence("lens_cap_on") == "Lens cap on."
    assert sentence(None) == "No reason was kept."


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.001, "< 1 %"), (0.374, "37 %"), (1.0, "100 %"), (None, "–")]
)
def test_small_shares_are_not_rounded_to_nothing(share: float | None, text: str) -> None:
    assert percent(share).replace("\xa0", " ") == text


def test_shares_count_every_film_once_even_beyond_the_axis() -> None:
    scores = np.random.default_rng(0).random((500, len(FINDINGS)))
    scores[:3] = [[0.0], [1.0], [1e-9]]
    assert shares_of(scores).sum(axis=1) == pytest.approx(1)
    assert x_of(0.0) == 0
    assert x_of(1.0) == WIDTH
    assert x_of(0.5) == pytest.approx(WIDTH * 7 / (LOG_ODDS[-1] - LOG_ODDS[0]), abs=0.1)


def test_a_checkpoints_quantiles_stand_for_the_films_they_were_made_of() -> None:
    scores = np.random.default_rng(0).beta(1, 6, (4000, len(FINDINGS)))
    levels = np.linspace(0, 1, 101)
    quantiles = {f: np.quantile(scores[:, i], levels).tolist() for i, f in enumerate(FINDINGS)}
    reference = {"films": 4000, "levels": levels.tolist(), "probabilities": quantiles}
    compared = reference_of(Header("mobilenet", reference=reference), {"Effusion": 0.3})
    assert compared is not None
    assert compared.shares == pytest.approx(shares_of(scores), abs=0.01)
    assert compared.flagged["Effusion"] == pytest.approx(flagged_of(scores, {"Effusion": 0.3})["Effusion"], abs=0.005)
    assert compared.name == "the films it learned from"
    validated = Header("mobilenet", reference=reference, training={"films": {"validation": 4000}})
    assert "validation films" in getattr(reference_of(validated, {}), "name", "")
    assert reference_of(Header("mobilenet"), {}) is None


def test_a_chart_stays_in_its_box_and_a_finding_without_threshold_has_no_mark() -> None:
    scores = np.full((5, len(FINDINGS)), 0.2)
    chart, *_ = charts_of(scores, None, {})
    assert chart.now.startswith("M0 56V56H10")
    assert "V0H" in chart.now  # the fullest bin reaches the top
    assert chart.threshold_x is None
    assert chart.before is None


def test_every_bar_says_how_unusual_its_probability_is(context: Context, tmp_path: Path) -> None:
    levels = [level / 100 for level in range(101)]
    kept = {"levels": levels, "probabilities": dict.fromkeys(FINDINGS, levels)}  # spread evenly over 0 to 1

    def compared(session: Session, run: Run) -> None:
        keep_reference(session, run.checkpoint_id or 0, kept)
        add_studies(session, run, [{"Pneumothorax": 0.9}])

    a_night(context, compared)
    page, _ = page_of(context, tmp_path)
    assert "1.8 times the usual, top 10 % of films" in page.words
    assert "the top 50 % of films by suspicion of pneumothorax" in page.words  # the threshold is .5 here


def test_the_charts_are_folded_away_from_those_who_read(context: Context, tmp_path: Path) -> None:
    a_night(context, ordinary)
    page, _ = page_of(context, tmp_path)
    assert [(each["id"], "open" in each) for each in page.of("details")] == [("scores", False), ("drift", False)]


def test_a_study_links_to_the_sites_viewer_and_says_when_it_was_taken(context: Context, tmp_path: Path) -> None:
    settings = context.settings.changed(
        viewer_url="https://pacs.example/{accession_number}?u={study_instance_uid}", time_zone="Europe/Berlin"
    )
    a_night(context, ordinary)
    with session_scope(context.engine) as session:
        session.execute(update(Study).values(acquired_at=datetime(2026, 1, 7, 23, 30, tzinfo=UTC)))
    page, _ = page_of(Context(settings), tmp_path)
    links = {attrs["href"] for attrs in page.of("a") if (attrs["href"] or "").startswith("https:")}
    assert "https://pacs.example/ACC00001?u=2.25.1" in links
    assert not any("2.25.101" in (link or "") for link in links)  # it has no accession number, which the address needs
    assert page.words.count("taken 8 Jan 00:30") == 22
    assert "CET" in page.words
