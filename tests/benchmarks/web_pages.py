"""The worklist in a browser at size: how long the first page, a refresh, a later and a filtered page take.

    python -m tests.benchmarks.web_pages --studies 10000
    python -m tests.benchmarks.web_pages --studies 10000 --database sqlite

One process on one core serves; another asks over HTTP, one request after the other. Both the time that passed and the
processor time of the server are told: on a machine that others use too, only the second one says what the page costs.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import uvicorn

from db import registry, schema, users, web_sessions
from db.models import WebUser
from db.session import make_engine, session_scope
from tests.support.contexts import site_settings
from tests.support.night_rows import add_champion, add_studies, open_run
from tests.support.servers import PostgresServer
from worker.context import Context
from worker.web.app import create_app
from worker.web.passwords import digest_of
from worker.web.requests import SESSION

TOKEN = "of-the-benchmark"
PAGES = {
    "first page": ("/", {}),
    "refresh": ("/", {"hx-request": "true"}),
    "page 100, refresh": ("/?page=100", {"hx-request": "true"}),
    "category B, refresh": ("/?category=B", {"hx-request": "true"}),
    "study": ("/studies/5000", {}),
}
GOALS_MS = {"first page": 200, "refresh": 100}  # 95th percentile
AT_ONCE = 2000  # rows in one statement


def fill(context: Context, studies: int, *, begin: int = 1) -> None:
    """Unread studies numbered from `begin`, and a reader who is signed in."""
    with session_scope(context.engine) as session:
        if registry.champion(session) is None:
            add_champion(session)
        run, end = open_run(session), begin + studies
        for first in range(begin, end, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, end))
            found = [{"Pneumothorax": n * 7919 % 1009 / 1009, "Effusion": n * 104729 % 997 / 997} for n in numbers]
            add_studies(session, run, found, first=first)
        anna: WebUser = users.add(session, name="Anna", role="reader", by="benchmark")
        web_sessions.begin(session, anna, digest=digest_of(TOKEN), hours=1)


def serve(url: str, folder: Path, port: int, cores: set[int]) -> None:
    """The server's process."""
    os.sched_setaffinity(0, cores)
    app = create_app(Context(site_settings(folder, database_url=url)))
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False)


@contextmanager
def served(url: str, folder: Path, *, cores: set[int]) -> Iterator[tuple[str, psutil.Process]]:
    """The page's address and the process that serves it, on these cores."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(url, folder, port, cores))
    process.start()
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(f"{address}/alive", timeout=5)
            break
        except httpx.TransportError:
            time.sleep(0.1)
    try:
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


def measure(address: str, server: psutil.Process, *, times: int) -> dict[str, tuple[float, float, float, int]]:
    """Page -> median and 95th percentile in ms, processor time in ms, bytes."""
    found = {}
    with httpx.Client(base_url=address, cookies={SESSION: TOKEN}, timeout=60) as client:
        for name, (path, headers) in PAGES.items():
            for _ in range(5):  # templates, statements and connections are made at the first
                client.get(path, headers=headers).raise_for_status()
            spent, before = [], server.cpu_times()
            for _ in range(times):
                began = time.perf_counter()
                answer = client.get(path, headers=headers)
                spent.append(1000 * (time.perf_counter() - began))
                assert answer.status_code == 200, answer.text
            after = server.cpu_times()
            cpu = 1000 * (after.user + after.system - before.user - before.system) / times
            found[name] = (statistics.median(spent), statistics.quantiles(spent, n=20)[-1], cpu, len(answer.content))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{folder}/nightread.db"
        if asked.database == "postgresql":
            url = stack.enter_context(PostgresServer()).url
        schema.upgrade(make_engine(url))
        fill(Context(site_settings(folder, database_url=url)), asked.studies)
        address, server = stack.enter_context(served(url, folder, cores={min(os.sched_getaffinity(0))}))
        found = measure(address, server, times=asked.times)
    print(f"{asked.database}, {asked.studies:,} unread studies, load {os.getloadavg()[0]:.1f}")
    for name, (median, p95, cpu, size) in found.items():
        goal = f"  (goal: {GOALS_MS[name]})" if name in GOALS_MS else ""
        print(f"{name:22}{median:8.1f} ms median{p95:9.1f} ms p95{cpu:8.1f} ms CPU{size:10,} bytes{goal}")


if __name__ == "__main__":
    main()
