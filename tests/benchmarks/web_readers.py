"""Open worklists beside scoring: how many films a second twenty browsers that refresh cost it.

    python -m tests.benchmarks.web_readers --turns 6 --seconds 60

Scoring, page and PostgreSQL share the machine. Turns with and without readers follow each other, in the order of
with-without, without-with. A reader does what an open page does: it asks for the list every ten seconds, with the
ETag of the answer before if there was one, and for each thumbnail once. The machine's speed changes by more than the
readers cost it, so the processor time that page and database spend on them is told beside the films per second.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
from sqlalchemy import update

from db import schema
from db.models import Instance, Study
from db.session import make_engine, session_scope
from tests.benchmarks.contenders import Circulation, Nightread, Sample, in_one_process
from tests.benchmarks.films import write_films
from tests.benchmarks.machine import CORES, Tree
from tests.benchmarks.throughput import DEFAULTS
from tests.benchmarks.web_pages import TOKEN, fill, served
from tests.support.servers import PostgresServer
from worker.context import Context
from worker.intake.receive import receive
from worker.settings import Settings
from worker.web.requests import SESSION

GOAL_PERCENT = 5.0
IN_VIEW = 12  # rows of the list that a window shows, whose thumbnails a browser asks for
FIRST_FILLER = 100_000  # rows of the backlog; the films' studies come before
THUMBNAIL = re.compile(r'src="(/films/\d+/thumbnail\.png)"')


@dataclass
class Reader:
    """A browser with the list open: `seconds` of each refresh."""

    client: httpx.AsyncClient
    seconds: list[float] = field(default_factory=list)
    _tag: str | None = None
    _there: set[str] = field(default_factory=set)

    async def stay(self, *, first: float, every: float, until: asyncio.Event) -> None:
        """Refresh `every` seconds, for the first time after `first`."""
        pause = first
        while not await _came(until, within=pause):
            pause = every
            begun = time.perf_counter()
            headers = {"hx-request": "true"} | ({"if-none-match": self._tag} if self._tag else {})
            answer = await self.client.get("/", headers=headers)
            self.seconds.append(time.perf_counter() - begun)
            if answer.status_code == httpx.codes.NOT_MODIFIED:
                continue
            answer.raise_for_status()
            self._tag = answer.headers.get("etag")
            shown = THUMBNAIL.findall(answer.text)[:IN_VIEW]
            for picture in [each for each in shown if each not in self._there]:
                (await self.client.get(picture)).raise_for_status()
            self._there = set(shown)


async def _came(event: asyncio.Event, *, within: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), within)
    except TimeoutError:
        return False
    return True


def read(address: str, readers: int, every: float, connection: Connection) -> None:
    """The readers' process: from "go" to "enough" they stay, then it sends the seconds of each refresh."""

    async def stay() -> list[float]:
        until = asyncio.Event()
        asyncio.get_running_loop().add_reader(connection.fileno(), until.set)
        async with httpx.AsyncClient(base_url=address, cookies={SESSION: TOKEN}, timeout=60) as client:
            people = [Reader(client) for _ in range(readers)]
            stays = [each.stay(first=n * every / readers, every=every, until=until) for n, each in enumerate(people)]
            await asyncio.gather(*stays)
        return [seconds for each in people for seconds in each.seconds]

    connection.send("open")
    while connection.recv() == "go":
        seconds = asyncio.run(stay())
        connection.recv()
        connection.send(seconds)


@dataclass(frozen=True)
class Readers:
    """Browsers in a process of their own, which was started before anything is measured."""

    connection: Connection

    @contextmanager
    def there(self) -> Iterator[list[float]]:
        """They have the list open; the list that this gives holds the seconds of their refreshes once they are gone."""
        seconds: list[float] = []
        self.connection.send("go")
        yield seconds
        self.connection.send("enough")
        seconds += self.connection.recv()


