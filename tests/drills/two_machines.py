"""Two machines score one night and share nothing but Redis, PostgreSQL and the films: make machines STUDIES=300.

Each machine is a network namespace with an address, a host name and a file system of its own for state and temporary
files. A third namespace holds the servers. Needs Linux, root, iproute2 and util-linux.

1. One machine alone scores the films, into SQLite.
2. Both machines score them; the network of the second one is cut in mid-night, and stays cut.
3. Both must have scored some, the totals must balance, and the worklist and every probability must be the same as in 1.

Ends with exit code 0 when all of it held, 1 when something did not, 2 where it cannot run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from db.schema import upgrade
from db.session import make_engine, read_scope
from tests.support.crew import enqueue, environment_of, totals, wait_until
from tests.support.dicom_files import make_film, texture
from tests.support.namespaces import Namespace, namespace
from tests.support.servers import PostgresServer, RedisServer
from worker.context import Context
from worker.intake.receive import receive
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer
from worker.settings import Settings

NETWORK = "10.213.0"  # exists inside the namespaces alone
SERVERS, FIRST, SECOND = 1, 2, 3  # the last number of each one's address
CUT_AT = 0.2  # share of the studies that are scored before the second machine's network is cut


@dataclass(frozen=True)
class Machine:
    """A namespace on the drill's network, whose processes see folders of their own under the same paths."""

    inside: Namespace
    number: int
    own: tuple[Path, ...]  # every machine mounts an empty file system of its own over these

    def start(self, context: Context, command: str, log: Path) -> subprocess.Popen[bytes]:
        """`nightread COMMAND` on this machine."""
        mounts = " && ".join(f"mount -t tmpfs tmpfs {folder}" for folder in self.own)
        script = f'hostname machine-{self.number} && {mounts} && exec "$@"'
        words = [*self.inside.words, "unshare", "--mount", "--uts", "sh", "-c", script, "sh"]
        environment = os.environ | environment_of(context.settings) | {"TMPDIR": str(self.own[1])}
        with log.open("ab") as output:
            return subprocess.Popen(
                [*words, sys.executable, "-m", "worker.cli", command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def cut_off(self) -> None:
        subprocess.run([*self.inside.words, "ip", "link", "set", "wire", "down"], check=True)


@contextmanager
def network(count: int) -> Iterator[list[Namespace]]:
    """Namespaces joined by a bridge in the first one, with the addresses NETWORK.1 and up."""
    with ExitStack() as made:
        spaces = [made.enter_context(namespace()) for _ in range(count)]
        bridge = spaces[0]
        commands = [
            "ip link add bridge type bridge",
            f"ip addr add {NETWORK}.{SERVERS}/24 dev bridge",
            "ip link set bridge up",
        ]
        for number, space in enumerate(spaces[1:], start=SERVERS + 1):
            commands += [
                f"ip link add port{number} type veth peer name wire netns {space.name}",
                f"ip link set port{number} master bridge up",
                f"ip netns exec {space.name} ip addr add {NETWORK}.{number}/24 dev wire",
                f"ip netns exec {space.name} ip link set wire up",
            ]
        for command in commands:
            subprocess.run([*bridge.words, *command.split()], check=True)
        yield spaces


def make_films(folder: Path, count: int) -> None:
    """`count` studies, one film each; every tenth is a lateral and every fifteenth cannot be decoded."""
    folder.mkdir()
    for number in range(count):
        view = "LL" if number % 10 == 9 else "PA"
        path = folder / f"{number:04}.dcm"
        make_film(path, pixels=texture(1024, 1024, seed=number), view_position=view, AccessionNumber=f"M{number:04}")
        if number % 15 == 14:
            os.truncate(path, path.stat().st_size // 2)


def rows(context: Context) -> list[list[tuple[Any, ...]]]:
    """The worklist, and every probability; figures to six decimals."""
    order = "SELECT priority_rank, accession_number, category, urgency, flag FROM worklist ORDER BY priority_rank"
    scores = (
        "SELECT s.accession_number, f.finding, f.probability FROM finding_score f "
        "JOIN film_log i ON i.instance_id = f.instance_id JOIN study_log s ON s.study_id = i.study_id ORDER BY 1, 2"
    )
    with read_scope(context.engine) as session:
        return [[_rounded(row) for row in session.execute(text(query))] for query in (order, scores)]


def _rounded(row: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(round(value, 6) if isinstance(value, float) else value for value in row)


def one_machine(folder: Path, films: Path) -> Context:
    """The reference: everything in this process."""
    context = Context(Settings(database_url=f"sqlite:///{folder / 'alone.db'}", state_folder=folder, device="cpu"))
    context.seed()
    receive(context, [films])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    return context


def scored_by(log: Path) -> int:
    """How many studies this machine has scored, by its own log."""
    return log.read_text(errors="replace").count("study_scored") if log.exists() else 0


def two_machines(context: Context, machines: list[Machine], films: Path, logs: list[Path], *, studies: int) -> float:
    """Score the night on both, cutting the second one off; returns the seconds until the last study was settled."""
    first, second = machines
    schedule = first.start(context, "beat", logs[0].with_name("beat.log"))
    workers = [machine.start(context, "worker", log) for machine, log in zip(machines, logs, strict=True)]
    try:
        enqueue(context, films)
        began = time.monotonic()
        wait_until(lambda: scored_by(logs[1]) > 0 and totals(context).scored > CUT_AT * studies, log=logs[1])
        second.cut_off()
        print(f"cut off the second machine after {totals(context).scored} scored studies", flush=True)
        wait_until(lambda: totals(context).waiting == 0, seconds=600, log=logs[0])
        return time.monotonic() - began
    finally:
        for process in (schedule, *workers):
            process.kill()
            process.wait()


def drill(folder: Path, *, studies: int) -> bool:
    films, logs = folder / "films", [folder / "first.log", folder / "second.log"]
    make_films(films, studies)
    alone = one_machine(folder, films)
    own = (folder / "state", folder / "tmp")
    for path in own:
        path.mkdir()
    with network(3) as (inside, *spaces), inside.entered():
        address = f"{NETWORK}.{SERVERS}"
        with PostgresServer(address=address) as postgres, RedisServer(address=address, password="drill") as redis:
            settings = Settings(database_url=postgres.url, broker_url=redis.url, state_folder=own[0], device="cpu")
            upgrade(make_engine(postgres.url))
            context = Context(settings.changed(roots=(str(films),)))
            context.seed()
            machines = [Machine(space, number, own) for number, space in enumerate(spaces, start=FIRST)]
            seconds = two_machines(context, machines, films, logs, studies=studies)
            found = totals(context)
            same = rows(context) == rows(alone)
            context.engine.dispose()
    print(f"scored by the first machine: {scored_by(logs[0])}, by the second before the cut: {scored_by(logs[1])}")
    print(f"{studies} studies: {found.scored} scored, {found.skipped} skipped, {found.quarantined} quarantined, "
          f"in {seconds:.0f} s; the same rows as on one machine: {same}; totals balance: {found.balance}")  # fmt: skip
    return same and found.balance


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--studies", type=int, default=300)
    chosen = asked.parse_args()
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare"))):
        print("left out: it needs root, iproute2 and util-linux, to make machines out of namespaces")
        return 2
    with tempfile.TemporaryDirectory() as home:
        return 0 if drill(Path(home), studies=chosen.studies) else 1


if __name__ == "__main__":
    sys.exit(main())
