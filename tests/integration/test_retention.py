"""Retention: studies older than a site may keep them go whole; waiting, renewed and reviewed ones stay."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from db.base import Base
from db.models import Audit, FilmScore, Instance, RejectedFile, Review, RunRank, Study, StudyPriority
from db.retention import Prunable
from db.session import read_scope, session_scope
from tests.support.contexts import MakeContext
from tests.support.crew import totals
from tests.support.dicom_files import make_film, texture
from worker.context import Context
from worker.intake.receive import receive
from worker.retention import Pruning, prunable, prunable_pictures, prune, prune_pictures
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SINCE = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def context(make_context: MakeContext, database_url: str, tmp_path: Path) -> Context:
    """Five scored studies, one that waits, and a file that is no DICOM; all received long ago but the last scored."""
    context = make_context(database_url=database_url)
    for i in range(5):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    (tmp_path / "x.dcm").write_text("not DICOM")
    receive(context, [tmp_path])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    make_film(tmp_path / "waits.dcm")
    receive(context, [tmp_path])
    with session_scope(context.engine) as session:
        newest = session.scalar(select(func.max(Study.id)).where(Study.state == "scored"))
        old = Study.id != newest
        session.execute(update(Study).where(old).values(received_at=LONG_AGO))
        session.execute(update(Study).where(old, Study.state == "scored").values(settled_at=LONG_AGO))
        session.execute(update(RejectedFile).values(received_at=LONG_AGO))
        first = session.scalars(select(func.min(Study.id))).one()
        session.add(Review(study_id=first, finding="Mass", verdict="absent", reader="r", reviewed_at=LONG_AGO))
        session.execute(update(StudyPriority).where(StudyPriority.study_id == first + 1).values(read_at=LONG_AGO))
    return context


def rows(context: Context, *tables: type[Base]) -> list[int]:
    with read_scope(context.engine) as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def test_a_dry_run_counts_and_deletes_nothing(context: Context):
    found = prunable(context.engine, Pruning(SINCE, unread=True))
    assert (found.studies, found.unread, found.instances, found.rejected_files) == (3, 2, 3, 1)
    assert rows(context, Study, Instance, FilmScore, RejectedFile) == [6, 6, 5, 1]


def test_what_nobody_has_read_stays_unless_it_is_named(context: Context):
    gone = prune(context.engine, Pruning(SINCE), by="test")
    assert gone == Prunable(studies=1, unread=0, unread_kept=2, instances=1, rejected_files=1)
    assert rows(context, Study) == [5]


def test_old_settled_studies_go_with_all_that_hangs_on_them(context: Context):
    gone = prune(context.engine, Pruning(SINCE, unread=True), by="test")
    assert gone == Prunable(studies=3, unread=2, unread_kept=0, instances=3, rejected_files=1)
    assert rows(context, Study, Instance, FilmScore, StudyPriority, RunRank, RejectedFile) == [3, 3, 2, 3, 2, 0]
    found = totals(context)
    assert (found.received, found.scored, found.waiting) == (3, 2, 1)
    assert prune(context.engine, Pruning(SINCE, unread=True), by="test").studies == 0


def test_a_reviewed_study_stays_unless_asked_for(context: Context):
    prune(context.engine, Pruning(SINCE, unread=True), by="test")
    assert rows(context, Review) == [1]
    assert prune(context.engine, Pruning(SINCE, unread=True, reviewed=True), by="test").studies == 1
    assert rows(context, Review) == [0]


def test_nothing_that_is_not_settled_goes_whatever_the_date(context: Context):
    everything = Pruning(datetime.now(UTC) + timedelta(days=1), reviewed=True, unread=True)
    prune(context.engine, everything, by="test")
    with read_scope(context.engine) as session:
        assert session.scalars(select(Study.state)).all() == ["waiting"]


def test_the_audit_says_who_pruned_what(context: Context):
    prune(context.engine, Pruning(SINCE, unread=True), by="test")
    with read_scope(context.engine) as session:
        entry = session.scalars(select(Audit).where(Audit.action == "prune")).one()
        assert entry.actor == "test"
        assert (entry.detail["studies"], entry.detail["before"]) == (3, SINCE.isoformat())


def test_the_pictures_of_a_study_go_with_it_whenever_they_were_made(context: Context):
    with read_scope(context.engine) as session:
        first, *others = session.scalars(select(Study.id).order_by(Study.id)).all()
    context.pictures_folder.mkdir(parents=True)
    pictures = {study: context.pictures_folder / f"{study}-{'a' * 64}.png" for study in (first, *others, 10**6)}
    for picture in pictures.values():
        picture.write_bytes(b"a picture made just now")
    pruning = Pruning(SINCE)
    going = {others[0], 10**6}  # the one that was read, and one that went before
    assert set(prunable_pictures(context, pruning)) == {pictures[study] for study in going}
    prune(context.engine, pruning, by="test")
    assert set(prune_pictures(context, pruning, by="test")) == {pictures[study] for study in going}
    assert set(context.pictures_folder.iterdir()) == {pictures[study] for study in pictures.keys() - going}
