"""Score a load of generated studies while everything around it breaks: make chaos SEED=7 STUDIES=500.

Two workers, two delivery workers, two beats and a DICOM receiver, as processes with the default leases and sweeps, on a
PostgreSQL and a Redis of their own. Studies arrive in portions, from a folder and from a sender that sends each film
until it is taken; while they are read, at a random moment, something breaks and is mended, and more studies arrive.
Results go to an archive by DICOM and to a RIS by HL7, which refuse, hang, and drop connections after they have kept
what came; some studies are blind. It ends with the totals and a verdict: nothing lost, nothing twice, nobody blamed for
a neighbour, each result once at each destination and none of a blind study, and no fault after which studies waited, a
worker was up and none was settled for two minutes. That silence, and not the time until the last one is settled, is
what a fault costs on a slow machine too (where a worker may take minutes to start); both are printed. The seed draws
the studies, the order of the faults and their moments; how the processes interleave is the machine's.

Leases make it last: some twenty minutes. Only those of delivery workers that were killed, of ten minutes, end at once.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import redis
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from db import deliveries, ledger, lookup
from db.base import database_now
from db.models import Delivery, FilmScore, Study, StudyPriority
from db.session import read_scope, session_scope
from db.totals import Totals, read_totals
from tests.support.contexts import seeded_context
from tests.support.crew import start
from tests.support.destinations import Archive, Mood, Ris
from tests.support.dicom_files import make_film, texture
from tests.support.sender import Sender
from tests.support.servers import PostgresServer, RedisServer, free_port
from tests.support.untrained import save_untrained
from worker import logs
from worker.context import Context
from worker.delivery.identifiers import message_id
from worker.intake.receive import receive
from worker.queue.app import make_app, notify
from worker.settings import Settings

RECOVERY_SECONDS = 120
FIRST_START_SECONDS = 600  # on a machine that may be busy
GIVE_UP_SECONDS = 1800
DELIVERY_SECONDS = 900  # a lease of a delivery and some pauses
QUIET_SECONDS = 2
BLIND_SHARE = 0.2


COMMANDS = {
    "worker 1": ("worker",),
    "worker 2": ("worker",),
    "delivery 1": ("worker", "--queue", "delivery"),
    "delivery 2": ("worker", "--queue", "delivery"),
    "beat 1": ("beat",),
    "beat 2": ("beat",),
    "receiver": ("receive",),
}
"""The processes of the crew -> the command that each of them is."""


class Crew:
    """The processes of a site, started again when they end, as a container engine would."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logged_before: dict[str, int] = {}  # bytes in a process's log when it started

    def tend(self) -> None:
        """Start whoever does not run."""
        for name, (command, *options) in COMMANDS.items():
            if name not in self._processes or self._processes[name].poll() is not None:
                log = log_of(name)
                self._logged_before[name] = log.stat().st_size if log.exists() else 0
                self._processes[name] = start(self._context, command, log, *options)

    def has_a_worker(self) -> bool:
        """Whether one of the workers has loaded its checkpoint, as it does before it listens."""
        return any(
            b"checkpoint_loaded" in log_of(name).read_bytes()[self._logged_before[name] :]
            for name in ("worker 1", "worker 2")
            if self._processes[name].poll() is None
        )

    def send(self, name: str, what: signal.Signals) -> None:
        if self._processes[name].poll() is None:
            self._processes[name].send_signal(what)

    def kill_a_child(self, name: str, dice: random.Random) -> None:
        """SIGKILL to one of a worker's decoder processes."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._processes[name].pid).children()
            decoders = [child for child in children if "spawn_main" in "".join(child.cmdline())]
            if decoders:
                dice.choice(decoders).kill()

    def end(self) -> None:
        for name, process in self._processes.items():
            self.send(name, signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def log_of(name: str) -> Path:
    """Where the process called `worker 1` writes."""
    return Path(f"chaos-{name.replace(' ', '-')}.log")


@dataclass
class Expected:
    """The totals that must come out in the end, from how the studies were made."""

    outcomes: Counter[str] = field(default_factory=Counter)
    films: int = 0
    broken: set[str] = field(default_factory=set)  # Study Instance UIDs


@dataclass
class Site:
    context: Context
    postgres: PostgresServer
    redis: RedisServer
    crew: Crew
    films: Path
    dice: random.Random
    archive: Archive
    ris: Ris
    expected: Expected = field(default_factory=Expected)
    senders: list[Sender] = field(default_factory=list)

    def totals(self) -> Totals | None:
        """The totals, or None while the database is away."""
        try:
            with read_scope(self.context.engine) as session:
                return read_totals(session)
        except OperationalError:
            return None

    def receive(self, folder: Path) -> None:
        """Register a folder's studies and notify the workers, as `nightread enqueue` does."""
        receive(self.context, [folder])
        with session_scope(self.context.engine) as session:
            studies = ledger.studies_to_notify(session, renotify_minutes=1, limit=10_000)
        notify(make_app(self.context.settings), studies)

    def send(self, folder: Path) -> None:
        """Send a folder's films to the receiver, by a sender that goes on until every one of them is taken."""
        self.senders.append(Sender(sorted(folder.iterdir()), port=self.context.settings.receive.port))
        self.senders[-1].start()

    def settle_all(self, *, patience_seconds: float) -> float:
        """Wait until nothing is sent and nothing waits any more, and start whoever ends anew meanwhile.

        Returns the longest silence in seconds, in which studies waited, a worker was up and none was settled; gives up
        when it is longer than `patience_seconds`.
        """
        began = looked = time.monotonic()
        settled, silent, longest = None, 0.0, 0.0
        while longest <= patience_seconds and looked - began < GIVE_UP_SECONDS:
            self.crew.tend()
            totals, now = self.totals(), time.monotonic()
            if self.crew.has_a_worker():
                silent += now - looked
            longest, looked = max(longest, silent), now
            if totals is not None:
                if totals.waiting == 0 and not any(sender.is_alive() for sender in self.senders):
                    break
                if settled != (settled := totals.received - totals.waiting):
                    silent = 0.0
            time.sleep(0.2)
        return longest

    def deliver_all(self) -> bool:
        """Wait until every result is out; False where one is not in time."""
        deadline = time.monotonic() + DELIVERY_SECONDS
        while time.monotonic() < deadline:
            self.crew.tend()
            with suppress(OperationalError), read_scope(self.context.engine) as session:
                found = Counter(session.scalars(select(Delivery.state)))
                unpublished = deliveries.any_unpublished(session, max_age_hours=24)
                if not unpublished and not found["waiting"] and not found["sending"]:
                    return True
            time.sleep(1)
        return False

    def become(self, mood: Mood) -> None:
        """Change the mood of both destinations."""
        for destination in (self.archive, self.ris):
            destination.becomes(mood)

    def misbehave(self, mood: Mood) -> None:
        """Let both destinations be in a mood until each has been tried in it, and for some seconds more."""
        self.become(mood)
        deadline = time.monotonic() + 60
        while not (self.archive.tries and self.ris.tries) and time.monotonic() < deadline:
            self.crew.tend()
            time.sleep(0.1)
        time.sleep(self.dice.uniform(1, 6))
        self.become("well")

    def make_studies(self, number: int, *, name: str, of_a_sender: bool = False) -> Path:
        """A folder of new studies: of twenty, one lateral, one with a broken film and two with two films."""
        folder = (self.films.with_name("of-senders") if of_a_sender else self.films) / name
        folder.mkdir(parents=True)
        for i in range(number):
            kind = self.dice.choices(("one film", "two films", "lateral", "broken"), weights=(16, 2, 1, 1))[0]
            self._make_study(folder / f"{i:03d}", kind)
        return folder

    def _make_study(self, stem: Path, kind: str) -> None:
        seed = self.dice.getrandbits(32)
        fates: dict[str, dict[str, Any]] = {"lateral": {"view_position": "LL"}, "broken": {"PixelData": b"\0\0"}}
        first = make_film(stem.with_suffix(".1.dcm"), pixels=texture(seed=seed), bits=12, **fates.get(kind, {}))
        if kind == "two films":
            uid = first.StudyInstanceUID
            make_film(stem.with_suffix(".2.dcm"), pixels=texture(seed=seed + 1), bits=12, StudyInstanceUID=uid)
        if kind == "broken":
            self.expected.broken.add(first.StudyInstanceUID)
        self.expected.outcomes[{"lateral": "skipped", "broken": "quarantined"}.get(kind, "scored")] += 1
        self.expected.films += {"one film": 1, "two films": 2}.get(kind, 0)


