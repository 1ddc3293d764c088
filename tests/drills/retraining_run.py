"""From an empty database to a promoted challenger, on drawn films: make retraining.

The demo's phantoms become a hospital's DICOM studies, as many as the gate needs to decide. A first champion learns from
a few of them whose table has slipped by two columns, so it calls each finding by another's name. The others are sent
through the queue, scored by two workers, and confirmed with what is drawn in them (a CSV from the RIS).

First only some are confirmed. A retraining by hand, which may promote, ends undecided: a person is asked. Then all are
confirmed, and beat's schedule, shortened to a minute, asks for a retraining; a training worker runs it beside the
scoring. Its challenger passes every check, is promoted, taken up by the workers, and taken back in the middle of a
night. A challenger that learned from shuffled labels is refused. With --kills a retraining is killed at random moments.

Everything but the films is real: PostgreSQL, Redis, beat, three workers, the commands that people type.

Exit code 0: all parts were done; 1: something failed; 3: a part was left out, and the last lines say which.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image
from rich.console import Console
from sqlalchemy import text

from db import gate, training_runs
from db.models import TrainingRun
from db.session import read_scope, session_scope
from tests.support.confirmed import confirm_films, save_beginner
from tests.support.contexts import seeded_context, with_settings
from tests.support.crew import enqueue, environment_of, running, start, totals, wait_until
from tests.support.dicom_files import make_film
from tests.support.servers import PostgresServer, RedisServer
from tests.support.values import present
from training.findings import FINDINGS
from worker import logs
from worker.context import Context
from worker.demo.learn import draw_films
from worker.settings import Settings
from worker.terminal.tables import verdict_table

BASE, SITE, FIRST_CONFIRMED = 600, 1000, 300  # films: of the base, of the hospital, and confirmed before the others
ROWS, SIZE = 256, 96  # of a drawn film, and of the networks' inputs, in pixels
SLIPPED = 2  # columns by which the champion's table is wrong: a pneumothorax is called an emphysema
LOAD, LOAD_SIDE = 150, 1536  # studies that measure the scoring, and the side of their films in pixels
BASE_RATIO = 0.1  # base films per confirmed one: a training is the longest part
LEARNING_RATE, BATCH_SIZE = 1e-3, 8
NIGHT = 1000  # studies of the night in whose middle the champion is rolled back: longer than the command takes to start
SHUFFLED = "Effusion"
SOMETHING_LEFT_OUT = 3
PARTS = (
    "an undecided challenger left to a person",
    "scoring beside the training",
    "a challenger that passed",
    "promotion",
    "a worse challenger refused",
    "rollback in the middle of a night",
)

console = Console(width=150, highlight=False)


def nightread(context: Context, *arguments: str, expect: int = 0) -> str:
    """Run a command as a person would; what it printed."""
    environment = os.environ | environment_of(context.settings) | {"COLUMNS": "150"}
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != expect:
        raise SystemExit(f"nightread {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout or done.stderr


def say(heading: str, body: str = "") -> None:
    console.print(f"[bold]{time.strftime('%H:%M:%S')} {heading}[/]" + (f"\n{body.rstrip()}" if body else ""))


def ending(done: Collection[str]) -> tuple[int, str]:
    """The drill's exit code and last words, by the parts that were done."""
    left_out = [part for part in PARTS if part not in done]
    return (SOMETHING_LEFT_OUT, f"LEFT OUT: {'; '.join(left_out)}") if left_out else (0, "every part was done")


# ------------------------------------------------------------------------------------------------------------- films


def draw(folder: Path) -> pd.DataFrame:
    """Phantoms as PNG and their labels: the base's first, then the hospital's."""
    films = pd.read_csv(draw_films(folder, films=BASE + SITE, rows=ROWS))
    rng = np.random.default_rng(0)
    return films.assign(sex=rng.choice(["M", "F"], len(films)), age=rng.integers(20, 90, len(films)))


