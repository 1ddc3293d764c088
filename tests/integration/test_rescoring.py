"""A new champion looks at what the old one ranked: nothing moves before it is made live, and then all at once."""

import json
from pathlib import Path

import pytest
from sqlalchemy import select, text
from typer.testing import CliRunner, Result

from db.models import Audit, FilmScore, ShadowPriority, Study, StudyPriority
from db.session import read_scope, session_scope
from db.worklist import worklist
from tests.support.crew import environment_of
from tests.support.dicom_files import make_film, texture
from worker.checkpoints import promotion, rescoring
from worker.checkpoints.rescoring import Moved, NotLive, look, make_live, preview, to_see
from worker.cli import app as cli
from worker.context import Context
from worker.intake.receive import receive
from worker.ranking import activation, policy
from worker.ranking.policy import Changes
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer
from worker.scoring.shadow import enter


def score(context: Context, folder: Path, count: int = 6) -> Path:
    """Score `count` studies of one film each, of which the last has a second, broken one."""
    folder.mkdir()
    for i in range(count):
        film = make_film(folder / f"{i}.dcm", pixels=texture(seed=i), bits=12, AccessionNumber=f"A{i}")
    make_film(folder / "broken.dcm", StudyInstanceUID=film.StudyInstanceUID, PixelData=b"\0\0")
    receive(context, [folder])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    return folder


def promote(context: Context, path: Path) -> None:
    with session_scope(context.engine) as session:
        row = context.register(session, path)
        promotion.promote(context, session, row, reason="a test", override="a test")


def order(context: Context) -> list[str]:
    with read_scope(context.engine) as session:
        return [row["accession_number"] for row in worklist(session)]


def places(context: Context) -> list[tuple]:
    columns = list(StudyPriority.__table__.columns)
    with read_scope(context.engine) as session:
        return [tuple(row) for row in session.execute(select(*columns).order_by(StudyPriority.study_id))]


def seen(context: Context, checkpoint_id: int) -> int:
    with read_scope(context.engine) as session:
        return len(session.scalars(select(FilmScore.id).where(FilmScore.checkpoint_id == checkpoint_id)).all())


def test_a_preview_changes_nothing_and_going_live_moves_all_at_once(context, other, tmp_path):
    score(context, tmp_path / "films")
    promote(context, other)
    before, listed, live = places(context), order(context), context.live()
    assert to_see(context, live, read=False) == 6
    films: list[int] = []
    look(context, live, read=False, on_films=films.append)
    assert (sum(films), to_see(context, live, read=False)) == (6, 0)
    found = preview(context, live, read=False)
    assert (places(context), order(context)) == (before, listed)
    assert (found.studies, found.seen_by_both) == (6, 6)
    assert found.spearman != 1, "the other checkpoint must order them otherwise, or this shows nothing"

    assert make_live(context, live, read=False) == Moved(moved=6, left_out=0)
    after = order(context)
    ranks = {name: rank for rank, name in enumerate(after, start=1)}
    assert after != listed
    assert {m.study: m.rank_after for m in found.movers} == {m.study: ranks[m.study] for m in found.movers}
    with read_scope(context.engine) as session:
        rows = session.scalars(select(StudyPriority)).all()
        assert {(row.checkpoint_id, row.policy_id) for row in rows} == {(live.checkpoint_id, live.policy_id)}
        assert sorted(row.flag or "" for row in rows) == ["", "", "", "", "", "partly_scored"]
        assert session.scalars(select(ShadowPriority)).all() == []
        assert session.scalars(select(Audit.detail).where(Audit.action == "rescored")).one()["moved"] == 6
    with open_scorer(context) as scorer:  # the same places that scoring them anew would give
        with session_scope(context.engine) as session:
            session.execute(text("UPDATE study SET state = 'waiting'"))
        score_waiting(scorer, kind="score")
    assert order(context) == after
    assert preview(context, live, read=False).movers == []


