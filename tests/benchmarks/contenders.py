"""The ways of scoring films that are measured side by side. Each is opened once and then measured in turns.

What it takes to open one (processes, imports, weights, the first film) is its start-up and no part of a measurement.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from celery import Celery
from sqlalchemy import Engine, select, text, update

from db.models import Instance, Study
from db.session import read_scope, session_scope
from tests.benchmarks.machine import CORES, Tree, busy_cpu_seconds
from training.imaging.dicom import read_header
from worker import logs
from worker.context import Context
from worker.queue.app import make_app, notify
from worker.scoring.decoding import DecodeOptions, NetworkInput, decode_film, prepare_child
from worker.settings import Settings

POLL_SECONDS = 0.25  # what is asked of PostgreSQL meanwhile counts as the watched's own work
BATCH_FILMS = 16


@dataclass(frozen=True)
class Sample:
    """One measurement. others: the share of the machine that went to processes which are none of this contender's."""

    films: int
    seconds: float
    cpu_seconds: float
    others: float
    load: float
    peak_mb: float
    seconds_by_item: tuple[float, ...] = ()  # where films are taken one by one

    @property
    def films_per_second(self) -> float:
        return self.films / self.seconds

    @property
    def cpu_ms_per_film(self) -> float:
        return 1000 * self.cpu_seconds / self.films

    def part(self, chosen: Sequence[bool]) -> "Sample":
        """Of films that were taken one by one only some, with the processor time that falls to them."""
        seconds = [each for each, is_chosen in zip(self.seconds_by_item, chosen, strict=True) if is_chosen]
        share = sum(seconds) / self.seconds
        return replace(
            self,
            films=len(seconds),
            seconds=sum(seconds),
            cpu_seconds=self.cpu_seconds * share,
            seconds_by_item=tuple(seconds),
        )

    def record(self) -> dict[str, Any]:
        rates = {"films_per_second": self.films_per_second, "cpu_ms_per_film": self.cpu_ms_per_film}
        return {name: round(value, 3) for name, value in (asdict(self) | rates).items() if name != "seconds_by_item"}


@dataclass
class Gauge:
    """Adds up a contender's films from one mark to the next; the first mark is where counting begins."""

    tree: Tree
    films: int = 0
    peak_mb: float = 0.0
    _first: tuple[float, float, float] | None = None
    _last: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0))

    def mark(self, films: int, *, at: float) -> None:
        """`films` were through at the moment `at` (seconds, any clock)."""
        here = (at, self.tree.cpu_seconds(), busy_cpu_seconds())
        if self._first is None:
            self._first = here
        else:
            self.films += films
        self._last = here

    def look(self) -> None:
        self.peak_mb = max(self.peak_mb, self.tree.memory_mb())

    @property
    def seconds(self) -> float:
        return 0.0 if self._first is None else self._last[0] - self._first[0]

    def sample(self, *, seconds_by_item: Sequence[float] = ()) -> Sample:
        assert self._first is not None
        cpu, busy = (last - first for last, first in zip(self._last[1:], self._first[1:], strict=True))
        others = max(0.0, busy - cpu) / (self.seconds * CORES)
        load = os.getloadavg()[0]
        return Sample(self.films, self.seconds, cpu, others, load, self.peak_mb, tuple(seconds_by_item))


# --------------------------------------------------------------------------------------------- one film after another


def _host(connection: Connection, opening: Callable[[], Callable[[Any], object]]) -> None:
    """In a process of its own: open, say so, then answer each thing that comes with the seconds it took."""
    work = opening()
    connection.send("open")
    while (item := connection.recv()) is not None:
        begun = time.perf_counter()
        work(item)
        connection.send(time.perf_counter() - begun)