def write_studies(films: pd.DataFrame, images: Path, folder: Path, *, side: int | None = None) -> Path:
    """A study of one film for each, of a patient of its own; `side` in pixels, or as it was drawn.

    The accession number is the folder's name and the film's number.
    """
    folder.mkdir(parents=True)
    for number, film in enumerate(films.to_dict("records")):
        picture = Image.open(images / film["image"])
        pixels = np.asarray(picture if side is None else picture.resize((side, side)))
        make_film(
            folder / f"{number}.dcm", pixels=pixels, view_position=film["view"],
            AccessionNumber=f"{folder.name}-{number}", PatientID=f"{folder.name} {film['patient']}",
            PatientSex=film["sex"], PatientAge=f"{film['age']:03d}Y",
        )  # fmt: skip
    return folder


def write_reviews(films: pd.DataFrame, path: Path) -> Path:
    """Confirmed findings, as the RIS exports them: a row per study, a column per finding."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["accession_number", "reader", *FINDINGS])
        for number, labels in enumerate(films[list(FINDINGS)].to_numpy()):
            table.writerow([f"site-{number}", "dr.known", *("present" if label else "absent" for label in labels)])
    return path


def slipped(films: pd.DataFrame) -> pd.DataFrame:
    """The films under labels that stand two columns too far to the right."""
    return films.assign(
        **dict(zip(FINDINGS, np.roll(films[list(FINDINGS)].to_numpy(), SLIPPED, axis=1).T, strict=True))
    )


def shuffled(films: pd.DataFrame) -> pd.DataFrame:
    """The films, one finding's labels dealt out at random."""
    return films.assign(**{SHUFFLED: np.random.default_rng(0).permutation(films[SHUFFLED].to_numpy())})


def prepare(films: pd.DataFrame, images: Path, folder: Path) -> Path:
    """The films under these labels, as a user prepares them."""
    folder.mkdir()
    films.to_csv(folder / "labels.csv", index=False)
    train("prepare", folder / "prepared", "--table", folder / "labels.csv", "--images", images, "--size", SIZE)
    return folder / "prepared"


def fit(films: Path, *, start: object, epochs: int, learning_rate: float) -> Path:
    """A checkpoint that learned from prepared films as they are, with the split of a retraining."""
    words = f"--network small --epochs {epochs} --batch-size {BATCH_SIZE} --learning-rate {learning_rate} --no-augment"
    train("fit", films, films.parent / "run", "--split", "stable", "--start", start, *words.split())
    return films.parent / "run" / "checkpoint.safetensors"


def train(*arguments: object) -> None:
    """`nightread train ...`, with one thread: two wait for one another on a machine that does other things."""
    words = [sys.executable, "-m", "worker.cli", "train", *map(str, arguments)]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"train {arguments[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


# ------------------------------------------------------------------------------------------------------------- story


@dataclass
class Site:
    """The hospital: its folder, its context, its films and their pictures, and the workers that score."""

    folder: Path
    context: Context
    films: pd.DataFrame
    images: Path
    workers: list[int] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder / "crew.log"

    def load(self, name: str, *, studies: int = LOAD) -> Path:
        """Studies that nobody confirms, at a size at which decoding costs something."""
        films = self.films.sample(studies, random_state=0)
        return write_studies(films, self.images, self.folder / name, side=LOAD_SIDE)


@dataclass(frozen=True)
class Pace:
    """Studies per second from the first message to the last result, and the workers' processor time for each."""

    studies_per_second: float
    cpu_ms_per_study: float

    def __str__(self) -> str:
        return f"{self.studies_per_second:.1f} studies/s, {self.cpu_ms_per_study:.0f} ms of processor time per study"


def pace(site: Site, folder: Path) -> Pace:
    scored, cpu = totals(site.context).scored, cpu_seconds(site.workers)
    began = time.monotonic()
    enqueue(site.context, folder)
    sent = len(list(folder.iterdir()))  # whoever notifies the workers of them: beat's sweep does too
    wait_until(lambda: totals(site.context).scored >= scored + sent, seconds=900, log=site.log)
    seconds = time.monotonic() - began
    return Pace(sent / seconds, 1000 * (cpu_seconds(site.workers) - cpu) / sent)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes and their children, ended ones too."""
    total = 0.0
    for pid in pids:
        worker = psutil.Process(pid)
        total += worker.cpu_times().children_user + worker.cpu_times().children_system
        for process in (worker, *worker.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.cpu_times().user + process.cpu_times().system
    return total


@contextmanager
def third_job() -> Iterator[None]:
    """Another program on the machine, which takes one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def run_of(context: Context, cause: str) -> TrainingRun | None:
    """The first retraining that was begun so, if there is one."""
    with read_scope(context.engine) as session:
        runs = [run for run in training_runs.everything(session) if run.cause == cause]
    return min(runs, key=lambda run: run.id, default=None)


