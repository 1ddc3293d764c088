"""The same story through real Redis and real PostgreSQL, with worker processes as users start them."""

import signal
from pathlib import Path
from subprocess import Popen

import pytest
import redis
from sqlalchemy import select, text

from db.models import FINDING_COLUMNS, FilmScore, Instance, StudyPriority
from db.session import read_scope
from tests.support.contexts import MakeContext, with_settings
from tests.support.crew import enqueue, messages, running, totals, wait_until
from tests.support.dicom_files import make_film, texture
from worker.context import Context
from worker.intake.receive import receive
from worker.queue.app import make_app
from worker.queue.maintenance import sweep
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer

pytestmark = pytest.mark.xdist_group("servers")


@pytest.fixture
def context(make_context: MakeContext, postgres_url: str, redis_url: str) -> Context:
    return make_context(database_url=postgres_url, broker_url=redis_url)


def rows(context: Context) -> set[tuple]:
    """All that scoring decides, without the ids and times that differ from run to run."""
    scores = [getattr(FilmScore, name) for name in FINDING_COLUMNS]
    place = (StudyPriority.category, StudyPriority.urgency, StudyPriority.top_finding, StudyPriority.flag)
    statement = (
        select(Instance.sop_instance_uid, *scores, *place)
        .join(FilmScore, FilmScore.instance_id == Instance.id)
        .join(StudyPriority, StudyPriority.study_id == Instance.study_id)
    )
    with read_scope(context.engine) as session:
        return {
            tuple(round(value, 6) if isinstance(value, float) else value for value in row)
            for row in session.execute(statement)
        }


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for i in range(24):
        make_film(folder / f"{i:02d}.dcm", pixels=texture(seed=i), bits=12)
    make_film(folder / "lateral.dcm", view_position="LL")
    make_film(folder / "broken.dcm", PixelData=b"\0\0")
    return folder


def test_two_workers_write_the_same_rows_as_one_process(context, embedded, films, tmp_path):
    receive(embedded, [films])
    with open_scorer(embedded) as scorer:
        score_waiting(scorer, kind="score")
    assert len(enqueue(context, films)) == 25
    log = tmp_path / "worker.log"
    with running(context, "worker", log), running(context, "worker", log):
        wait_until(lambda: totals(context).waiting == 0, log=log)
    found = totals(context)
    assert (found.scored, found.skipped, found.quarantined) == (24, 1, 1)
    assert len(rows(context)) == 24
    assert rows(context) == rows(embedded)


def test_a_message_is_a_row_id_and_nothing_else(context, films):
    make_film(films / "named.dcm", PatientName="Canary^Name", PatientID="CANARY-ID", AccessionNumber="CANARYACC")
    study_id, *_others = enqueue(context, films)
    sent = messages(context.settings.broker_url)
    assert f"[[{study_id}]" in sent
    for secret in ("Canary", "CANARY", ".dcm", "2.25", "1.2.826"):
        assert secret not in sent


def freeze_at_work(worker: Popen[bytes], context: Context, log: Path) -> None:
    """Pause the worker's process (SIGSTOP) at a moment when it holds studies."""

    def holds_studies() -> bool:
        return totals(context).claimed > 0

    wait_until(holds_studies, log=log)
    worker.send_signal(signal.SIGSTOP)
    assert holds_studies(), "it was quicker than the signal"


def test_a_worker_that_is_killed_loses_nothing(context, films, tmp_path):
    context = with_settings(context, lease_minutes=0.05, sweep_seconds=1.0)
    enqueue(context, films)
    log = tmp_path / "worker.log"
    with running(context, "worker", log) as first:
        freeze_at_work(first, context, log)
        first.kill()
    assert totals(context).claimed > 0, "what it held is still in the dead worker's name"
    with running(context, "worker", log), running(context, "beat", log):
        wait_until(lambda: totals(context).waiting == 0, log=log)
    assert totals(context).scored == 24
    assert len(rows(context)) == 24


def test_a_worker_told_to_stop_gives_back_what_is_in_flight(context, films, tmp_path):
    enqueue(context, films)
    log = tmp_path / "worker.log"
    with running(context, "worker", log) as worker:
        freeze_at_work(worker, context, log)
        worker.terminate()
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(timeout=60) == 0
    found = totals(context)
    assert found.claimed == 0, "and nobody else is there to end its leases"
    assert found.waiting > 0, "it did not finish the night first"
    assert found.balance


def test_a_worker_that_has_run_long_enough_ends_by_itself_as_if_told_to_stop(context, films, tmp_path):
    context = with_settings(context, recycle_hours=1 / 3600)
    log = tmp_path / "worker.log"
    with running(context, "worker", log) as worker:
        enqueue(context, films)
        assert worker.wait(timeout=120) == 0, log.read_text()
    assert "worker_recycled" in log.read_text()
    assert totals(context).claimed == 0
    assert totals(context).balance


def test_four_stat_films_that_hang_their_decoders_do_not_hold_the_others_up(context, films, tmp_path):
    context = with_settings(context, decoders=2, decode={"timeout_seconds": 15.0})
    for i in range(4):
        make_film(films / f"hangs-{i}.dcm", SeriesDescription="hangs", RequestedProcedurePriority="STAT")
    enqueue(context, films)
    log = tmp_path / "worker.log"
    with running(context, "worker", log, module="tests.support.hostile_worker"):
        wait_until(lambda: totals(context).scored == 24, log=log)
        found = totals(context)
    assert found.waiting >= 3, "of second tries, one at a time and 15 s each, no more than one can be over"


def test_an_emptied_redis_delays_and_loses_nothing(context, films, tmp_path):
    context = with_settings(context, renotify_minutes=1e-6)  # long over when the sweep begins
    enqueue(context, films)
    with redis.Redis.from_url(context.settings.broker_url) as client:
        client.flushdb()
    sweep(context, make_app(context.settings))
    log = tmp_path / "worker.log"
    with running(context, "worker", log):
        wait_until(lambda: totals(context).waiting == 0, log=log)
    assert totals(context).scored == 24


def test_a_swept_night_ends_with_its_ranks_kept(context, films, tmp_path):
    context = with_settings(context, run_idle_minutes=0.0)
    enqueue(context, films)
    log = tmp_path / "worker.log"
    with running(context, "worker", log):
        wait_until(lambda: totals(context).waiting == 0, log=log)
    sweep(context, make_app(context.settings))
    with read_scope(context.engine) as session:
        kind, scored, ranks = session.execute(
            text("SELECT kind, scored, (SELECT count(*) FROM run_rank) FROM run WHERE finished_at IS NOT NULL")
        ).one()
    assert (kind, scored, ranks) == ("night", 24, 26)
