"""Faults of a night, one at a time, on real Redis and PostgreSQL: nothing lost, nothing twice.

`make chaos` throws the same faults together, at random moments.
"""

import ast
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis
import torch
from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import OperationalError

import db
from db import registry, schema
from db.models import FilmScore, Instance, Study
from db.session import make_engine, read_scope, session_scope
from tests.support.contexts import MakeContext, with_settings
from tests.support.crew import enqueue, environment_of, running, start, totals, wait_until
from tests.support.dicom_files import make_film, texture
from tests.support.hostile import decode_hostile_film
from tests.support.servers import PostgresServer, RedisServer
from tests.support.side_by_side import at_once
from tests.support.values import present
from worker.cli import main as cli
from worker.context import Context
from worker.intake.receive import receive
from worker.monitoring.prometheus import WorkMetrics
from worker.queue.app import make_app
from worker.queue.maintenance import sweep
from worker.queue.tasks import Service
from worker.scoring.decoding import NetworkInput
from worker.scoring.in_flight import InFlight
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer
from worker.settings import Settings
from worker.terminal.console import UNAVAILABLE, WRONG_USAGE

pytestmark = pytest.mark.xdist_group("servers")

RECOVERY_SECONDS = 120  # what is promised for every fault; these tests use shorter leases
STOP_SECONDS = 30  # what is promised for SIGTERM (docs/how-to/operations.md)


def films_in(folder: Path, number: int, **attributes) -> list[str]:
    """Writes `number` new studies of one film each; returns their Study Instance UIDs."""
    folder.mkdir(parents=True, exist_ok=True)
    made = len(list(folder.iterdir()))
    films = [
        make_film(folder / f"{made + i:03d}.dcm", pixels=texture(seed=made + i), bits=12, **attributes)
        for i in range(number)
    ]
    return [film.StudyInstanceUID for film in films]


def states(context: Context) -> dict[str, tuple[str, str | None]]:
    with read_scope(context.engine) as session:
        rows = session.execute(select(Study.study_instance_uid, Study.state, Study.reason))
        return {uid: (state, reason) for uid, state, reason in rows}


def score_rows(context: Context) -> int:
    with read_scope(context.engine) as session:
        return session.scalar(select(func.count()).select_from(FilmScore)) or 0


# ------------------------------------------------------------------------- one worker and one beat, through everything


@dataclass
class Night:
    """A worker and a beat that live through all the faults of this module's first part."""

    context: Context
    postgres: PostgresServer
    redis: RedisServer
    worker: subprocess.Popen
    beat: subprocess.Popen
    log: Path
    films: Path

    def send(self, number: int) -> None:
        folder = self.films / f"{len(list(self.films.iterdir())):02d}"
        films_in(folder, number)
        enqueue(self.context, folder)

    def start_worker(self) -> None:
        """A new worker after the one that ended, up to its first results: from then on it hears a signal."""
        self.worker = start(self.context, "worker", self.log)
        self.send(2)
        wait_until(self.all_settled, seconds=RECOVERY_SECONDS, log=self.log)

    def all_settled(self) -> bool:
        try:
            return totals(self.context).waiting == 0
        except OperationalError:  # the database is away
            return False


@pytest.fixture(scope="module")
def night(
    tmp_path_factory: pytest.TempPathFactory,
    make_context: MakeContext,
    module_postgres: PostgresServer,
    module_redis: RedisServer,
) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    (folder / "films").mkdir()
    context = make_context(
        database_url=module_postgres.url,
        broker_url=module_redis.url,
        lease_minutes=0.1,
        sweep_seconds=1.0,
        renotify_minutes=0.05,
        straggler_seconds=0.2,
        log={"format": "json"},
    )
    log = folder / "log"
    with running(context, "beat", log) as beat:
        night = Night(
            context, module_postgres, module_redis, start(context, "worker", log), beat, log, folder / "films"
        )
        night.send(2)
        wait_until(night.all_settled, log=log)
        yield night
        night.worker.terminate()
        night.worker.wait(timeout=60)


def redis_restarts(night: Night) -> None:
    night.redis.restart()