@dataclass
class OneByOne:
    """A body that takes films one by one: each measurement is one pass over the different films."""

    connection: Connection
    pid: int

    def measure(self, items: Sequence[Any], *, films_per_item: int = 1) -> Sample:
        gauge = Gauge(Tree([self.pid]))
        gauge.mark(0, at=time.perf_counter())
        seconds = []
        for item in items:
            seconds.append(self.take(item))
            gauge.look()
            gauge.mark(films_per_item, at=time.perf_counter())
        return gauge.sample(seconds_by_item=seconds)

    def take(self, item: Any) -> float:
        """The seconds that one film, or whatever the body takes, needed."""
        self.connection.send(item)
        seconds: float = self.connection.recv()
        return seconds


@dataclass
class SideBySide:
    """Several of them, each of which takes the next film as soon as it is free."""

    processes: Sequence[OneByOne]

    def measure(self, items: Sequence[Any]) -> Sample:
        """As of one; `seconds_by_item` are shares of the time that all had, so that they sum to it."""
        waiting: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        for each in enumerate(items):
            waiting.put(each)
        seconds = [0.0] * len(items)

        def work(process: OneByOne) -> None:
            with suppress(Empty):
                while True:
                    number, item = waiting.get_nowait()
                    seconds[number] = process.take(item) / len(self.processes)

        gauge = Gauge(Tree([process.pid for process in self.processes]))
        with ThreadPoolExecutor(len(self.processes)) as pool:
            gauge.mark(0, at=time.perf_counter())
            working = [pool.submit(work, process) for process in self.processes]
            while wait(working, timeout=POLL_SECONDS).not_done:
                gauge.look()
            gauge.mark(len(items), at=time.perf_counter())
        return gauge.sample(seconds_by_item=seconds)


@contextmanager
def side_by_side(opening: Callable[[], Callable[[Any], object]], *, first: Any) -> Iterator[SideBySide]:
    """`one_by_one` in as many processes as there are cores."""
    with ExitStack() as stack:
        yield SideBySide([stack.enter_context(one_by_one(opening, first=first)) for _ in range(CORES)])


@contextmanager
def one_by_one(opening: Callable[[], Callable[[Any], object]], *, first: Any) -> Iterator[OneByOne]:
    """opening: a function that can be pickled and gives the body. `first` is taken once as part of the start-up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_host, args=(theirs, opening))
    process.start()
    try:
        assert ours.recv() == "open"
        ours.send(first)
        ours.recv()
        yield OneByOne(ours, process.pid or 0)
    finally:
        ours.send(None)
        process.join()


# -------------------------------------------------------------------------------------------------- one task per film


@dataclass
class TaskPerFilm:
    """Films through Celery's prefork pool, one process per core."""

    app: Celery
    tree: Tree

    def measure(self, paths: Sequence[Path]) -> Sample:
        gauge = Gauge(self.tree)
        gauge.mark(0, at=time.perf_counter())
        waiting = [self.app.send_task("score_film", args=[str(path)]) for path in paths]
        while waiting:
            time.sleep(POLL_SECONDS)
            gauge.look()
            done = [result for result in waiting if result.ready()]
            if done:
                gauge.mark(len(done), at=time.perf_counter())
                waiting = [result for result in waiting if result not in done]
        return gauge.sample()


@contextmanager
def task_per_film(broker_url: str, *, servers: Sequence[int], first: Path, folder: Path) -> Iterator[TaskPerFilm]:
    command = ["celery", "-A", "tests.benchmarks.one_task_per_film", "-b", broker_url, "--result-backend", broker_url]
    command += ["worker", "--pool=prefork", f"--concurrency={CORES}", "--loglevel=WARNING"]
    with (folder / "celery.log").open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=output)
    app = Celery("asking", broker=broker_url, backend=broker_url, set_as_current=False)
    try:
        contender = TaskPerFilm(app, Tree([process.pid, *servers]))
        contender.measure([first] * 2 * CORES)
        yield contender
    finally:
        process.send_signal(signal.SIGQUIT)  # a cold shutdown: the warm one waits for a pool that may hang
        process.wait()