# --------------------------------------------------------------------------------------------------------- the faults


def a_worker_is_killed(site: Site) -> None:
    site.crew.send(site.dice.choice(("worker 1", "worker 2")), signal.SIGKILL)


def both_workers_are_killed(site: Site) -> None:
    site.crew.send("worker 1", signal.SIGKILL)
    site.crew.send("worker 2", signal.SIGKILL)


def a_worker_is_asked_to_stop(site: Site) -> None:
    site.crew.send(site.dice.choice(("worker 1", "worker 2")), signal.SIGTERM)


def a_worker_sleeps_past_its_lease(site: Site) -> None:
    site.crew.send("worker 1", signal.SIGSTOP)
    time.sleep(site.context.settings.lease_minutes * 60 * 1.5)
    site.crew.send("worker 1", signal.SIGCONT)


def a_decoder_is_killed(site: Site) -> None:
    site.crew.kill_a_child(site.dice.choice(("worker 1", "worker 2")), site.dice)


def garbage_lies_in_the_queue(site: Site) -> None:
    with redis.Redis.from_url(site.redis.url) as client:
        client.rpush("scoring", b"not JSON")


def both_beats_are_killed(site: Site) -> None:
    site.crew.send("beat 1", signal.SIGKILL)
    site.crew.send("beat 2", signal.SIGKILL)


