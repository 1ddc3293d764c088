"""A registered film is opened again by one door: what lies in its place is neither shown nor learned."""

from pathlib import Path

import pytest
from sqlalchemy import select

from db.models import FilmScore, Instance
from db.morning import films_of
from db.session import read_scope, session_scope
from tests.support.contexts import MakeContext
from tests.support.dicom_files import make_film, texture
from training.prepared import READY
from worker.checkpoints import promotion, rescoring
from worker.context import Context
from worker.explain import NoFilm, write_heatmaps
from worker.intake.receive import receive
from worker.report.pictures import Wanted, pictures_of
from worker.retraining import labels
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer

KEPT, LINK, FOLDER_LINK, PIXELS, INSTANCE, OUTSIDE = range(6)
REASONS = {LINK: "file_replaced", FOLDER_LINK: "file_replaced", PIXELS: "file_replaced", INSTANCE: "file_replaced",
           OUTSIDE: "outside_roots"}  # fmt: skip


@pytest.fixture(scope="module")
def swapped(make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Scored films, of which all but the first are no longer what was scored, or lie where no film may lie now."""
    folder = tmp_path_factory.mktemp("films")
    outside, context = folder / "outside", make_context(decoders=1)
    for number in range(6):
        path = _path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        make_film(path, pixels=texture(seed=number), bits=12, SOPInstanceUID=f"2.25.{number + 1}")
    receive(context, [folder])
    with open_scorer(context) as scorer:
        assert score_waiting(scorer, kind="score").scored == 6
    _path(folder, LINK).rename(folder / "link.kept")
    _path(folder, LINK).symlink_to(folder / "link.kept")
    _path(folder, FOLDER_LINK).parent.rename(folder / "folder.kept")
    _path(folder, FOLDER_LINK).parent.symlink_to(folder / "folder.kept")
    make_film(_path(folder, PIXELS), pixels=texture(seed=9), bits=12, SOPInstanceUID=f"2.25.{PIXELS + 1}")
    make_film(_path(folder, INSTANCE), pixels=texture(seed=INSTANCE), bits=12)
    assert outside.is_dir()
    return Context(context.settings.changed(roots=(str(folder / "in"),)))


def _path(folder: Path, number: int) -> Path:
    below = {FOLDER_LINK: "in/folder", OUTSIDE: "outside"}.get(number, "in")
    return folder / below / f"{number}.dcm"


def _ids(context: Context) -> dict[int, int]:
    """Number -> the id of its instance."""
    with read_scope(context.engine) as session:
        rows = session.execute(select(Instance.sop_instance_uid, Instance.id)).all()
    return {int(uid.removeprefix("2.25.")) - 1: instance_id for uid, instance_id in rows}


def test_heat_maps_are_drawn_of_no_film_but_the_one_that_was_scored(swapped: Context, tmp_path: Path):
    for number, why in ((LINK, "taken the place"), (PIXELS, "other pixels")):
        with pytest.raises(NoFilm, match=why):
            write_heatmaps(swapped, f"2.25.{number + 1}", tmp_path, layers=False)
    assert list(tmp_path.iterdir()) == []
    assert write_heatmaps(swapped, "2.25.1", tmp_path, layers=False)


def test_the_morning_page_shows_no_film_but_the_one_that_was_scored(swapped: Context):
    with read_scope(swapped.engine) as session:
        studies = session.scalars(select(Instance.study_id)).all()
        wanted = [Wanted(film, None) for listed in films_of(session, studies).values() for film in listed]
    assert len(wanted) == 6
    shown = pictures_of(swapped, wanted, checkpoint=None)
    assert set(shown) == {_ids(swapped)[KEPT]}


def test_a_retraining_learns_from_no_film_but_the_one_that_was_scored(swapped: Context):
    rows = {labels.image_of(instance_id): number for number, instance_id in _ids(swapped).items()}
    found = {decoded.row: decoded.outcome for decoded in labels.decoding(swapped, size=64)(rows)}
    assert found == {KEPT: READY, **REASONS}


def test_a_rescoring_looks_at_no_film_but_the_one_that_was_scored(swapped: Context, other: Path):
    with session_scope(swapped.engine) as session:
        row = swapped.register(session, other)
        promotion.promote(swapped, session, row, reason="a test", override="a test")
    rescoring.look(swapped, swapped.live(), read=False)
    with read_scope(swapped.engine) as session:
        seen = session.scalars(select(FilmScore.instance_id).where(FilmScore.checkpoint_id == row.id)).all()
    assert seen == [_ids(swapped)[KEPT]]