def in_training(context: Context) -> bool:
    run = run_of(context, "schedule")
    return run is not None and run.state == "running" and run.stage == "train"


def over(context: Context) -> bool:
    run = run_of(context, "schedule")
    return run is not None and run.state != "running"


def whole_story(folder: Path) -> int:
    """The drill from its beginning to its end; its exit code."""
    films, images, done = draw(folder / "films"), folder / "films", set[str]()
    base, hospital = films[:BASE], films[BASE:].reset_index(drop=True)
    say(f"{len(base)} films are drawn for the base, {len(hospital)} for the hospital")
    prepared = prepare(base, images, folder / "base")
    champion = fit(
        prepare(slipped(base), images, folder / "slipped"), start="chance", epochs=14, learning_rate=2 * LEARNING_RATE
    )
    say("the first champion is trained")
    worse = fit(
        prepare(shuffled(films), images, folder / "shuffled"), start=champion, epochs=4, learning_rate=LEARNING_RATE
    )
    say(f"the challenger that learned from shuffled labels of {SHUFFLED} is trained")
    with ExitStack() as stack:
        settings = Settings(
            database_url=stack.enter_context(PostgresServer()).url,
            broker_url=stack.enter_context(RedisServer()).url,
            state_folder=folder / "state", device="cpu", sweep_seconds=5, log={"format": "json"},
            retrain={"base": prepared, "base_ratio": BASE_RATIO, "learning_rate": LEARNING_RATE, "threads": 1,
                     "batch_size": BATCH_SIZE, "min_positives": 5, "schedule": "* * * * *"},
            drift={"schedule": ""},
        )  # fmt: skip
        site = Site(folder, Context(settings), hospital, images)
        nightread(with_settings(site.context, checkpoint=champion), "db", "upgrade")  # it becomes the champion
        for _ in range(2):
            site.workers.append(stack.enter_context(running(site.context, "worker", site.log)).pid)
        stack.enter_context(running(site.context, "worker", site.log, "--queue", "training"))
        enqueue(site.context, write_studies(hospital, images, folder / "site"))
        wait_until(lambda: totals(site.context).waiting == 0, seconds=900, log=site.log)
        say("the hospital's films are scored", nightread(site.context, "status"))
        if leave_undecided(site):
            done.add("an undecided challenger left to a person")
        idle = pace(site, site.load("idle"))
        third_load = site.load("third")
        with third_job():
            third = pace(site, third_load)
        load = site.load("busy")
        confirm(site, studies=SITE)
        stack.enter_context(running(site.context, "beat", site.log))
        wait_until(lambda: in_training(site.context) or over(site.context), seconds=600, log=site.log)
        busy = pace(site, load)
        if in_training(site.context):
            done.add("scoring beside the training")
        wait_until(lambda: over(site.context), seconds=1200, log=site.log)
        say("scoring", f"idle: {idle}\nbeside a third job: {third}\nbeside the training: {busy}")
        challenger, result = show_run(site.context, "schedule")
        if challenger is not None and result == "passed":
            done.add("a challenger that passed")
            if promote(site, challenger):
                done.add("promotion")
            if refused(site, worse):
                done.add("a worse challenger refused")
            if roll_back_in_the_middle(site, challenger):
                done.add("rollback in the middle of a night")
        say("the totals", nightread(site.context, "status"))
        say("checkpoints", nightread(site.context, "models", "list"))
    code, words = ending(done)
    say(words)
    return code


def confirm(site: Site, *, studies: int) -> None:
    reviews = write_reviews(site.films[:studies], site.folder / f"reviews-{studies}.csv")
    say(f"reviews of {studies} studies are imported", nightread(site.context, "review", "--csv", str(reviews)))


