"""Open worklists beside scoring: how many films a second twenty browsers that refresh cost it.

    python -m tests.benchmarks.web_readers --turns 6 --seconds 60

Scoring, page and PostgreSQL share the machine. Turns with and without readers follow each other, in the order of
with-without, without-with. A reader does what an open page does: it asks for the list every ten seconds, and for each
thumbnail once. Where others use the machine too, films per second move by more than the readers cost; so the cost is
also told by processor time: what page and database took from scoring, and what scoring itself spent on a film.
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
KEPT_OPEN_SECONDS = 2.0  # a connection that nothing uses; uvicorn ends it after 5
IN_VIEW = 12  # rows of the list that a window shows, whose thumbnails a browser asks for
FIRST_FILLER = 100_000  # rows of the backlog; the films' studies come before
THUMBNAIL = re.compile(r'src="(/films/\d+/thumbnail\.png)"')


@dataclass
class Reader:
    """A browser with the list open: it refreshes `first` seconds after a turn begins, and then `every` seconds."""

    address: str
    first: float
    every: float
    seconds: list[float] = field(default_factory=list)  # of each refresh
    _there: set[str] = field(default_factory=set)

    async def stay(self, until: asyncio.Event) -> None:
        """Refresh until the turn ends."""
        # Where the server ends a connection that is about to be used, a browser asks again; httpx fails.
        limits = httpx.Limits(keepalive_expiry=KEPT_OPEN_SECONDS)
        cookies = {SESSION: TOKEN}
        async with httpx.AsyncClient(base_url=self.address, cookies=cookies, limits=limits, timeout=60) as client:
            pause = self.first
            while not await _came(until, within=pause):
                pause = self.every
                await self._refresh(client)

    async def _refresh(self, client: httpx.AsyncClient) -> None:
        begun = time.perf_counter()
        answer = await client.get("/", headers={"hx-request": "true"})
        self.seconds.append(time.perf_counter() - begun)
        answer.raise_for_status()
        shown = THUMBNAIL.findall(answer.text)[:IN_VIEW]
        for picture in [each for each in shown if each not in self._there]:
            (await client.get(picture)).raise_for_status()
        self._there = set(shown)


async def _came(event: asyncio.Event, *, within: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), within)
    except TimeoutError:
        return False
    return True


def read(address: str, readers: int, every: float, connection: Connection) -> None:
    """The readers' process: from "go" to "enough" they stay, then it sends the seconds of each refresh."""
    people = [Reader(address, first=number * every / readers, every=every) for number in range(readers)]

    async def stay() -> None:
        until = asyncio.Event()
        asyncio.get_running_loop().add_reader(connection.fileno(), until.set)
        await asyncio.gather(*(each.stay(until) for each in people))

    connection.send("open")
    while connection.recv() == "go":
        asyncio.run(stay())
        connection.recv()
        connection.send([seconds for each in people for seconds in each.seconds])
        for each in people:
            each.seconds.clear()


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
    theirs.close()  # or the end of their process would be waited for without end
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

    @property
    def served_percent(self) -> float:
        return self.page_percent + self.database_percent


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
        yield f"{name:8}{statistics.median(rates):6.2f} films/s ({min(rates):.2f} to {max(rates):.2f}), {_use(found)}"
    pairs = list(zip(some, none, strict=True))
    by_rate = [100 * (1 - one.sample.films_per_second / other.sample.films_per_second) for one, other in pairs]
    yield f"cost in films/s: {_spread(by_rate)}; goal: below {GOAL_PERCENT:g} %"
    yield f"cost in processor time: {_spread([_cost_by_time(*pair) for pair in pairs])}"
    refreshes = [1000 * seconds for turn in some for seconds in turn.refreshes]
    yield (f"{len(refreshes)} refreshes: {statistics.median(refreshes):.0f} ms median, "
           f"{statistics.quantiles(refreshes, n=20)[-1]:.0f} ms p95")  # fmt: skip


def _cost_by_time(some: Turn, none: Turn) -> float:
    """Percent of the films that a machine with nothing else running would score less: page and database leave it less
    processor time, and each film may need more."""
    left = 1 - (some.served_percent - none.served_percent) / 100
    return 100 * (1 - left * none.sample.cpu_ms_per_film / some.sample.cpu_ms_per_film)


def _spread(costs: list[float]) -> str:
    error = statistics.stdev(costs) / len(costs) ** 0.5
    each = ", ".join(f"{cost:+.1f}" for cost in costs)
    mean, median = statistics.mean(costs), statistics.median(costs)
    return f"mean {mean:+.1f} % (standard error {error:.1f}), median {median:+.1f} %, turn by turn {each}"


def _use(turns: list[Turn]) -> str:
    """What scoring, page, database and other processes used in these turns."""
    return (f"scoring {statistics.median(turn.sample.cpu_ms_per_film for turn in turns):.0f} ms CPU a film; of the "
            f"machine: page {statistics.median(turn.page_percent for turn in turns):.2f} %, "
            f"database {statistics.median(turn.database_percent for turn in turns):.2f} %, "
            f"all but scoring {100 * statistics.median(turn.sample.others for turn in turns):.0f} %")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--turns", type=int, default=6, help="at least 2")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one turn")
    parser.add_argument("--studies", type=int, default=10_000, help="unread ones, besides those of the films")
    asked = parser.parse_args()
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    print("writing films, filling the database, opening scorer and page ...", flush=True)
    with bench(asked.studies, readers=asked.readers, every=asked.every) as running:
        running.turn(readers=True, seconds=2 * asked.every)  # places, thumbnails, caches
        for number in range(asked.turns):
            for readers in (number % 2 == 0, number % 2 == 1):
                turn = running.turn(readers=readers, seconds=asked.seconds)
                turns[readers].append(turn)
                print(f"turn {number + 1} {'with' if readers else 'without':8}"
                      f"{turn.sample.films_per_second:6.2f} films/s, {_use([turn])}", flush=True)  # fmt: skip
    print(f"PostgreSQL, {asked.studies:,} unread studies, {CORES} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{asked.readers} readers, each every {asked.every:g} s")
    print(*told(turns[False], turns[True]), sep="\n")


if __name__ == "__main__":
    main()
