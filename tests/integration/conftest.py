"""Real servers for the integration tests; a URL in the environment takes the place of the one started here."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
import redis
from sqlalchemy import Engine

from db.session import make_engine
from tests.support.contexts import MakeContext, bring_schema
from tests.support.orthanc import Orthanc, orthanc
from tests.support.servers import PostgresServer, RedisServer, Server, ServerStartError, fresh_database
from worker.context import Context

S = TypeVar("S", bound=Server)


def started(kind: type[S], stack: ExitStack) -> S:
    """A running server, closed with the stack. Where it cannot run, a laptop skips the test and CI fails it."""
    try:
        server = kind()
        stack.enter_context(server)
        return server
    except ServerStartError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the real servers: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    with ExitStack() as stack:
        yield os.environ.get("TEST_DATABASE_URL") or started(PostgresServer, stack).url


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of this test's own."""
    with fresh_database(postgres_server_url) as url:
        yield url


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    with ExitStack() as stack:
        named = os.environ.get("TEST_BROKER_URL")
        yield _database_of_process(named) if named else started(RedisServer, stack).url


def _database_of_process(url: str) -> str:
    """Each of pytest's processes empties a database of its own: redis://host:6379/0 is /1 in the second."""
    process = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return urlsplit(url)._replace(path=f"/{process}").geturl()


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The URL of an empty Redis database; one that the environment names is emptied too."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushdb()
    return redis_server_url


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL that this test may stop, kill and pause."""
    with ExitStack() as stack:
        yield started(PostgresServer, stack)


@pytest.fixture(scope="module")
def module_postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL of one test module, which may change what all databases of a server share: roles."""
    with ExitStack() as stack:
        yield started(PostgresServer, stack)


@pytest.fixture(scope="module")
def module_redis() -> Iterator[RedisServer]:
    """A running Redis of one test module, which may do to it what it likes."""
    with ExitStack() as stack:
        yield started(RedisServer, stack)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A running Redis that this test may stop, kill, empty and pause."""
    with ExitStack() as stack:
        yield started(RedisServer, stack)


@pytest.fixture(scope="session")
def orthanc_server() -> Iterator[Orthanc]:
    """A running Orthanc, which tests share: ask for `archive`."""
    with orthanc() as server:
        yield server


@pytest.fixture
def archive(orthanc_server: Orthanc) -> Orthanc:
    """A running, empty Orthanc, in a network namespace of its own."""
    orthanc_server.start()
    orthanc_server.empty()
    return orthanc_server


@pytest.fixture(scope="session")
def postgres_with_schema(postgres_server_url: str) -> Iterator[str]:
    """The URL of a PostgreSQL database with the schema, of which others are made as copies."""
    with fresh_database(postgres_server_url) as url:
        bring_schema(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database with the schema; tests that ask for it run once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'nightread.db'}"
        bring_schema(url)
        yield url
    else:
        server, made = (request.getfixturevalue(name) for name in ("postgres_server_url", "postgres_with_schema"))
        with fresh_database(server, like=made) as url:
            yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an empty database, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('database') / 'nightread.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database that has the schema."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def context(make_context: MakeContext, database_url: str) -> Context:
    """A context with the untrained checkpoint as its champion, once on SQLite and once on PostgreSQL."""
    return make_context(database_url=database_url)


@pytest.fixture
def embedded(make_context: MakeContext) -> Context:
    """The same on SQLite alone, for what does not depend on the database."""
    return make_context()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with other weights."""
    from tests.support.untrained import save_untrained  # torch, which most tests do without

    return save_untrained(tmp_path_factory.mktemp("other") / "other.safetensors", seed=1)