def test_what_was_interrupted_goes_on_and_reads_no_film_twice(embedded, other, tmp_path, monkeypatch):
    score(embedded, tmp_path / "films")
    promote(embedded, other)
    live, submitted, submit = embedded.live(), [], DecoderPool.submit
    monkeypatch.setattr(rescoring, "FILMS_AT_ONCE", 2)

    def counted(self, *film):
        submitted.append(film)
        return submit(self, *film)

    monkeypatch.setattr(DecoderPool, "submit", counted)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(embedded, live, read=False, on_films=interrupt)
    assert seen(embedded, live.checkpoint_id) == 2
    submitted.clear()
    look(embedded, live, read=False)
    assert len(submitted) == 4
    assert seen(embedded, live.checkpoint_id) == 6


def test_studies_whose_films_changed_or_are_gone_stay_where_they_are(context, other, tmp_path):
    folder = score(context, tmp_path / "films")
    promote(context, other)
    (folder / "0.dcm").unlink()
    live = context.live()
    look(context, live, read=False)
    assert to_see(context, live, read=False) == 1
    preview(context, live, read=False)
    with read_scope(context.engine) as session:
        uid = session.execute(text("SELECT study_instance_uid FROM study WHERE accession_number = 'A1'")).scalar()
    make_film(folder / "late.dcm", pixels=texture(seed=9), bits=12, StudyInstanceUID=uid)
    receive(context, [folder / "late.dcm"])
    assert make_live(context, live, read=False) == Moved(moved=4, left_out=2)
    with read_scope(context.engine) as session:
        unmoved = StudyPriority.checkpoint_id != live.checkpoint_id
        left = select(Study.accession_number).join(StudyPriority).where(unmoved)
        assert set(session.scalars(left)) == {"A0", "A1"}


def test_nothing_goes_live_by_another_policy_or_checkpoint_than_was_looked_at(embedded, other, tmp_path):
    score(embedded, tmp_path / "films", 1)
    old = embedded.live()
    promote(embedded, other)
    live = embedded.live()
    preview(embedded, live, read=False)
    with pytest.raises(NotLive, match="checkpoint"):
        make_live(embedded, old, read=False)
    with session_scope(embedded.engine) as session:
        rules = policy.edited(live.policy, Changes(weights={"Edema": 2.0}))
        version = policy.store(session, rules, capacity={}, by="test", note="a test").version
    activation.activate(embedded.engine, version, by="test")
    with pytest.raises(NotLive, match="policy"):
        make_live(embedded, live, read=False)


def test_what_was_read_is_moved_only_when_asked(context, other, tmp_path):
    score(context, tmp_path / "films", 2)
    promote(context, other)
    live = context.live()
    with session_scope(context.engine) as session:
        session.execute(text("UPDATE study_priority SET read_at = received_at WHERE study_id = 1"))
    assert (to_see(context, live, read=False), to_see(context, live, read=True)) == (1, 2)
    look(context, live, read=True)
    preview(context, live, read=True)
    assert make_live(context, live, read=False) == Moved(1, 0)
    assert make_live(context, live, read=True) == Moved(1, 0)


def test_a_checkpoint_that_was_in_shadow_has_seen_everything_when_it_is_promoted(context, other, tmp_path):
    champion = context.live()
    with session_scope(context.engine) as session:
        enter(context, session, context.register(session, other), champion=champion, reason="a test")
    score(context, tmp_path / "films", 2)
    promote(context, other)
    live = context.live()
    assert to_see(context, live, read=False) == 0
    preview(context, live, read=False)
    assert make_live(context, live, read=False) == Moved(2, 0)


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def nightread(embedded, monkeypatch):
    for name, value in environment_of(embedded.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(cli.app, list(arguments))


def test_rescore_shows_and_waits_for_the_word_before_it_moves(nightread, embedded, other, tmp_path):
    context = embedded
    score(context, tmp_path / "films", 3)
    listed = order(context)
    with session_scope(context.engine) as session:
        digest = context.register(session, other).digest
    looked: Result = nightread("rescore", "--checkpoint", digest[:12], "--json")
    assert looked.exit_code == 0, looked.output
    assert json.loads(looked.stdout)["seen_by_both"] == 3
    assert nightread("rescore", "--checkpoint", digest[:12], "--live").exit_code == 2
    promote(context, other)
    shown = nightread("rescore")
    assert "Nothing has moved" in shown.output
    assert order(context) == listed
    moved = nightread("rescore", "--live")
    assert "3 studies moved" in moved.output, moved.output
    assert order(context) != listed
