"""The DICOM receiver under load and under kills, beside DCMTK's storescp: make receiver FILMS=200 KILLS=20.

Needs DCMTK's storescu and storescp (Debian: apt-get install dcmtk). The receiver listens on 127.0.0.1. storescp listens
on all addresses: the drill runs it in a network namespace of its own where it may make one, and leaves the comparison
out, with a sentence, where it may not.

1. Four storescu send FILMS films of 8 to 16 MB at once. Every data set must be there byte for byte, and the totals must
   balance. Printed are the processor time per film beside storescp's for the same films, and the receiver's memory.
2. The receiver is killed in mid-transfer, KILLS times. Every film whose sender heard of success is on disk and in the
   ledger, and no half film is registered.
3. 2,000 small films (SMALL) are sent to one receiver, whose memory must stay flat from a quarter of them on.

Ends with exit code 0 when all of it held, 1 when something did not, 2 when a part was left out.
"""

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from db.lookup import path_of
from db.session import read_scope
from db.totals import read_totals
from tests.support.crew import start, wait_until
from tests.support.dicom_files import data_set_digest, make_film, save, texture
from worker.context import Context
from worker.settings import Settings

SENDERS = 4
ROUND = 40  # films sent to one receiver before the other has its turn
SIDES = (2048, 2304, 2560, 2828)  # pixels: 8 to 16 MB at two bytes each
MOST_TIMES_STORESCP = 2.0
MOST_MEMORY_MB = 200
MOST_GROWTH_MB = 8  # from a quarter of the small films to all of them


def make_films(folder: Path, count: int, *, seed: int) -> list[Path]:
    """`count` films of their own studies, of 8 to 16 MB each."""
    films = [make_film(pixels=texture(side, side, seed=seed + side)) for side in SIDES]
    return [save_as_own_study(films[number % len(films)], folder / f"{number:04}.dcm") for number in range(count)]