def leave_undecided(site: Site) -> bool:
    """Retrain by hand on few confirmed films, without a base to judge on. Whether the verdict is undecided, nothing
    went live though it was allowed to, and a person who asks for it is told what would decide it."""
    confirm(site, studies=FIRST_CONFIRMED)
    alone = with_settings(site.context, retrain={"base": None, "promotes": True})
    say("retrained on them", nightread(alone, "retrain", expect=1))
    challenger, result = show_run(site.context, "hand")
    if challenger is None or result != "undecided":
        return False
    say("promote is refused", nightread(site.context, "models", "promote", challenger, "--reason", "try", expect=2))
    (state,) = (row["state"] for row in listed(site.context) if row["digest"] == challenger)
    return bool(state == "challenger")


def listed(context: Context) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(nightread(context, "models", "list", "--json"))
    return rows


def show_run(context: Context, cause: str) -> tuple[str | None, str]:
    """Print how the first run of this cause ended; the challenger's digest, where there is one, and its verdict."""
    run = present(run_of(context, cause))
    with read_scope(context.engine) as session:
        verdict = None if run.checkpoint_id is None else gate.latest(session, run.checkpoint_id)
        checks = [] if verdict is None else gate.checks_of(session, verdict)
        digest = session.scalar(text("SELECT digest FROM checkpoint WHERE id = :id"), {"id": run.checkpoint_id})
    say(
        f"retraining {run.id} ({run.cause}) {run.state}: {run.reason}",
        f"{run.counts} in {run.metrics.get('seconds')} s",
    )
    console.print(verdict_table(checks))
    return digest, "failed" if verdict is None else verdict.result


def promote(site: Site, challenger: str) -> bool:
    """Live within a minute. Whether it scored the next load."""
    say("promote", nightread(site.context, "models", "promote", challenger[:12], "--reason", "passed the gate"))
    began = time.monotonic()
    pace(site, site.load("promoted"))
    with read_scope(site.context.engine) as session:
        by = {digest: studies for digest, studies, _ in session.execute(text(BY_CHECKPOINT), {"load": "promoted-%"})}
    say("the champion now", f"{by} within {time.monotonic() - began:.0f} s (asked for {challenger[:12]})")
    return challenger[:12] in by


def refused(site: Site, checkpoint: Path) -> bool:
    """Whether the gate refuses this challenger."""
    digest = nightread(site.context, "models", "add", str(checkpoint)).split()[0]
    say("judged: the one of shuffled labels", nightread(site.context, "models", "judge", digest, expect=1))
    verdict = json.loads(nightread(site.context, "models", "verdict", digest, "--json"))
    return bool(verdict["result"] == "failed")


def roll_back_in_the_middle(site: Site, challenger: str) -> bool:
    """Back within a minute while a night is being scored. Whether both checkpoints scored a part of it, and no study
    was scored by two."""
    load = site.load("night", studies=NIGHT)
    begun = totals(site.context).scored + NIGHT // 20
    sender = start(site.context, "enqueue", site.log, str(load))
    wait_until(lambda: totals(site.context).scored >= begun, seconds=300, log=site.log)
    nightread(site.context, "models", "rollback", "--reason", "in the middle of a night")
    asked = time.monotonic()
    sender.wait(timeout=300)
    wait_until(lambda: totals(site.context).waiting == 0, seconds=300, log=site.log)
    with read_scope(site.context.engine) as session:
        by = session.execute(text(BY_CHECKPOINT), {"load": "night-%"}).all()
        back_at = session.scalar(text("SELECT max(activated_at) FROM policy"))
        mixed = session.scalar(text(MIXED), {"load": "night-%"})
    first_back = [row for row in by if not challenger.startswith(row[0])]
    seconds = (first_back[0][2] - back_at).total_seconds() if first_back else float("nan")
    say(
        "rolled back in the middle of a night",
        f"studies by checkpoint: {[(digest, studies) for digest, studies, _ in by]}\n"
        f"the first one by the old champion {seconds:.1f} s after the rollback\n"
        f"studies with two checkpoints: {mixed}\n"
        f"the night was over after {time.monotonic() - asked:.0f} s",
    )
    return was_in_the_middle([digest for digest, _, _ in by], challenger=challenger, mixed=mixed or 0)


