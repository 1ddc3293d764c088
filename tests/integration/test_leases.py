"""A study whose workers die again and again: given up, and listed as one that failed, whatever it was before."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text, update

from db import ledger
from db.models import Instance, Study, StudyPriority
from db.session import read_scope, session_scope
from db.totals import read_totals
from tests.support.contexts import with_settings
from tests.support.dicom_files import make_film, texture
from worker.context import Context
from worker.intake.receive import receive
from worker.scoring.leases import end_leases
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer


@pytest.fixture
def scored_d(context, tmp_path) -> str:
    """A scored study at the bottom of the list; its UID."""
    film = make_film(tmp_path / "first.dcm")
    score(context, tmp_path)
    with session_scope(context.engine) as session:
        session.execute(update(StudyPriority).values(category="D", category_a=False, urgency=0.01))
    return film.StudyInstanceUID


def score(context: Context, folder) -> None:
    receive(context, [folder])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")


def lose(context: Context) -> None:
    """Let a worker take what waits and die, until it is given up."""
    for _ in range(context.settings.max_attempts):
        with session_scope(context.engine) as session:
            assert len(ledger.claim(session, worker="mortal", studies=1, lease_minutes=1)) == 1
            past = datetime.now(UTC) - timedelta(hours=1)
            session.execute(update(Study).where(Study.state == "claimed").values(lease_expires_at=past))
        with session_scope(context.engine) as session:
            end_leases(session, context.settings)


def place(context: Context) -> tuple:
    columns = (Study.state, Study.reason, StudyPriority.category, StudyPriority.flag, StudyPriority.urgency)
    with read_scope(context.engine) as session:
        assert read_totals(session).balance
        return tuple(session.execute(select(*columns).join(StudyPriority, StudyPriority.study_id == Study.id)).one())


def test_a_scored_study_that_is_then_lost_rises_to_where_failed_ones_stand(context, tmp_path, scored_d):
    make_film(tmp_path / "second.dcm", pixels=texture(seed=1), StudyInstanceUID=scored_d)
    receive(context, [tmp_path])
    lose(context)
    state, reason, category, flag, urgency = place(context)
    assert (state, reason, flag) == ("quarantined", "worker_lost", "partly_scored")
    assert category in ("A", "B")
    assert urgency >= context.live().first_placement.urgency


def test_a_study_of_which_no_score_is_left_stands_as_an_unscored_one(context, scored_d):
    with session_scope(context.engine) as session:
        session.execute(update(Study).values(state="waiting", attempts=0))
        session.execute(update(Instance).values(state="waiting"))
    lose(context)
    assert place(context) == ("quarantined", "worker_lost", "B", "not_scored", context.live().first_placement.urgency)


def test_a_category_a_is_kept(context, tmp_path, scored_d):
    with session_scope(context.engine) as session:
        session.execute(text("UPDATE film_score SET pneumothorax = 1"))
    make_film(tmp_path / "second.dcm", pixels=texture(seed=1), StudyInstanceUID=scored_d)
    receive(context, [tmp_path])
    lose(context)
    assert place(context)[2:4] == ("A", "partly_scored")


def test_a_blind_study_shows_nothing_of_its_scores_when_it_is_lost(context, tmp_path):
    blind = with_settings(context, blind_share=0.99999)
    film = make_film(tmp_path / "first.dcm")
    score(blind, tmp_path)
    before = place(blind)
    assert before[3] == "blind"
    make_film(tmp_path / "second.dcm", pixels=texture(seed=1), StudyInstanceUID=film.StudyInstanceUID)
    receive(blind, [tmp_path])
    lose(blind)
    assert place(blind) == ("quarantined", "worker_lost", *before[2:])