def save_as_own_study(film: Dataset, path: Path) -> Path:
    """Write the film under new UIDs."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(film, keyword, generate_uid())
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    save(film, path)
    return path


@contextmanager
def receiver(context: Context, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`nightread receive`, listening."""
    process = start(context, "receive", log)
    try:
        wait_until(lambda: is_open(context.settings.receive.port) or process.poll() is not None, log=log)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send(films: list[Path], *, port: int, called: str, inside: tuple[str, ...] = ()) -> list[subprocess.Popen[str]]:
    """Four storescu at once, each with its share of the films; they print what became of each."""
    command = [*inside, "storescu", "-v", "-aet", "MODALITY", "-aec", called, "127.0.0.1", str(port)]
    shares = [films[number::SENDERS] for number in range(SENDERS)]
    return [
        subprocess.Popen([*command, *map(str, share)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for share in shares
        if share
    ]


def processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@dataclass(frozen=True)
class Load:
    """What a load cost. ours, rivals: processor seconds a film, of the receiver and of storescp (None: left out)."""

    ours: float
    rivals: float | None
    peak_mb: float
    all_there: bool


def under_load(context: Context, films: list[Path], folder: Path) -> Load:
    """Send the films to the receiver and to storescp by turns: the machine is then as busy for one as for the other."""
    ours, rivals = 0.0, 0.0
    with receiver(context, folder / "log") as process, namespace() as inside:
        for some in (films[first : first + ROUND] for first in range(0, len(films), ROUND)):
            before = processor_seconds(process.pid)
            for sender in send(some, port=context.settings.receive.port, called="NIGHTREAD"):
                sender.communicate()
            ours += processor_seconds(process.pid) - before
            if inside:
                rivals += of_storescp(some, folder / "rival", inside)
        status = Path(f"/proc/{process.pid}/status").read_text()
    peak_mb = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    received = list(context.receive_folder.rglob("*.dcm"))
    with read_scope(context.engine) as session:
        totals = read_totals(session)
    same = sorted(map(data_set_digest, received)) == sorted(map(data_set_digest, films))
    all_there = same and totals.balance and totals.received == len(films)
    return Load(ours / len(films), rivals / len(films) if inside else None, peak_mb, all_there)


@contextmanager
def namespace() -> Iterator[tuple[str, ...]]:
    """The words that run a command in a network namespace with nothing but loopback; none where none can be made."""
    name = f"nightread-{os.getpid()}"
    made = shutil.which("ip") and subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if not made:
        yield ()
        return
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield ("ip", "netns", "exec", name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def of_storescp(films: list[Path], folder: Path, inside: tuple[str, ...]) -> float:
    """Processor seconds of DCMTK's storescp for the same films; what it received is removed again."""
    folder.mkdir()
    command = [*inside, "storescp", "-aet", "RIVAL", "+xa", "--output-directory", str(folder), "--fork", "11113"]
    rival = subprocess.Popen(command)
    try:
        time.sleep(1)
        before = rival_seconds(rival)
        for sender in send(films, port=11113, called="RIVAL", inside=inside):
            sender.communicate()
        return rival_seconds(rival) - before
    finally:
        rival.terminate()
        rival.wait()
        shutil.rmtree(folder)


def rival_seconds(rival: subprocess.Popen[bytes]) -> float:
    """Processor seconds of storescp and of its children, which have ended by now."""
    times = psutil.Process(rival.pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def under_kills(
    context: Context, films: list[Path], log: Path, *, kills: int, rng: random.Random
) -> tuple[int, int, int]:
    """How many films were acknowledged over all kills, how many of those are lost, and how many are registered that are
    not whole."""
    acknowledged: set[Path] = set()
    for _ in range(kills):
        with receiver(context, log) as process:
            senders = send(films, port=context.settings.receive.port, called="NIGHTREAD")
            time.sleep(rng.uniform(0.05, 1.5))
            process.send_signal(signal.SIGKILL)
            for sender in senders:
                acknowledged |= confirmed_by(sender.communicate()[0])
    with read_scope(context.engine) as session:
        kept = {path: path_of(session, uid_of(path)) for path in films}
    lost = [path for path in acknowledged if not is_whole(kept[path], path)]
    half = [path for path in films if kept[path] is not None and not is_whole(kept[path], path)]
    return len(acknowledged), len(lost), len(half)


def memory_over(context: Context, count: int, folder: Path) -> list[float]:
    """Resident memory in MB of one receiver after each quarter of `count` small films, each of its own study."""
    folder.mkdir()
    with receiver(context, folder / "log") as process:
        found = []
        for quarter in range(4):
            films = make_small_films(folder / str(quarter), count // 4, seed=quarter)
            for sender in send(films, port=context.settings.receive.port, called="NIGHTREAD"):
                sender.communicate()
            found.append(psutil.Process(process.pid).memory_info().rss / 2**20)
    with read_scope(context.engine) as session:
        received = read_totals(session).received
    if received != 4 * (count // 4):
        raise RuntimeError(f"{received} of {count} small films arrived")
    return found


def make_small_films(folder: Path, count: int, *, seed: int) -> list[Path]:
    """`count` films of their own studies, of 120 KB each."""
    folder.mkdir()
    film = make_film(pixels=texture(256, 240, seed=seed))
    return [save_as_own_study(film, folder / f"{number:04}.dcm") for number in range(count)]


def confirmed_by(output: str) -> set[Path]:
    """The files after whose name storescu printed a response of success."""
    confirmed, current = set(), None
    for line in output.splitlines():
        if found := re.search(r"Sending file: (.+)$", line):
            current = Path(found[1].strip())
        elif "Received Store Response (Success)" in line and current is not None:
            confirmed.add(current)
    return confirmed


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def is_whole(kept: str | None, sent: Path) -> bool:
    return kept is not None and Path(kept).exists() and data_set_digest(Path(kept)) == data_set_digest(sent)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--films", type=int, default=200)
    asked.add_argument("--kills", type=int, default=20)
    asked.add_argument("--small", type=int, default=2000)
    asked.add_argument("--seed", type=int, default=int(time.time()))
    chosen = asked.parse_args()
    if shutil.which("storescu") is None:
        print("left out: DCMTK is not installed (apt-get install dcmtk)")
        return 2
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "films").mkdir()
        films = make_films(folder / "films", chosen.films, seed=chosen.seed % 2**31)
        settings = Settings(database_url=f"sqlite:///{folder / 'nightread.db'}", state_folder=folder)
        context = Context(settings.changed(receive={"port": free_port(), "free_mb": 1}))
        context.seed()
        load = under_load(context, films, folder)
        print(f"{chosen.films} films from {SENDERS} senders: all there and as sent: {load.all_there}; "
              f"{load.ours * 1000:.0f} ms of processor time a film, peak memory {load.peak_mb:.0f} MB")  # fmt: skip
        if load.rivals is not None:
            times = load.ours / load.rivals
            print(f"storescp: {load.rivals * 1000:.0f} ms a film; the receiver takes {times:.2f} times as much")
        few = films[: 8 * SENDERS]
        shutil.rmtree(context.receive_folder)
        again = Context(context.settings.changed(database_url=f"sqlite:///{folder / 'kills.db'}"))
        again.seed()
        count, lost, half = under_kills(again, few, folder / "log", kills=chosen.kills, rng=random.Random(chosen.seed))
        print(f"{chosen.kills} kills (seed {chosen.seed}): {count} films acknowledged, {lost} of them lost, "
              f"{half} registered that are not whole")  # fmt: skip
        shutil.rmtree(again.receive_folder)
        third = Context(context.settings.changed(database_url=f"sqlite:///{folder / 'small.db'}"))
        third.seed()
        memory = memory_over(third, chosen.small, folder / "small")
        print(f"memory over {chosen.small} small films, after each quarter: "
              f"{', '.join(f'{each:.1f}' for each in memory)} MB")  # fmt: skip
    flat = memory[-1] - memory[0] < MOST_GROWTH_MB
    held = load.all_there and not lost and not half and count and load.peak_mb < MOST_MEMORY_MB and flat
    if load.rivals is None:
        print("left out: the comparison with storescp, which needs a network namespace (root and iproute2)")
        return 2 if held else 1
    return 0 if held and load.ours < MOST_TIMES_STORESCP * load.rivals else 1


if __name__ == "__main__":
    sys.exit(main())
