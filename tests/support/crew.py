"""Worker and beat as processes of their own, as users start them, and what tests ask of the ledger beside them."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from db import ledger
from db.session import read_scope, session_scope
from db.totals import Totals, read_totals
from worker.context import Context
from worker.intake.receive import receive
from worker.queue.app import SCORING, make_app, notify
from worker.settings import Settings


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make another process's settings the same; what is unset keeps its default.

    The peers are those of the file that NIGHTREAD_PEERS names in this process.
    """
    values = settings.model_dump(mode="json", exclude_none=True, exclude={"peers"})
    groups = {name: values.pop(name) for name, value in list(values.items()) if isinstance(value, dict)}
    values |= {f"{group}_{name}": value for group, fields in groups.items() for name, value in fields.items()}
    texts = {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in values.items()}
    return {f"NIGHTREAD_{name.upper()}": text for name, text in texts.items()} | {"OMP_NUM_THREADS": "1"}


def start(
    context: Context, command: str, log: Path, *options: str, module: str = "worker.cli"
) -> subprocess.Popen[bytes]:
    """`nightread COMMAND` as a process of its own, which writes to the end of `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, command, *options],
            env=os.environ | environment_of(context.settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


@contextmanager
def running(
    context: Context, command: str, log: Path, *options: str, module: str = "worker.cli"
) -> Iterator[subprocess.Popen[bytes]]:
    """`start`, and SIGTERM at the end of the block."""
    process = start(context, command, log, *options, module=module)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until(condition: Callable[[], bool], *, seconds: float = 120, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text(errors="replace") if log else "it never came true"
        time.sleep(0.1)


def totals(context: Context) -> Totals:
    with read_scope(context.engine) as session:
        return read_totals(session)


def enqueue(context: Context, folder: Path) -> list[int]:
    """Register a folder's studies and notify the workers, like `nightread enqueue`; returns their ids."""
    receive(context, [folder])
    with session_scope(context.engine) as session:
        studies = ledger.studies_to_notify(session, renotify_minutes=1, limit=10_000)
    notify(make_app(context.settings), studies)
    return studies


def messages(broker_url: str) -> str:
    """Messages in the scoring queue, each as it is in Redis and with its body (base64 there) opened."""
    with redis.Redis.from_url(broker_url) as client:
        waiting = [message.decode() for message in client.lrange(SCORING, 0, -1)]
    return "\n".join(waiting + [base64.b64decode(json.loads(message)["body"]).decode() for message in waiting])
