"""Redis and PostgreSQL over TLS: the right authority and name are let through, all others refused."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from kombu import pools
from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy import text
from sqlalchemy.exc import OperationalError as DatabaseAway

from db.session import make_engine
from tests.support.contexts import MakeContext
from tests.support.crew import enqueue, running, totals, wait_until
from tests.support.dicom_files import make_film, texture
from tests.support.servers import PostgresServer, RedisServer
from tests.support.tls_front import NAMED, UNNAMED, tls_front
from worker.queue.app import make_app, notify
from worker.settings import Settings

pytestmark = pytest.mark.xdist_group("servers")

MAKE_SECRETS = Path(__file__).parents[2] / "docker" / "make-secrets"


@dataclass
class Site:
    """Servers behind TLS, with certificates of our own authority; and an authority that signed neither."""

    ours: Path
    theirs: Path
    redis_port: int
    postgres_port: int
    postgres: PostgresServer

    def settings(self, *, host: str = NAMED, authority: Path | None = None) -> Settings:
        """Addresses as make-secrets writes them, but at another host and with another authority where asked for."""
        authority = authority or self.ours
        broker = self._address("broker_url", f"{host}:{self.redis_port}", authority)
        query = self._address("worker_database_url", f"{host}:{self.postgres_port}", authority).partition("?")[2]
        database = (
            f"postgresql+psycopg://postgres:{self.postgres.password}@{host}:{self.postgres_port}/postgres?{query}"
        )
        return Settings(broker_url=broker, broker_ca_file=authority / "ca_certificate", database_url=database)

    def _address(self, secret: str, here: str, authority: Path) -> str:
        url = (self.ours / secret).read_text().replace("/run/secrets", str(authority))
        return url.replace("@redis:6379", f"@{here}").replace("@postgres:5432", f"@{here}")


def make_secrets(folder: Path) -> Path:
    environment = {"PATH": "/usr/bin:/bin", "NIGHTREAD_SECRETS": str(folder)}
    subprocess.run([str(MAKE_SECRETS), "--tls"], check=True, capture_output=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, module_postgres: PostgresServer) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("secrets")
    ours, theirs = make_secrets(folder / "ours"), make_secrets(folder / "theirs")
    with (
        RedisServer(password=(ours / "redis_password").read_text()) as redis,
        tls_front(ours, name="redis", port=redis.port) as redis_port,
        tls_front(ours, name="postgres", port=module_postgres.port) as postgres_port,
    ):
        yield Site(ours, theirs, redis_port, postgres_port, module_postgres)


@pytest.fixture(autouse=True)
def no_connection_kept() -> Iterator[None]:
    """Kombu tells connections apart by URL alone: it would hand one test's to the next."""
    pools.reset()
    yield
    pools.reset()


def test_redis_is_reached_with_the_right_authority_and_name(site: Site) -> None:
    notify(make_app(site.settings()), [7])


def test_redis_is_refused_with_a_certificate_of_another_authority(site: Site) -> None:
    with pytest.raises(BrokerAway, match="CERTIFICATE_VERIFY_FAILED"):
        notify(make_app(site.settings(authority=site.theirs)), [7])


def test_redis_is_refused_under_another_name_even_where_the_url_says_not_to_verify(site: Site) -> None:
    settings = site.settings(host=UNNAMED)
    lenient = settings.model_copy(update={"broker_url": f"{settings.broker_url}&ssl_cert_reqs=none"})
    with pytest.raises(BrokerAway, match="IP address mismatch"):
        notify(make_app(lenient), [7])


def connected(settings: Settings) -> bool:
    engine = make_engine(settings.database_url)
    try:
        with engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert isinstance(raw, psycopg.Connection)
            return bool(raw.pgconn.ssl_in_use) and connection.scalar(text("SELECT 1")) == 1
    finally:
        engine.dispose()


def test_postgres_is_reached_with_the_right_authority_and_name(site: Site) -> None:
    assert connected(site.settings())


def test_postgres_is_refused_with_a_certificate_of_another_authority(site: Site) -> None:
    with pytest.raises(DatabaseAway, match="certificate verify failed"):
        connected(site.settings(authority=site.theirs))


def test_postgres_is_refused_under_a_name_that_its_certificate_does_not_have(site: Site) -> None:
    with pytest.raises(DatabaseAway, match="does not match host name"):
        connected(site.settings(host=UNNAMED))


def test_a_night_passes_over_tls(site: Site, make_context: MakeContext, tmp_path: Path) -> None:
    over_tls = site.settings().model_dump(include={"broker_url", "broker_ca_file", "database_url"})
    context, log = make_context(**over_tls), tmp_path / "worker.log"
    (tmp_path / "films").mkdir()
    make_film(tmp_path / "films" / "a.dcm", pixels=texture(), bits=12)
    enqueue(context, tmp_path / "films")
    with running(context, "worker", log):
        wait_until(lambda: totals(context).scored == 1, log=log)