def was_in_the_middle(digests: Collection[str], *, challenger: str, mixed: int) -> bool:
    """Whether a night was scored by the challenger and by the champion before it, each study by one of them."""
    return len(set(digests) - {challenger[:12]}) == 1 and challenger[:12] in digests and not mixed


BY_CHECKPOINT = """
    SELECT substr(c.digest, 1, 12), count(*), min(p.ranked_at)
    FROM study_priority p JOIN checkpoint c ON c.id = p.checkpoint_id JOIN study s ON s.id = p.study_id
    WHERE s.accession_number LIKE :load GROUP BY 1"""
MIXED = """
    SELECT count(*) FROM (
        SELECT i.study_id FROM film_score f JOIN instance i ON i.id = f.instance_id JOIN study s ON s.id = i.study_id
        WHERE s.accession_number LIKE :load GROUP BY i.study_id HAVING count(DISTINCT f.checkpoint_id) > 1) m"""


# --------------------------------------------------------------------------------------------------------- the kills


def killed(folder: Path, *, kills: int, seed: int) -> int:
    """One retraining killed so often at random moments, and the same undisturbed: the same checkpoint."""
    rng = random.Random(seed)
    digests = []
    for name, deaths in (("undisturbed", 0), ("killed", kills)):
        context = _small_context(folder / name)
        for number in range(deaths):
            process = subprocess.Popen([sys.executable, "-m", "worker.cli", "retrain"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL,
                                       env=os.environ | environment_of(context.settings))  # fmt: skip
            time.sleep(rng.uniform(2, 14))
            process.send_signal(signal.SIGKILL)
            process.wait()
            run = run_of(context, "hand")
            if run is not None and run.state != "running":
                say(f"kill {number + 1} came too late", "it had ended by itself")
                break
            say(f"kill {number + 1}", f"in stage {run.stage if run else 'none yet'}")
            with session_scope(context.engine) as session:  # instead of waiting two minutes for the lease
                session.execute(text("UPDATE training_run SET lease_expires_at = '2000-01-01 00:00:00' "
                                     "WHERE state = 'running'"))  # fmt: skip
        else:
            nightread(context, "retrain", expect=1)  # noise for films: the gate does not let it pass
        run = present(run_of(context, "hand"))
        with read_scope(context.engine) as session:
            runs, verdicts, challengers, digest = session.execute(text(
                "SELECT (SELECT count(*) FROM training_run), (SELECT count(*) FROM gate_verdict), "
                "(SELECT count(*) FROM checkpoint) - 1, (SELECT digest FROM checkpoint WHERE id = :id)"),
                {"id": run.checkpoint_id}).one()  # fmt: skip
        digests.append(digest)
        counted = f"{runs} run, {verdicts} verdict, {challengers} challenger"
        say(name, f"{run.state} after {run.attempts} attempts; {counted}; {digest}")
    same = len(set(digests)) == 1
    say("the same checkpoint" if same else "NOT THE SAME CHECKPOINT")
    return 0 if same else 1


def _small_context(folder: Path) -> Context:
    folder.mkdir()
    settings = Settings(
        database_url=f"sqlite:///{folder / 'nightread.db'}", state_folder=folder, device="cpu", max_attempts=100,
        retrain={"epochs": 12, "batch_size": 16, "min_new_films": 10, "min_positives": 1, "threads": 1},
        gate={"replicates": 100},
    )  # fmt: skip
    context = seeded_context(settings, champion=save_beginner(folder / "beginner.safetensors"))
    with session_scope(context.engine) as session:
        confirm_films(session, folder / "films", films=120)
    return context


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="instead: kill one small retraining so often")
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    arguments = parser.parse_args()
    logs.configure(level="warning", style="console")
    with tempfile.TemporaryDirectory(prefix="nightread-retraining-") as made:
        if arguments.kills:
            return killed(Path(made), kills=arguments.kills, seed=arguments.seed)
        return whole_story(Path(made))


if __name__ == "__main__":
    sys.exit(main())
