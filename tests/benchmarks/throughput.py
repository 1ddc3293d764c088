"""Everything side by side in one run, in turns: what each contender does, and the ratios asked of Nightread."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from db import schema
from db.session import make_engine
from tests.benchmarks.bodies import naive, torchxrayvision_like
from tests.benchmarks.contenders import (
    BATCH_FILMS,
    Circulation,
    Nightread,
    OneByOne,
    Sample,
    SideBySide,
    decoders_alone,
    in_one_process,
    network_alone,
    one_by_one,
    side_by_side,
    task_per_film,
    through_the_queue,
)
from tests.benchmarks.films import MIX, SETS, Films, source, write_films
from tests.benchmarks.machine import CORES
from tests.support.servers import PostgresServer, RedisServer, fresh_database
from training.checkpoint import SHIPPED, load_checkpoint
from training.imaging.dicom import PixelLimits
from worker.context import Context
from worker.intake.receive import receive
from worker.scoring.decoding import DecodeOptions
from worker.settings import Settings

NAIVE, READER, TASKS = "naive script", "torchxrayvision-like", "one Celery task per film"
NAIVES = "naive script, a process per core"
BODIES = {NAIVE: naive, READER: torchxrayvision_like}
ONE, QUEUE, QUEUE_2 = "Nightread, one process", "Nightread, queue", "Nightread, queue, 2 workers"
DECODING, NETWORK, LIMIT = "decoding alone", "network alone", "limit (both)"
LONG = ", 10,000 waiting"
FILLERS = 9_900
# As a user has them: nothing is tuned.
DEFAULTS: dict[str, Any] = {"batch_size": BATCH_FILMS, "decoders": CORES, "device": "auto", "checkpoint": None}


@dataclass
class Results:
    """contender -> films -> its samples, one per turn; and how long each took to its first film."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    start_up_seconds: dict[str, float] = field(default_factory=dict)

    def rates(self, contender: str, films: str, *, by_cpu: bool = False) -> list[float]:
        """Films per second, turn by turn; by_cpu: of processor time, on as many cores as there are."""
        if contender == LIMIT:
            pairs = zip(
                self.rates(DECODING, films, by_cpu=by_cpu), self.rates(NETWORK, films, by_cpu=by_cpu), strict=True
            )
            return [1 / (1 / decoding + 1 / network) for decoding, network in pairs]
        samples = self.samples.get(contender, {}).get(films, [])
        return [1000 * CORES / each.cpu_ms_per_film if by_cpu else each.films_per_second for each in samples]


@dataclass(frozen=True)
class Goal:
    """A ratio of rates that is asked for: `contender` over `other`, both on the same films."""

    contender: str
    other: str
    films: str
    at_least: float

    def is_known(self, results: Results) -> bool:
        """Whether both were measured."""
        return bool(results.rates(self.contender, self.films) and results.rates(self.other, self.films))

    def found(self, results: Results, *, by_cpu: bool = False) -> float:
        """The median over the turns of each turn's ratio."""
        ours = results.rates(self.contender, self.films, by_cpu=by_cpu)
        theirs = results.rates(self.other, self.films, by_cpu=by_cpu)
        return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


GOALS = (
    Goal(ONE, NAIVE, "mix", 12),
    Goal(ONE, NAIVE, "JPEG Lossless", 11),
    Goal(ONE, NAIVE, "JPEG 2000", 20),
    *(Goal(ONE, NAIVES, films, 1) for films in SETS),
    Goal(ONE, LIMIT, "mix", 0.9),
    Goal(QUEUE, ONE, "mix", 0.95),
    Goal(QUEUE_2, QUEUE, "mix", 1.0),
    Goal(ONE + LONG, ONE, "mix", 0.95),
    Goal(QUEUE + LONG, QUEUE, "mix", 0.95),
)


def run(*, turns: int, seconds: float, only: Sequence[str], console: Console) -> Results:
    """Measure every contender `turns` times, one after the other; `seconds` is the length of one measurement.

    only: the names of those to measure; all when it is empty.
    """
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightread-bench-")))
        console.print(f"Writing {len(SETS)} sets of films: {source()} ...")
        films = write_films(folder / "films")
        console.print("Starting servers and contenders ...")
        started = Contenders(stack, films, folder, results, seconds).started()
        measurements = [(name, measure) for name, measure in started if not only or name in only]
        for turn in range(1, turns + 1):
            for name, measure in measurements:
                console.print(f"turn {turn} of {turns}: {name}")
                measure()
    return results