@contextmanager
def readers_at(address: str, readers: int, *, every: float) -> Iterator[Readers]:
    """Readers whose refreshes are spread evenly over the time between two of one's own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=read, args=(address, readers, every, theirs))
    process.start()
    assert ours.recv() == "open"
    try:
        yield Readers(ours)
    finally:
        ours.send("end")
        process.join()


@dataclass(frozen=True)
class Turn:
    """One measurement: scoring's sample, the readers' refreshes, and how much of the machine page and database used."""

    sample: Sample
    refreshes: list[float]
    page_percent: float
    database_percent: float


@dataclass(frozen=True)
class Bench:
    """Scoring, a page with its database, and readers, all running."""

    nightread: Nightread
    films: Path
    readers: Readers
    page: Tree
    database: Tree

    def turn(self, *, readers: bool, seconds: float) -> Turn:
        """Scoring for so long, with readers or without."""
        begun = time.perf_counter()
        before = [tree.cpu_seconds() for tree in (self.page, self.database)]
        stay: AbstractContextManager[list[float]] = self.readers.there() if readers else nullcontext([])
        with stay as refreshes:
            sample = self.nightread.measure(self.films, seconds=seconds)
        spent = [tree.cpu_seconds() - then for tree, then in zip((self.page, self.database), before, strict=True)]
        page, database = (100 * each / (time.perf_counter() - begun) / CORES for each in spent)
        return Turn(sample, refreshes, page, database)


@contextmanager
def bench(studies: int, *, readers: int, every: float) -> Iterator[Bench]:
    """All of it, with this number of unread studies besides those of the films."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightread-readers-")))
        films = write_films(folder / "films", only=["mix"]).of("mix")
        postgres = stack.enter_context(PostgresServer())
        settings = Settings(database_url=postgres.url, state_folder=folder, **DEFAULTS)
        schema.upgrade(make_engine(postgres.url))
        context = Context(settings)
        context.seed()
        receive(context, [films])
        Circulation(context.engine).park()
        fill(context, studies, begin=FIRST_FILLER)
        with session_scope(context.engine) as session:  # the films' studies lead the list, and only they have pictures
            session.execute(update(Study).where(Study.id < FIRST_FILLER).values(stat=True))
            session.execute(update(Instance).where(Instance.id >= FIRST_FILLER).values(pixel_digest=None))
        address, page = stack.enter_context(served(postgres.url, folder, cores=os.sched_getaffinity(0)))
        nightread = stack.enter_context(in_one_process(settings))
        browsers = stack.enter_context(readers_at(address, readers, every=every))
        database = Tree([int((postgres.home / "server.pid").read_text())])
        yield Bench(nightread, films, browsers, Tree([page.pid]), database)


def told(none: list[Turn], some: list[Turn]) -> Iterator[str]:
    """The lines of the result: turns without readers, and those with them."""
    for name, found in (("without", none), ("with", some)):
        rates = [turn.sample.films_per_second for turn in found]
        yield (f"{name:8}{statistics.median(rates):6.2f} films/s ({min(rates):.2f} to {max(rates):.2f}), "
               f"scoring {statistics.median(turn.sample.cpu_ms_per_film for turn in found):.0f} ms CPU a film, "
               f"page {statistics.median(turn.page_percent for turn in found):.2f} % of the machine, "
               f"database {statistics.median(turn.database_percent for turn in found):.2f} %")  # fmt: skip
    pairs = zip(some, none, strict=True)
    costs = [100 * (1 - one.sample.films_per_second / other.sample.films_per_second) for one, other in pairs]
    yield f"cost in films/s, turn by turn: {', '.join(f'{cost:+.1f} %' for cost in costs)}"
    yield f"cost in films/s, median: {statistics.median(costs):+.1f} %  (goal: below {GOAL_PERCENT:g} %)"
    spent = [statistics.median(turn.page_percent + turn.database_percent for turn in found) for found in (some, none)]
    yield f"processor time of page and database for the readers: {spent[0] - spent[1]:+.2f} % of the machine"
    refreshes = [1000 * seconds for turn in some for seconds in turn.refreshes]
    yield (f"{len(refreshes)} refreshes: {statistics.median(refreshes):.0f} ms median, "
           f"{statistics.quantiles(refreshes, n=20)[-1]:.0f} ms p95")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0, help="of one turn")
    parser.add_argument("--studies", type=int, default=10_000, help="unread ones, besides those of the films")
    asked = parser.parse_args()
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    with bench(asked.studies, readers=asked.readers, every=asked.every) as running:
        running.turn(readers=True, seconds=2 * asked.every)  # places, thumbnails, caches
        for number in range(asked.turns):
            for readers in (number % 2 == 0, number % 2 == 1):
                turns[readers].append(running.turn(readers=readers, seconds=asked.seconds))
    print(f"PostgreSQL, {asked.studies:,} unread studies, {CORES} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{asked.readers} readers, each every {asked.every:g} s")
    print(*told(turns[False], turns[True]), sep="\n")


if __name__ == "__main__":
    main()
