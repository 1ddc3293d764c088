"""NIGHTREAD_LOG_FORMAT=json: every line of every service is JSON, from its start to its end.

What worker and beat write through the restarts of Redis and PostgreSQL stands in test_faults.py.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.contexts import MakeContext, with_settings
from tests.support.crew import running, start, wait_until
from tests.support.servers import free_port
from worker.context import Context

pytestmark = pytest.mark.xdist_group("servers")

SERVICES = {
    "receiver": (("receive",), "receiver_listening"),
    "web": (("serve", "--port", "0"), "The worklist is at"),
    "delivery": (("worker", "--queue", "delivery"), "listening"),
    "training": (("worker", "--queue", "training"), "listening"),
    "migrate": (("db", "upgrade"), "schema: 0001 -> 0001"),
}


@pytest.fixture
def context(make_context: MakeContext, postgres_url: str, redis_url: str) -> Context:
    return make_context(
        database_url=postgres_url, broker_url=redis_url, log={"format": "json"}, receive={"port": free_port()}
    )


def lines(log: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, log.read_text().splitlines())


def says(log: Path, words: str) -> bool:
    return any(words in line["event"] for line in lines(log))


def test_every_service_writes_json_alone_from_start_to_stop(context: Context, tmp_path: Path):
    with ExitStack() as stack:
        for name, (command, _) in SERVICES.items():
            stack.enter_context(running(context, command[0], tmp_path / name, *command[1:]))
        for name, (_, words) in SERVICES.items():
            wait_until(partial(says, tmp_path / name, words), log=tmp_path / name)
    for name in SERVICES:
        assert all({"event", "level", "timestamp"} <= line.keys() for line in lines(tmp_path / name)), name


def test_a_service_that_refuses_to_start_says_why_in_json(context: Context, tmp_path: Path):
    log = tmp_path / "log"
    assert start(with_settings(context, broker_url=None), "beat", log).wait(timeout=60) != 0
    (line,) = lines(log)
    assert line["level"] == "error"
    assert "NIGHTREAD_BROKER_URL is not set" in line["event"]