@dataclass
class Contenders:
    """Starts them all, in one stack."""

    stack: ExitStack
    films: Films
    folder: Path
    results: Results
    seconds: float

    def started(self) -> list[tuple[str, Callable[[], None]]]:
        """Every contender, started: its name, and what takes one measurement of it."""
        with ThreadPoolExecutor() as pool:
            postgres, redis = pool.map(self.stack.enter_context, (PostgresServer(), RedisServer()))
        servers = Servers(self.stack, postgres, redis)
        first = self.films.different[0]
        embedded = Settings(database_url=f"sqlite:///{self.folder / 'one.db'}", **DEFAULTS)
        scripts: dict[str, OneByOne | SideBySide] = {
            name: self._open(name, one_by_one(body, first=str(first))) for name, body in BODIES.items()
        }
        scripts[NAIVES] = self._open(NAIVES, side_by_side(naive, first=str(first)))
        tasks = self._open(
            TASKS, task_per_film(servers.broker(3), servers=servers.pids, first=first, folder=self.folder)
        )
        rules = DecodeOptions(load_checkpoint(SHIPPED).preprocessing, PixelLimits(), timeout_seconds=60, memory_mb=4096)
        decoding = self._open(DECODING, decoders_alone(rules))
        network = self._open(NETWORK, one_by_one(network_alone, first=1))
        one = self._open_nightread(ONE, in_one_process(self._registered(embedded)))
        queues = {
            name: self._open_nightread(
                name,
                through_the_queue(self._registered(servers.settings(n)), n, servers=servers.pids, folder=self.folder),
            )
            for name, n in ((QUEUE, 1), (QUEUE_2, 2))
        }
        batches = [round(self.seconds)] * 10
        different = self.films.different
        return [
            *((name, partial(self._script, name, script)) for name, script in scripts.items()),
            (TASKS, lambda: self._add(TASKS, "mix", tasks.measure(different))),
            *((ONE, partial(self._watch, ONE, one, films)) for films in SETS),
            *((name, partial(self._watch, name, queue, "mix")) for name, queue in queues.items()),
            (ONE + LONG, partial(self._watch_long, ONE, one)),
            (QUEUE + LONG, partial(self._watch_long, QUEUE, queues[QUEUE])),
            (
                DECODING,
                lambda: self._add(DECODING, "mix", decoding.measure(different, seconds=self.seconds)),
            ),
            (
                NETWORK,
                lambda: self._add(NETWORK, "mix", network.measure(batches, films_per_item=BATCH_FILMS * batches[0])),
            ),
        ]

    def _registered(self, settings: Settings) -> Settings:
        engine = make_engine(settings.database_url)
        context = Context(settings)
        schema.upgrade(engine)
        context.seed()
        receive(context, [self.films.folder])
        Circulation(engine).park()
        engine.dispose()
        return settings

    def _open(self, name: str, contender: AbstractContextManager[Any]) -> Any:
        begun = time.perf_counter()
        entered = self.stack.enter_context(contender)
        self.results.start_up_seconds[name] = time.perf_counter() - begun
        return entered

    def _open_nightread(self, name: str, contender: AbstractContextManager[Nightread]) -> Nightread:
        """Started when its first batch is settled."""
        nightread: Nightread = self._open(name, contender)
        begun = time.perf_counter()
        warm_up = nightread.measure(self.films.of("mix"), seconds=1)
        self.results.start_up_seconds[name] += time.perf_counter() - begun - warm_up.seconds
        return nightread

    def _add(self, name: str, films: str, sample: Sample) -> None:
        self.results.samples[name][films].append(sample)

    def _script(self, name: str, script: OneByOne | SideBySide) -> None:
        """One pass gives the mix, and, as films are taken one by one, each syntax in it."""
        sample = script.measure([str(path) for path in self.films.different])
        self._add(name, "mix", sample)
        for films, syntaxes in SETS.items():
            if films != "mix":
                self._add(name, films, sample.part([syntax in syntaxes for syntax in MIX]))

    def _watch(self, name: str, nightread: Nightread, films: str) -> None:
        self._add(name, films, nightread.measure(self.films.of(films), seconds=self.seconds))

    def _watch_long(self, name: str, nightread: Nightread) -> None:
        with nightread.circulation.fillers(FILLERS):
            self._watch(name + LONG, nightread, "mix")


@dataclass(frozen=True)
class Servers:
    """PostgreSQL and Redis, with a database and a queue for each contender."""

    stack: ExitStack
    postgres: PostgresServer
    redis: RedisServer

    @property
    def pids(self) -> list[int]:
        return [int((server.home / "server.pid").read_text()) for server in (self.postgres, self.redis)]

    def broker(self, number: int) -> str:
        return self.redis.url.removesuffix("/0") + f"/{number}"

    def settings(self, number: int) -> Settings:
        database_url = self.stack.enter_context(fresh_database(self.postgres.url))
        return Settings(database_url=database_url, broker_url=self.broker(number), **DEFAULTS)