def redis_is_emptied(site: Site) -> None:
    site.redis.empty()


def redis_is_killed(site: Site) -> None:
    site.redis.kill()
    time.sleep(site.dice.uniform(0, 4))
    site.redis.start()


def redis_is_silent(site: Site) -> None:
    site.redis.pause()
    time.sleep(site.dice.uniform(1, 6))
    site.redis.resume()


def postgres_is_restarted(site: Site) -> None:
    site.postgres.restart()


def postgres_is_killed(site: Site) -> None:
    site.postgres.kill()
    time.sleep(site.dice.uniform(0, 4))
    site.postgres.start()


def postgres_is_silent(site: Site) -> None:
    site.postgres.pause()
    time.sleep(site.dice.uniform(1, 6))
    site.postgres.resume()


def the_share_disappears(site: Site) -> None:
    away = site.films.with_name("away")
    site.films.rename(away)
    time.sleep(site.dice.uniform(2, 6))
    away.rename(site.films)


def everything_is_sent_again_by_two_senders(site: Site) -> None:
    senders = [threading.Thread(target=site.receive, args=[site.films]) for _ in range(2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


def the_receiver_is_killed_while_films_are_sent(site: Site) -> None:
    for _ in range(3):
        site.crew.send("receiver", signal.SIGKILL)
        time.sleep(0.2)
        site.crew.tend()
        time.sleep(site.dice.uniform(2, 6))  # it takes a few seconds to listen again


def the_receiver_is_asked_to_stop(site: Site) -> None:
    site.crew.send("receiver", signal.SIGTERM)


def the_receiver_sleeps_past_its_senders_patience(site: Site) -> None:
    site.crew.send("receiver", signal.SIGSTOP)
    time.sleep(15)
    site.crew.send("receiver", signal.SIGCONT)


def results_are_refused(site: Site) -> None:
    site.misbehave("refuses")


def results_hang_at_their_destinations(site: Site) -> None:
    site.misbehave("hangs")


def results_are_kept_and_connections_dropped(site: Site) -> None:
    site.misbehave("drops")


def both_senders_of_results_are_killed_in_mid_send(site: Site) -> None:
    site.become("hangs")
    deadline = time.monotonic() + 60
    while site.archive.tries + site.ris.tries < 2 and time.monotonic() < deadline:
        site.crew.tend()
        time.sleep(0.1)
    for name in ("delivery 1", "delivery 2"):
        site.crew.send(name, signal.SIGKILL)
    with session_scope(site.context.engine) as session:
        over = database_now(session) - timedelta(seconds=1)  # as ten minutes later
        session.execute(update(Delivery).where(Delivery.state == "sending").values(lease_expires_at=over))
    site.become("well")


FAULTS: tuple[Callable[[Site], None], ...] = (
    a_worker_is_killed,
    both_workers_are_killed,
    a_worker_is_asked_to_stop,
    a_worker_sleeps_past_its_lease,
    a_decoder_is_killed,
    garbage_lies_in_the_queue,
    both_beats_are_killed,
    redis_is_emptied,
    redis_is_killed,
    redis_is_silent,
    postgres_is_restarted,
    postgres_is_killed,
    postgres_is_silent,
    the_share_disappears,
    everything_is_sent_again_by_two_senders,
    the_receiver_is_killed_while_films_are_sent,
    the_receiver_is_asked_to_stop,
    the_receiver_sleeps_past_its_senders_patience,
    results_are_refused,
    results_hang_at_their_destinations,
    results_are_kept_and_connections_dropped,
    both_senders_of_results_are_killed_in_mid_send,
)


# ---------------------------------------------------------------------------------------------------------- the night


@contextmanager
def open_site(seed: int) -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightread-chaos-")))
        postgres, broker = stack.enter_context(PostgresServer()), stack.enter_context(RedisServer())
        archive, ris = Archive(), Ris()
        peers = folder / "peers.toml"
        os.environ["NIGHTREAD_PEERS"] = str(peers)
        peers.write_text(
            f'[archive]\nae_title = "ARCHIVE"\nhost = "127.0.0.1"\nport = {stack.enter_context(archive.listening())}\n'
            f'[ris]\nmllp = "mllp://127.0.0.1:{stack.enter_context(ris.listening())}/RIS/HOSPITAL"\n'
        )
        settings = Settings(
            database_url=postgres.url,
            broker_url=broker.url,
            checkpoint=save_untrained(folder / "untrained.safetensors"),
            state_folder=folder,
            batch_size=8,
            decoders=1,
            device="cpu",
            log={"format": "json"},
            receive={"port": free_port(), "free_mb": 1},
            deliver={"sr": ("archive",), "oru": ("ris",), "quiet_seconds": QUIET_SECONDS},
            blind_share=BLIND_SHARE,
        )
        context = seeded_context(settings, champion=settings.checkpoint)
        crew = Crew(context)
        stack.callback(crew.end)
        yield Site(context, postgres, broker, crew, folder / "films", random.Random(seed), archive, ris)


def night(site: Site, *, studies: int, faults: Sequence[Callable[[Site], None]]) -> bool:
    """For each fault studies that lie in a folder before it, some that are sent meanwhile, and some after it; False
    when one was not recovered from in time."""
    share, extra = divmod(studies, len(faults) + 1)
    site.receive(site.make_studies(share + extra, name="before-all"))
    in_time = site.settle_all(patience_seconds=FIRST_START_SECONDS) <= FIRST_START_SECONDS
    for number, fault in enumerate(faults):
        site.receive(site.make_studies(share - 2 * (share // 3), name=f"portion-{number:02d}-before"))
        site.send(site.make_studies(share // 3, name=f"portion-{number:02d}-sent", of_a_sender=True))
        time.sleep(site.dice.uniform(0, 0.3))
        hit = site.totals()
        fault(site)
        mended = time.monotonic()
        site.receive(site.make_studies(share // 3, name=f"portion-{number:02d}-after"))
        silence = site.settle_all(patience_seconds=RECOVERY_SECONDS)
        took = time.monotonic() - mended
        in_time &= silence <= RECOVERY_SECONDS
        words = f"all settled {took:.0f} s later" if silence <= RECOVERY_SECONDS else "NOT RECOVERED IN TIME"
        waiting = hit.waiting if hit else 0
        say(
            f"{fault.__name__.replace('_', ' ')} ({waiting} waiting): {words}, silent for {silence:.0f} s",
            site.totals(),
        )
    return in_time


def faults_found(site: Site, *, studies: int, in_time: bool) -> list[str]:
    """Errors in the totals in the end."""
    with read_scope(site.context.engine) as session:
        totals = read_totals(session)
        rows = session.scalar(select(func.count()).select_from(FilmScore))
        blamed = set(session.scalars(select(Study.study_instance_uid).where(Study.state == "quarantined")))
        paths = [lookup.path_of(session, uid) for sender in site.senders for uid in sender.acknowledged]
    lost = sum(1 for path in paths if path is None or not Path(path).exists())
    refused = sum(len(sender.refused) for sender in site.senders)
    expected = site.expected
    outcomes = {"scored": totals.scored, "skipped": totals.skipped, "quarantined": totals.quarantined}
    checks = {
        "a fault was not recovered from within two minutes": in_time,
        "the totals do not balance": totals.balance,
        f"{totals.received} studies received of {studies}": totals.received == studies,
        f"{totals.waiting} studies still wait": totals.waiting == 0,
        f"{outcomes} instead of {dict(expected.outcomes)}": outcomes
        == {**dict.fromkeys(outcomes, 0), **expected.outcomes},
        f"{rows} rows of scores for {expected.films} films": rows == expected.films,
        f"{lost} films are lost that the receiver acknowledged": not lost,
        f"{refused} films were refused for good": not refused,
        f"{len(blamed - expected.broken)} sound studies are quarantined": blamed <= expected.broken,
    }
    return [text for text, holds in checks.items() if not holds]


def faults_of_deliveries(site: Site) -> list[str]:
    """Errors in what the destinations hold in the end, beside the ledger."""
    with read_scope(site.context.engine) as session:
        rows = session.scalars(select(Delivery).order_by(Delivery.id)).all()
        scored = {
            study_id: (uid, flag == "blind")
            for study_id, uid, flag in session.execute(
                select(Study.id, Study.study_instance_uid, StudyPriority.flag)
                .join(StudyPriority, StudyPriority.study_id == Study.id)
                .where(Study.state == "scored")
            )
        }
    blind = {uid for uid, is_blind in scored.values() if is_blind}
    wrong: dict[str, bool] = {f"no study of {len(scored)} is blind: nothing was tried": bool(blind)}
    for name, destination in (("archive", site.archive), ("ris", site.ris)):
        key = (lambda row: row.object_uid) if name == "archive" else (lambda row: message_id(row.object_uid))
        own = [row for row in rows if row.destination == name]
        out = {key(row) for row in own if row.state in ("sent", "confirmed")}
        newest = {row.study_id: key(row) for row in own}
        lost = [study for study, (_, is_blind) in scored.items() if not is_blind and newest.get(study) not in out]
        states = Counter(row.state for row in own)
        wrong |= {
            f"{name}: {len(lost)} studies have no result that is out: {dict(states)}": not lost,
            f"{name}: {len(out - destination.held.keys())} results are not there that were sent": out
            <= destination.held.keys(),
            f"{name}: it holds what no row stands for": destination.held.keys() <= {key(row) for row in own},
            f"{name}: {len(destination.changed)} results came again with other content": not destination.changed,
            f"{name}: it holds results of blind studies": blind.isdisjoint(destination.held.values()),
        }
        print(f"{name}: {len(destination.held)} results held for {len(scored) - len(blind)} studies, "
              f"{sum(row.attempts for row in own)} attempts, {dict(states)}")  # fmt: skip
    return [text for text, holds in wrong.items() if not holds]


def say(text: str, totals: Totals | None) -> None:
    state = "database away" if totals is None else f"{totals.scored} scored, {totals.skipped} skipped, " + (
        f"{totals.quarantined} quarantined, {totals.waiting} waiting of {totals.received}"
    )  # fmt: skip
    print(f"{text:95} {state}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--only", default="", metavar="WORD", help="only the faults with this word in their name")
    arguments = parser.parse_args()
    logs.configure(level="warning", style="console")
    print(f"seed {arguments.seed}; the processes write to chaos-*.log", flush=True)
    chosen = [fault for fault in FAULTS if arguments.only in fault.__name__]
    with open_site(arguments.seed) as site:
        faults = site.dice.sample(chosen, len(chosen))
        in_time = night(site, studies=arguments.studies, faults=faults)
        wrong = faults_found(site, studies=arguments.studies, in_time=in_time)
        wrong += [] if site.deliver_all() else ["results still wait"]
        wrong += faults_of_deliveries(site)
        say("the totals", site.totals())
    print(
        "\n".join(f"WRONG: {text}" for text in wrong) or "nothing lost, nothing twice, nobody blamed: the night holds"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