# ------------------------------------------------------------------------------------------------------------ Nightread


@dataclass
class Circulation:
    """Studies that wait again as soon as they are settled, so that a worker's steady state can be watched.

    Filler rows wait behind them all: with 9,900 of them the queue is 10,000 long and the films stay the same.
    """

    engine: Engine

    def studies_in(self, folder: Path) -> list[int]:
        with read_scope(self.engine) as session:
            chosen = select(Instance.study_id).where(Instance.path.like(f"{folder.resolve()}/%"))
            return list(session.scalars(chosen.order_by(Instance.path)))

    def park(self) -> None:
        """Nothing waits."""
        with session_scope(self.engine) as session:
            session.execute(update(Study).where(Study.state == "waiting").values(state="scored"))

    def start(self, ids: Sequence[int]) -> None:
        with session_scope(self.engine) as session:
            session.execute(
                update(Study).where(Study.id.in_(ids)).values(state="waiting", received_at=datetime.now(UTC))
            )

    def refill(self, ids: Sequence[int]) -> list[float]:
        """Let what was settled wait again, at the end of the queue; returns when each was settled (Unix time)."""
        with session_scope(self.engine) as session:
            settled = session.scalars(
                update(Study)
                .where(Study.id.in_(ids), Study.state == "scored")
                .values(state="waiting", received_at=datetime.now(UTC))
                .returning(Study.settled_at)
            )
            return [moment.timestamp() for moment in settled if moment is not None]

    def claimed(self) -> bool:
        with read_scope(self.engine) as session:
            return session.scalar(select(Study.id).where(Study.state == "claimed").limit(1)) is not None

    @contextmanager
    def fillers(self, count: int) -> Iterator[None]:
        """`count` more studies that wait, received so late that they are never anyone's turn."""
        filler = text(
            "INSERT INTO study (study_instance_uid, stat, received_at, state, revision, attempts, suspect)"
            " VALUES (:uid, false, '2199-01-01 00:00:00', 'waiting', 1, 0, false)"
        )
        with self.engine.begin() as connection:
            connection.execute(filler, [{"uid": f"2.25.999{number}"} for number in range(count)])
        try:
            yield
        finally:
            with self.engine.begin() as connection:
                connection.execute(text("DELETE FROM study WHERE study_instance_uid LIKE '2.25.999%'"))


@dataclass
class Nightread:
    """Workers on a database, watched through it."""

    circulation: Circulation
    tree: Tree
    go: Callable[[Sequence[int]], None]
    halt: Callable[[], None]

    def measure(self, folder: Path, *, seconds: float) -> Sample:
        """From one settled batch to another at least `seconds` later."""
        ids, gauge = self.circulation.studies_in(folder), Gauge(self.tree)
        self.circulation.park()
        self.circulation.start(ids)
        self.go(ids)
        while gauge.seconds < seconds:
            time.sleep(POLL_SECONDS)
            gauge.look()
            if settled := self.circulation.refill(ids):
                gauge.mark(len(settled), at=max(settled))
        self.circulation.park()
        self.halt()
        self.circulation.park()  # what was given back
        return gauge.sample()


def _score_in_process(settings: Settings, connection: Connection) -> None:
    """In a process of its own: what `nightread score` does after intake, from "go" to "stop"."""
    from worker.scoring.pipeline import score_waiting
    from worker.scoring.scorer import open_scorer

    logs.configure(level="warning", style="console")
    with open_scorer(Context(settings), should_stop=connection.poll) as scorer:
        connection.send("open")
        while connection.recv() == "go":
            while not connection.poll(0.01):
                score_waiting(scorer, kind="night")
            connection.recv()
            # What was given back is still on its way through the decoders, and would slow whoever is measured next.
            wait([scorer.decoders.submit("/nowhere", "").future for _ in range(CORES)])
            connection.send("stopped")


