"""The blind share: scored like everyone, listed like the unscored, and kept so by whatever places studies again."""

from pathlib import Path

import pytest
from sqlalchemy import select, text

from db.models import Checkpoint, FilmScore, ShadowPriority, StudyPriority
from db.session import read_scope, session_scope
from db.worklist import worklist
from tests.support.dicom_files import make_film, texture
from tests.support.untrained import save_untrained
from worker.checkpoints import promotion
from worker.checkpoints.rescoring import Moved, make_live, preview
from worker.context import Context
from worker.explain import explain_named
from worker.intake.receive import receive
from worker.ranking import activation, policy
from worker.ranking.policy import Changes
from worker.reasons import sentence
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer
from worker.scoring.shadow import enter
from worker.wording import notes

NEARLY_ALL = 0.999999


@pytest.fixture
def context(make_context, database_url) -> Context:
    """A context that lists nearly every study blind."""
    return make_context(database_url=database_url, blind_share=NEARLY_ALL)


def listed(context: Context) -> list[dict]:
    with read_scope(context.engine) as session:
        return [dict(row) for row in worklist(session)]


def places(context: Context) -> list[tuple]:
    names = ("study_id", "category", "urgency", "flag", "top_finding", "top_probability", "checkpoint_id")
    with read_scope(context.engine) as session:
        columns = [getattr(StudyPriority, name) for name in names]
        return [tuple(row) for row in session.execute(select(*columns).order_by(StudyPriority.study_id))]


def score(context: Context, folder: Path) -> None:
    receive(context, [folder])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")


def test_a_blind_study_is_scored_listed_as_unscored_and_stays_so(context, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for i in range(2):
        make_film(folder / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    stat = make_film(folder / "stat.dcm", pixels=texture(seed=3), bits=12, RequestedProcedurePriority="STAT")
    champion = context.live()
    with session_scope(context.engine) as session:
        other = context.register(session, save_untrained(tmp_path / "other.safetensors", seed=1))
        enter(context, session, other, champion=champion, reason="a test")
    score(context, folder)

    rows, before = listed(context), places(context)
    assert rows[0]["study_instance_uid"] == stat.StudyInstanceUID, "a human's STAT holds"
    assert before == [(i, "B", 0.4, "blind", None, None, None) for i in (1, 2, 3)]
    assert [notes(row) for row in rows] == ["STAT, blind", "blind", "blind"]
    assert ("category", f"B: {sentence('blind')}") in explain_named(context, stat.StudyInstanceUID).facts
    with read_scope(context.engine) as session:
        assert len(session.scalars(select(FilmScore.id)).all()) == 6, "both checkpoints' scores are kept"
        assert {place.flag for place in session.scalars(select(ShadowPriority))} == {"blind"}
        assert session.execute(text("SELECT count(*) FROM study_findings")).scalar() == 0

    with session_scope(context.engine) as session:
        rules = policy.edited(champion.policy, Changes(weights={"Effusion": 0.7}))
        version = policy.store(session, rules, capacity={}, by="test", note="a test").version
    activation.activate(context.engine, version, by="test")
    assert [row[2:] for row in places(context)] == [(0.7, "blind", None, None, None)] * 3

    with session_scope(context.engine) as session:
        promotion.promote(context, session, session.get_one(Checkpoint, other.id), reason="a test", override="a test")
    live = context.live()
    assert live.digest == other.digest
    assert preview(context, live, read=False).movers == []
    assert make_live(context, live, read=False) == Moved(0, 0)
    with session_scope(context.engine) as session:
        session.execute(text("UPDATE study SET state = 'waiting'"))
    score(context, folder)
    assert [row[2:] for row in places(context)] == [(0.7, "blind", None, None, None)] * 3