def redis_is_killed_and_stays_away(night: Night) -> None:
    night.redis.kill()
    time.sleep(5)
    night.redis.start()


def redis_restarts_twice_at_once(night: Night) -> None:  # Celery before 5.4 went silent after this (celery#8030)
    night.redis.kill()
    night.redis.start()
    time.sleep(1)
    night.redis.restart()


def redis_is_emptied(night: Night) -> None:
    night.redis.empty()


def redis_is_silent(night: Night) -> None:
    night.redis.pause()
    time.sleep(4)
    night.redis.resume()


def postgres_restarts(night: Night) -> None:
    night.postgres.restart()


def postgres_is_killed_and_stays_away(night: Night) -> None:
    night.postgres.kill()
    time.sleep(5)
    night.postgres.start()


def postgres_is_silent_for_longer_than_a_lease(night: Night) -> None:
    night.postgres.pause()
    time.sleep(8)
    night.postgres.resume()


@pytest.mark.parametrize(
    "fault",
    [
        redis_restarts,
        redis_is_killed_and_stays_away,
        redis_restarts_twice_at_once,
        redis_is_emptied,
        redis_is_silent,
        postgres_restarts,
        postgres_is_killed_and_stays_away,
        postgres_is_silent_for_longer_than_a_lease,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_worker_and_a_beat_go_on_by_themselves_when(fault: Callable[[Night], None], night: Night):
    night.send(8)
    fault(night)
    began = time.monotonic()
    wait_until(night.all_settled, seconds=RECOVERY_SECONDS, log=night.log)
    night.send(3)
    wait_until(night.all_settled, seconds=RECOVERY_SECONDS, log=night.log)
    assert time.monotonic() - began < RECOVERY_SECONDS
    assert (night.worker.poll(), night.beat.poll()) == (None, None), "neither was started anew"
    found = totals(night.context)
    assert (found.scored, found.quarantined) == (found.received, 0)
    assert score_rows(night.context) == found.received


def test_all_that_both_wrote_meanwhile_is_json(night: Night):
    events = {json.loads(line)["event"] for line in night.log.read_text().splitlines()}
    assert {"listening", "beat_started"} <= events


SLOW_COMMIT = """
    CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON film_score DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION slow_commit();
"""


@contextmanager
def slow_commits(night: Night) -> Iterator[None]:
    """Each commit takes 1.5 seconds a film; the database may restart meanwhile."""
    url = night.postgres.url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(SLOW_COMMIT)
    yield
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("DROP FUNCTION slow_commit CASCADE")


def commits(night: Night) -> bool:
    """Whether somebody is committing slowly."""
    with psycopg.connect(night.postgres.url.replace("+psycopg", ""), autocommit=True) as admin:
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        (sleepers,) = admin.execute(sleeping).fetchone() or (0,)
        return sleepers > 0


def test_a_database_killed_while_it_commits_has_each_score_once(night: Night):
    with slow_commits(night):
        night.send(2)
        wait_until(lambda: commits(night), log=night.log)
        night.postgres.kill()
        night.postgres.start()
    wait_until(night.all_settled, seconds=RECOVERY_SECONDS, log=night.log)
    assert totals(night.context).scored == score_rows(night.context) == totals(night.context).received


def test_garbage_in_the_queue_ends_the_worker_and_the_next_one_goes_on(night: Night):
    night.send(2)
    with redis.Redis.from_url(night.redis.url) as client:
        client.rpush("scoring", b"not JSON")
    assert night.worker.wait(timeout=60) != 0, "so that whoever watches over it starts it again"
    night.start_worker()
    assert totals(night.context).scored == score_rows(night.context) == totals(night.context).received


def test_a_worker_stops_within_half_a_minute_while_postgres_is_away(night: Night):
    with slow_commits(night):
        night.send(12)
        wait_until(lambda: commits(night), log=night.log)
        night.postgres.kill()
        try:
            time.sleep(3)  # it has noticed, and tries again with pauses
            night.worker.terminate()
            assert night.worker.wait(timeout=STOP_SECONDS) == 0
        finally:
            night.postgres.start()
    night.start_worker()
    assert totals(night.context).scored == score_rows(night.context) == totals(night.context).received


def test_a_worker_stops_within_half_a_minute_while_redis_is_away(night: Night):
    night.redis.kill()
    try:
        night.worker.terminate()
        assert night.worker.wait(timeout=STOP_SECONDS) == 0
    finally:
        night.redis.start()
    assert totals(night.context).claimed == 0


BROKEN_DEVICE = """
import sys
from worker.cli import main as cli
from worker.scoring import inference

def predict(self, inputs):
    raise RuntimeError("CUDA error: unspecified launch failure")

inference.Classifier.predict = predict
sys.argv = ["nightread", "worker"]
cli.main()
"""


def test_a_worker_whose_device_does_not_compute_any_more_ends_and_blames_no_study(
    make_context: MakeContext, postgres_url: str, redis_url: str, tmp_path: Path
):
    context = make_context(database_url=postgres_url, broker_url=redis_url)
    films_in(tmp_path, 6)
    enqueue(context, tmp_path)
    environment = os.environ | environment_of(context.settings)
    ended = subprocess.run([sys.executable, "-c", BROKEN_DEVICE], env=environment, capture_output=True, timeout=120)
    assert ended.returncode == UNAVAILABLE, ended.stderr.decode()
    assert b"the device no longer computes" in ended.stderr
    with read_scope(context.engine) as session:
        assert session.execute(select(Study.state, Study.attempts).distinct()).all() == [("waiting", 0)]


# ----------------------------------------------------------------------------------------------- senders and sweeps


def test_a_study_sent_ten_times_by_two_senders_at_once_is_there_once(context: Context, tmp_path: Path):
    films_in(tmp_path, 4)
    at_once(*[lambda: [receive(context, [tmp_path]) for _ in range(5)]] * 2)
    assert totals(context).received == 4
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    receive(context, [tmp_path])
    assert totals(context).scored == score_rows(context) == 4
    assert totals(context).waiting == 0


def test_two_sweeps_at_once_notify_once(context: Context, redis_url: str, tmp_path: Path):
    context = with_settings(context, broker_url=redis_url)
    films_in(tmp_path, 8)
    receive(context, [tmp_path])
    at_once(*[lambda: sweep(context, make_app(context.settings))] * 2)
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("scoring") == 8


def test_two_sweeps_at_once_end_each_lease_once(context: Context, redis_url: str, tmp_path: Path):
    context = with_settings(context, broker_url=redis_url, lease_minutes=1e-6)
    films_in(tmp_path, 8)
    receive(context, [tmp_path])
    with open_scorer(context) as scorer:
        InFlight(scorer).claim(None)
    at_once(*[lambda: sweep(context, make_app(context.settings))] * 2)
    with read_scope(context.engine) as session:
        assert session.execute(select(Study.state, Study.attempts, Study.suspect).distinct()).all() == [
            ("waiting", 1, True)
        ]


def test_a_worker_that_is_recording_is_not_waited_for_by_the_sweep(
    make_context: MakeContext, postgres_url: str, tmp_path: Path
):
    context = make_context(database_url=postgres_url, lease_minutes=1e-6)
    films_in(tmp_path, 2)
    receive(context, [tmp_path])
    with open_scorer(context) as scorer:
        in_flight = InFlight(scorer)
        in_flight.claim(None)
        with session_scope(context.engine) as recording, session_scope(context.engine) as sweeping:
            first = min(in_flight.studies)
            recording.execute(update(Study).where(Study.id == first).values(detail="being recorded"))
            sweeping.execute(text("SET LOCAL lock_timeout = '2s'"))
            assert db.ledger.release_expired(sweeping, max_attempts=3) == (1, [])


def test_two_score_commands_on_one_sqlite_file_score_each_study_once(embedded: Context, tmp_path: Path):
    films_in(tmp_path / "films", 24)
    log = tmp_path / "log"
    pipeline = [start(embedded, "score", log, str(tmp_path / "films")) for _ in range(2)]
    assert [process.wait(timeout=240) for process in pipeline] == [0, 0], log.read_text()
    assert totals(embedded).scored == score_rows(embedded) == totals(embedded).received == 24


def test_both_connections_have_the_kernel_notice_a_network_that_swallows_packets(postgres_url: str, redis_url: str):
    with make_engine(postgres_url).connect() as database:
        told = socket.socket(fileno=os.dup(present(database.connection.dbapi_connection).fileno()))
        assert told.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000  # milliseconds
        assert told.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        told.close()
    with make_app(Settings(broker_url=redis_url)).connection_for_write() as broker:
        connection = broker.default_channel.client.connection_pool.get_connection()
        assert connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10  # seconds
        assert connection._sock.gettimeout() == 30


def test_nothing_in_db_reads_the_clock_of_its_machine():
    clocks = {"now", "utcnow", "today", "time", "localtime"}
    for file in Path(next(iter(db.__path__))).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in clocks:
                assert ast.unparse(node.func.value) == "func", f"{file.name}:{node.lineno} reads a local clock"


# ------------------------------------------------------------------------------------------------------ hostile films


@pytest.mark.parametrize(
    ("fate", "reason"),
    [("raises", "decoder_raised"), ("hangs", "decoder_timeout"), ("kills", "decoder_crashed")],
)
def test_a_film_is_quarantined_alone_that(fate, reason, make_context, tmp_path: Path, monkeypatch):
    embedded = make_context(decode={"timeout_seconds": 3.0})
    monkeypatch.setattr("worker.scoring.decoder_pool.decode_film", decode_hostile_film)
    sound = films_in(tmp_path, 3)
    hostile = films_in(tmp_path, 1, SeriesDescription=fate)
    sound += films_in(tmp_path, 2)
    receive(embedded, [tmp_path])
    with open_scorer(embedded) as scorer:
        score_waiting(scorer, kind="score")
    assert states(embedded) == {**dict.fromkeys(sound, ("scored", None)), hostile[0]: ("quarantined", reason)}


def _score_until_killed(settings: Settings, killer_pixels: str) -> None:
    """A worker whose process dies when it predicts a film with these pixels, as a fault in a driver would have it."""
    torch.set_num_threads(1)
    context = Context(settings)
    with open_scorer(context) as scorer:
        predict = InFlight.predict

        def deadly(in_flight, batch):
            if any(network_input.pixel_digest == killer_pixels for _, _, network_input in batch):
                os.kill(os.getpid(), signal.SIGKILL)
            predict(in_flight, batch)

        InFlight.predict = deadly  # type: ignore[method-assign]
        while totals(context).waiting:
            with session_scope(context.engine) as session:
                db.ledger.release_expired(session, max_attempts=settings.max_attempts)
            score_waiting(scorer, kind="night")
            time.sleep(0.05)


def test_a_study_that_kills_every_worker_is_found_and_its_neighbours_are_scored(make_context, tmp_path: Path):
    sound = films_in(tmp_path / "films", 3)
    context = make_context(lease_minutes=0.02)
    killer = films_in(tmp_path / "films", 1)
    sound += films_in(tmp_path / "films", 3)
    receive(context, [tmp_path / "films"])
    with open_scorer(context) as scorer, read_scope(context.engine) as session:
        films = select(Instance.path, Instance.sop_instance_uid).join(Study)
        path, uid = session.execute(films.where(Study.study_instance_uid == killer[0])).one()
        network_input = scorer.decoders.submit(path, uid)
        wait_until(network_input.future.done)
        decoded = network_input.result()
        assert isinstance(decoded, NetworkInput)
        digest = decoded.pixel_digest
    forks = multiprocessing.get_context("forkserver")  # torch is imported once, and no thread of it has run there
    forks.set_forkserver_preload(["worker.scoring.pipeline"])
    deaths = 0
    while totals(context).waiting:
        worker = forks.Process(target=_score_until_killed, args=(context.settings, digest))
        worker.start()
        worker.join()
        deaths += worker.exitcode == -signal.SIGKILL
        assert deaths <= 3
    assert deaths == 3
    assert states(context) == {**dict.fromkeys(sound, ("scored", None)), killer[0]: ("quarantined", "worker_lost")}


# -------------------------------------------------------------------------------------------- memory, disk, checkpoint


def test_a_device_out_of_memory_halves_the_batch_and_goes_on(embedded: Context, tmp_path: Path):
    films_in(tmp_path, 6)
    receive(embedded, [tmp_path])
    with open_scorer(embedded) as scorer:
        runtime = scorer.classifier.runtime

        def little_memory(inputs, *, batch_size):
            if batch_size > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return runtime(inputs, batch_size=batch_size)

        scorer.classifier.runtime = little_memory
        assert score_waiting(scorer, kind="score").scored == 6
        assert scorer.classifier.batch_size == 2


def test_a_full_disk_ends_the_pass_and_the_next_one_goes_on(embedded: Context, tmp_path: Path):
    films_in(tmp_path, 80)
    receive(embedded, [tmp_path])
    with sqlite3.connect(embedded.settings.database_url.removeprefix("sqlite:///")) as database:
        database.executescript("VACUUM")  # no page is free, into which results could go
    pages = {"limit": 0}

    def limit_pages(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages['limit']}")

    with open_scorer(embedded) as scorer:
        with embedded.engine.connect() as connection:
            pages["limit"] = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        event.listen(embedded.engine, "connect", limit_pages)
        embedded.engine.dispose()
        with pytest.raises(OperationalError, match="disk is full"):
            score_waiting(scorer, kind="score")
        pages["limit"] = 2**30
        embedded.engine.dispose()
        assert totals(embedded).balance
        with session_scope(embedded.engine) as session:
            session.execute(text("UPDATE study SET lease_expires_at = '2026-01-01' WHERE state = 'claimed'"))
        score_waiting(scorer, kind="score")
    assert totals(embedded).scored == score_rows(embedded) == 80


def test_studies_of_a_score_command_that_was_killed_are_taken_by_the_next(embedded: Context, tmp_path: Path):
    films_in(tmp_path, 3)
    receive(embedded, [tmp_path])
    quick = with_settings(embedded, lease_minutes=1e-6)
    with open_scorer(quick) as dead:
        InFlight(dead).claim(None)
    with open_scorer(embedded) as scorer:
        assert score_waiting(scorer, kind="score").scored == 3


@pytest.mark.parametrize("content", [None, b"\x08\0\0\0\0\0\0\0{}{}{}{}"], ids=["missing", "damaged"])
def test_a_worker_without_a_sound_checkpoint_says_so_and_ends(content, tmp_path, redis_url, capsys, monkeypatch):
    checkpoint = tmp_path / "checkpoint.safetensors"
    if content is not None:
        checkpoint.write_bytes(content)
    database_url = f"sqlite:///{tmp_path / 'n.db'}"
    schema.upgrade(make_engine(database_url))
    values = {"DATABASE_URL": database_url, "BROKER_URL": redis_url, "CHECKPOINT": checkpoint}
    for name, value in values.items():
        monkeypatch.setenv(f"NIGHTREAD_{name}", str(value))
    monkeypatch.setattr(sys, "argv", ["nightread", "worker"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == WRONG_USAGE
    output = capsys.readouterr().err
    assert "checkpoint" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("content", [None, b"\x08\0\0\0\0\0\0\0{}{}{}{}"], ids=["missing", "damaged"])
def test_a_promoted_checkpoint_that_cannot_be_loaded_leaves_the_old_one_at_work(
    content, embedded: Context, untrained_checkpoint: Path, tmp_path: Path
):
    context = with_settings(embedded, checkpoint=untrained_checkpoint)  # intake still has a checkpoint to rank by
    service = Service(embedded, metrics=WorkMetrics())
    before = service.scorer().live.digest
    promoted = tmp_path / "promoted.safetensors"
    if content is not None:
        promoted.write_bytes(content)
    with session_scope(context.engine) as session:
        row = registry.register(
            session, digest="0" * 64, path=str(promoted), network="mobilenet", header={}, reference={}, by="test"
        )
        registry.set_state(session, row, "champion", by="test")
    films_in(tmp_path / "films", 2)
    receive(context, [tmp_path / "films"])
    with read_scope(context.engine) as session:
        first = session.scalars(select(func.min(Study.id))).one()
    service.score(first)
    assert service.scorer().live.digest == before
    service.close()
    assert totals(context).scored == 2
