"""The servers that the other integration tests stand on: both are real, and they survive what faults do to them."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, text

from tests.support.crew import wait_until
from tests.support.servers import PostgresServer, RedisServer, ServerStartError, free_port, package_folder
from tests.support.values import present

pytestmark = pytest.mark.xdist_group("servers")


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_postgres_is_real_and_each_test_gets_an_empty_database(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version()")).startswith("PostgreSQL ")
        assert connection.scalar(text("SELECT current_database()")).startswith("nightread_test_")
        assert connection.scalar(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")) == 0
    engine.dispose()


def test_redis_is_real_and_each_test_gets_an_empty_one(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.info("server")["redis_version"]
        assert client.dbsize() == 0


def test_postgres_keeps_committed_rows_when_killed(own_postgres: PostgresServer) -> None:
    rows(own_postgres.url, "CREATE TABLE kept (id int)")
    rows(own_postgres.url, "INSERT INTO kept VALUES (7)")
    own_postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        rows(own_postgres.url, "SELECT 1")
    own_postgres.start()
    assert rows(own_postgres.url, "SELECT id FROM kept") == [(7,)]


def test_redis_keeps_its_keys_when_killed_and_loses_them_when_emptied(own_redis: RedisServer) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("kept", "7")
        own_redis.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("kept")
        own_redis.start()
        assert client.get("kept") == b"7"
        own_redis.empty()
        assert client.get("kept") is None


def test_restart_keeps_the_port_for_waiting_clients(own_redis: RedisServer) -> None:
    port = own_redis.port
    own_redis.restart()
    assert own_redis.port == port
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.ping()


def test_paused_server_is_silent_until_it_is_resumed(own_redis: RedisServer, own_postgres: PostgresServer) -> None:
    own_redis.pause()
    own_postgres.pause()
    with (
        redis.Redis.from_url(own_redis.url, socket_timeout=0.2, retry=None) as client,
        pytest.raises(redis.TimeoutError),
    ):
        client.ping()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own_postgres.url.replace("+psycopg", ""), connect_timeout=2)
    own_redis.resume()
    own_postgres.resume()
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.ping()
    assert rows(own_postgres.url, "SELECT 1") == [(1,)]


def test_redis_with_a_password_refuses_a_client_without_it() -> None:
    with RedisServer(password="secret") as server:
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=server.port, retry=once) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()


def test_closed_server_leaves_neither_folder_nor_process() -> None:
    with RedisServer() as server:
        home, pid = server.home, int((server.home / "server.pid").read_text())
    assert not home.exists()
    assert not psutil.pid_exists(pid)


def test_server_ends_with_the_process_that_started_it() -> None:
    script = (
        "from tests.support.servers import RedisServer; "
        "s = RedisServer(); s.start(); print(s.home, flush=True); input()"
    )
    here = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": here},
    ) as owner:
        home = Path(present(owner.stdout).readline().strip())
        server = psutil.Process(int((home / "server.pid").read_text()))
        owner.kill()
    psutil.wait_procs([server], timeout=10)
    assert not server.is_running()
    wait_until(lambda: not home.exists(), seconds=10)


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    assert all(20_000 <= free_port() < 32_000 for _ in range(5))


def test_missing_package_is_said_by_name() -> None:
    with pytest.raises(ServerStartError, match="no_such_server is not installed"):
        package_folder("no_such_server")