@contextmanager
def in_one_process(settings: Settings) -> Iterator[Nightread]:
    """`nightread score` in a process of its own, on films that are registered."""
    context = Context(settings)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_score_in_process, args=(settings, theirs))
    process.start()

    def halt() -> None:
        ours.send("stop")
        assert ours.recv() == "stopped"

    try:
        assert ours.recv() == "open"
        yield Nightread(Circulation(context.engine), Tree([process.pid or 0]), lambda _: ours.send("go"), halt)
    finally:
        ours.send("end")
        process.join()


@contextmanager
def through_the_queue(settings: Settings, workers: int, *, servers: Sequence[int], folder: Path) -> Iterator[Nightread]:
    """`nightread worker` processes as users start them, on films that are registered."""
    context = Context(settings)
    circulation = Circulation(context.engine)
    environment = {
        "NIGHTREAD_DATABASE_URL": settings.database_url,
        "NIGHTREAD_BROKER_URL": settings.broker_url or "",
        "NIGHTREAD_BATCH_SIZE": str(settings.batch_size),
        "NIGHTREAD_DECODERS": str(settings.decoders),
        "NIGHTREAD_DEVICE": settings.device,
        "NIGHTREAD_LOG_FORMAT": "json",
    }
    celery = make_app(settings)

    def go(ids: Sequence[int]) -> None:
        notify(celery, list(ids[-4 * workers :]))  # those that nobody will have claimed before each has had a message

    def halt() -> None:
        while circulation.claimed():
            time.sleep(POLL_SECONDS)

    with ExitStack() as stack:
        processes = []
        for number in range(workers):
            output = stack.enter_context((folder / f"worker-{workers}-{number}.log").open("wb"))
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "worker.cli", "worker"],
                    env=os.environ | environment,
                    stdout=output,
                    stderr=output,
                )
            )
            stack.callback(processes[-1].wait, timeout=60)
            stack.callback(processes[-1].terminate)
        yield Nightread(circulation, Tree([*(process.pid for process in processes), *servers]), go, halt)


# ------------------------------------------------------------------------------------------------------------ the limit


def network_alone() -> Callable[[int], object]:
    """The classifier on inputs that are there already: batches -> nothing."""
    from training.checkpoint import SHIPPED, load_checkpoint
    from worker.scoring.inference import Classifier, choose_device

    checkpoint = load_checkpoint(SHIPPED)
    classifier = Classifier(checkpoint, device=choose_device("auto"), batch_size=BATCH_FILMS, threads=CORES)
    side = checkpoint.preprocessing.size
    inputs = np.random.default_rng(0).integers(0, 256, (BATCH_FILMS, side, side), dtype=np.uint8)

    def predict(batches: int) -> None:
        for _ in range(batches):
            classifier.predict(inputs)

    return predict


@dataclass
class Decoders:
    """Every core reads and decodes, and nothing else happens: no network, no database, no time limits."""

    pool: ProcessPoolExecutor
    rules: DecodeOptions

    def measure(self, paths: Sequence[Path], *, seconds: float) -> Sample:
        wait([self.pool.submit(os.getpid) for _ in range(CORES)])  # each starts one
        gauge = Gauge(Tree([*self.pool._processes]))  # ours would count every contender's
        uids = {path: str(read_header(path).SOPInstanceUID) for path in paths}
        films, running = cycle(paths), set[Future[object]]()
        while gauge.seconds < seconds:
            while len(running) < 2 * CORES:
                path = next(films)
                running.add(self.pool.submit(decode_film, str(path), uids[path], self.rules))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            gauge.look()
            assert all(isinstance(future.result(), NetworkInput) for future in done)
            gauge.mark(len(done), at=time.perf_counter())
        wait(running)
        return gauge.sample()


@contextmanager
def decoders_alone(rules: DecodeOptions) -> Iterator[Decoders]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(CORES, mp_context=context, initializer=prepare_child, initargs=(rules.memory_mb,))
    with pool:
        yield Decoders(pool, rules)
