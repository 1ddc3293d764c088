"""A network namespace with nothing but loopback, for servers that listen on all addresses (Orthanc, storescp)."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Namespace:
    """Servers and clients inside reach each other on 127.0.0.1, and nobody else."""

    name: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words that run a command inside."""
        return ("ip", "netns", "exec", self.name)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread, and the threads that it starts, open their sockets inside."""
        with Path("/proc/thread-self/ns/net").open("rb") as outside:
            _enter(Path("/run/netns", self.name))
            try:
                yield
            finally:
                _enter_handle(outside.fileno())


def _enter(path: Path) -> None:
    with path.open("rb") as namespace:
        _enter_handle(namespace.fileno())


def _enter_handle(handle: int) -> None:  # os.setns came with Python 3.12
    if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace, removed at the end. Where none can be made, a laptop skips the test and CI fails it."""
    name = f"nightread-{uuid4().hex[:8]}"
    made = shutil.which("ip") and subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if not made:
        assert os.environ.get("CI") != "true", "CI must be able to make a network namespace"
        pytest.skip("no network namespace can be made here: it takes root and iproute2")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield Namespace(name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)
