"""From an empty database to a promoted challenger, on real films: make retraining.

NIH films that radiologists labelled become a hospital's DICOM studies. A first champion learns from a few of them; the
others are sent through the queue, scored by two workers, and confirmed with the labels that are known (a CSV from the
RIS). Beat's schedule, shortened to a minute, asks for a retraining; a training worker runs it beside the scoring. Then
the challenger is judged, promoted by hand as its verdict allows, taken up by the workers, and taken back in the middle
of a night. Two challengers made worse on purpose are judged too. With --kills a retraining is killed at random moments.

Everything is real: PostgreSQL, Redis, beat, three workers, the commands that people type. Needs ../shared/data. A fifth
of the films judge, too few for some checks: an undecided verdict is accepted by a person's word, as a site would.

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
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from training.manifest import frontal, read_rows
from worker import logs
from worker.context import Context
from worker.settings import Settings
from worker.terminal.tables import verdict_table

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FILMS = SHARED / "nih_films"
WEIGHTS = SHARED / "weights" / "mobilenet_v2-b0353104.pth"
BASE_PATIENTS = 4  # one in this many patients is the base's, the others are the hospital's
LOAD, LOAD_SIDE = 150, 1536  # studies that measure the scoring, and the side of their films in pixels
BASE_RATIO = 0.1  # base films per confirmed one: a training is the longest part
LEARNING_RATE = 3e-4  # for few epochs
NIGHT = 1000  # studies of the night in whose middle the champion is rolled back: longer than the command takes to start
SHUFFLED = "Effusion"
SOMETHING_LEFT_OUT = 3
PARTS = (
    "scoring beside the training",
    "a verdict that lets the challenger go live",
    "promotion",
    "two worse challengers refused",
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
    return done.stdout


def say(heading: str, body: str = "") -> None:
    console.print(f"[bold]{time.strftime('%H:%M:%S')} {heading}[/]" + (f"\n{body.rstrip()}" if body else ""))


def ending(done: Collection[str]) -> tuple[int, str]:
    """The drill's exit code and last words, by the parts that were done."""
    left_out = [part for part in PARTS if part not in done]
    return (SOMETHING_LEFT_OUT, f"LEFT OUT: {'; '.join(left_out)}") if left_out else (0, "every part was done")


# ------------------------------------------------------------------------------------------------------------- films


def labelled() -> pd.DataFrame:
    """The AP and PA films with their labels, as the manifest has them."""
    return frontal(read_rows(FILMS / "labels.csv"))


def of_the_base(films: pd.DataFrame) -> "pd.Series[bool]":
    return films["patient_id"].astype(int) % BASE_PATIENTS == 0


def write_site(films: pd.DataFrame, folder: Path) -> None:
    """The hospital's studies: one film each, with the patient, the view and an accession number."""
    folder.mkdir(parents=True)
    film: Any  # a row, whose columns pandas' annotations do not know
    for number, film in enumerate(films.itertuples()):
        pixels = np.asarray(Image.open(FILMS / film.image).convert("L"))
        age = None if pd.isna(film.age_years) else f"{int(film.age_years):03d}Y"
        make_film(
            folder / f"{number}.dcm", pixels=pixels, view_position=film.view_position, AccessionNumber=f"S{number}",
            PatientID=f"NIH-{film.patient_id}", PatientSex=film.sex, PatientAge=age,
        )  # fmt: skip


def write_load(films: pd.DataFrame, folder: Path, *, seed: int, studies: int = LOAD) -> Path:
    """Studies that nobody confirms, at a size at which decoding costs something."""
    folder.mkdir(parents=True)
    film: Any
    for number, film in enumerate(films.sample(studies, random_state=seed).itertuples()):
        picture = Image.open(FILMS / film.image).convert("L").resize((LOAD_SIDE, LOAD_SIDE))
        make_film(folder / f"{number}.dcm", pixels=np.asarray(picture), PatientID=f"LOAD-{seed}-{number}",
                  AccessionNumber=f"L{seed}-{number}", view_position=film.view_position)  # fmt: skip
    return folder


def write_reviews(films: pd.DataFrame, path: Path) -> Path:
    """Confirmed findings, as the RIS exports them: a row per study, a column per finding."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["accession_number", "reader", *FINDINGS])
        for number, labels in enumerate(films[list(FINDINGS)].to_numpy()):
            table.writerow([f"S{number}", "dr.known", *("present" if label else "absent" for label in labels)])
    return path


# ------------------------------------------------------------------------------------------------------- the first run


@dataclass
class Site:
    """The hospital's folder, its context and its films."""

    folder: Path
    context: Context
    films: pd.DataFrame
    size: int  # of the network's inputs, in pixels
    workers: list[int] = field(default_factory=list)  # process ids of those that score

    @property
    def log(self) -> Path:
        return self.folder / "crew.log"


def prepare_base(films: pd.DataFrame, folder: Path, *, size: int) -> Path:
    """The base as a user prepares it; `size` in pixels."""
    table = folder / "base.csv"
    films.assign(path=films["image"], view=films["view_position"], age=films["age_years"]).drop(
        columns=["image", "view_position", "age_years"]
    ).to_csv(table, index=False)
    train("prepare", folder / "base", "--table", table, "--images", FILMS, "--size", size)
    return folder / "base"


def train(*arguments: object, threads: int = 2) -> None:
    """`nightread train ...`"""
    words = [sys.executable, "-m", "worker.cli", "train", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"train {arguments[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def from_imagenet(films: Path, folder: Path, *, epochs: int, threads: int = 2) -> Path:
    """A checkpoint that learned from prepared films alone."""
    words = ("--split", "stable", "--start", WEIGHTS, "--epochs", epochs, "--batch-size", 32, "--loss", "bce")
    train("fit", films, folder, *words, threads=threads)
    return folder / "checkpoint.safetensors"


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


def latest_run(context: Context) -> TrainingRun | None:
    with read_scope(context.engine) as session:
        return next(iter(training_runs.everything(session)), None)


def in_stage(context: Context, stage: str) -> bool:
    run = latest_run(context)
    return run is not None and run.state == "running" and run.stage == stage


def over(context: Context) -> bool:
    run = latest_run(context)
    return run is not None and run.state != "running"


def whole_story(folder: Path, *, size: int, champion_epochs: int, epochs: int, worse_epochs: int) -> int:
    """The drill from its beginning to its end; its exit code."""
    films, done = labelled(), set[str]()
    base_films, site_films = films[of_the_base(films)], films[~of_the_base(films)].reset_index(drop=True)
    say(f"{len(base_films)} films for the base, {len(site_films)} for the hospital")
    base = prepare_base(base_films, folder, size=size)
    champion = from_imagenet(base, folder / "first", epochs=champion_epochs)
    say("the first champion is trained")
    write_site(site_films, folder / "site")
    with ExitStack() as stack:
        settings = Settings(
            database_url=stack.enter_context(PostgresServer()).url,
            broker_url=stack.enter_context(RedisServer()).url,
            state_folder=folder / "state", device="cpu", sweep_seconds=5, log={"format": "json"},
            retrain={"base": base, "base_ratio": BASE_RATIO, "epochs": epochs, "learning_rate": LEARNING_RATE,
                     "threads": 1, "min_positives": 5, "schedule": "* * * * *"},
            gate={"min_positives": 5},  # these films have no more of the rare findings
            drift={"schedule": ""},
        )  # fmt: skip
        site = Site(folder, Context(settings), site_films, size)
        nightread(with_settings(site.context, checkpoint=champion), "db", "upgrade")  # it becomes the champion
        for _ in range(2):
            site.workers.append(stack.enter_context(running(site.context, "worker", site.log)).pid)
        stack.enter_context(running(site.context, "worker", site.log, "--queue", "training"))
        enqueue(site.context, folder / "site")
        wait_until(lambda: totals(site.context).waiting == 0, seconds=900, log=site.log)
        say("the hospital's films are scored", nightread(site.context, "status"))
        idle = pace(site, write_load(site_films, folder / "load-1", seed=1))
        third_load = write_load(site_films, folder / "load-3", seed=3)
        with third_job():
            third = pace(site, third_load)
        reviews = write_reviews(site_films, folder / "reviews.csv")
        say("reviews imported", nightread(site.context, "review", "--csv", str(reviews)))
        stack.enter_context(running(site.context, "beat", site.log))
        load = write_load(site_films, folder / "load-2", seed=2)
        wait_until(lambda: in_stage(site.context, "train") or over(site.context), seconds=600, log=site.log)
        busy = pace(site, load)
        if in_stage(site.context, "train"):
            done.add("scoring beside the training")
        worse = train_worse_ones(site, epochs=worse_epochs)  # on the core that the retraining leaves
        wait_until(lambda: over(site.context), seconds=3600, log=site.log)
        say("scoring", f"idle: {idle}\nbeside a third job: {third}\nbeside the training: {busy}")
        challenger, result = show_run(site.context)
        if challenger is not None and result != "failed":
            done.add("a verdict that lets the challenger go live")
            if promote(site, challenger, result):
                done.add("promotion")
            if set(verdicts(site, worse)) == {"failed"}:
                done.add("two worse challengers refused")
            if roll_back_in_the_middle(site, challenger):
                done.add("rollback in the middle of a night")
        say("the totals", nightread(site.context, "status"))
        say("checkpoints", nightread(site.context, "models", "list"))
    code, words = ending(done)
    say(words)
    return code


def show_run(context: Context) -> tuple[str | None, str]:
    """Print how the first run ended; the challenger's digest, where there is one, and the verdict's result."""
    with read_scope(context.engine) as session:
        run = training_runs.everything(session)[-1]
        verdict = None if run.checkpoint_id is None else gate.latest(session, run.checkpoint_id)
        checks = [] if verdict is None else gate.checks_of(session, verdict)
        digest = session.scalar(text("SELECT digest FROM checkpoint WHERE id = :id"), {"id": run.checkpoint_id})
    say(
        f"retraining {run.id} ({run.cause}) {run.state}: {run.reason}",
        f"{run.counts} in {run.metrics.get('seconds')} s",
    )
    console.print(verdict_table(checks))
    return digest, "failed" if verdict is None else verdict.result


def promote(site: Site, challenger: str, result: str) -> bool:
    """Live within a minute; what is undecided by the word of the drill. Whether the challenger scored the next load."""
    accepted = ("--accept-undecided", "the drill has no more films") if result == "undecided" else ()
    promotion = ("models", "promote", challenger[:12], "--reason", f"{result} by the gate", *accepted)
    say("promote", nightread(site.context, *promotion))
    began = time.monotonic()
    pace(site, write_load(site.films, site.folder / "load-4", seed=4))
    with read_scope(site.context.engine) as session:
        by = {digest: studies for digest, studies, _ in session.execute(text(BY_CHECKPOINT), {"load": "L4-%"})}
    say("the champion now", f"{by} within {time.monotonic() - began:.0f} s (asked for {challenger[:12]})")
    return challenger[:12] in by


def roll_back_in_the_middle(site: Site, challenger: str) -> bool:
    """Back within a minute while a night is being scored. Whether both checkpoints scored a part of it, and no study
    was scored by two."""
    load = write_load(site.films, site.folder / "load-5", seed=5, studies=NIGHT)
    begun = totals(site.context).scored + NIGHT // 20
    sender = start(site.context, "enqueue", site.log, str(load))
    wait_until(lambda: totals(site.context).scored >= begun, seconds=300, log=site.log)
    nightread(site.context, "models", "rollback", "--reason", "in the middle of a night")
    asked = time.monotonic()
    sender.wait(timeout=300)
    wait_until(lambda: totals(site.context).waiting == 0, seconds=300, log=site.log)
    with read_scope(site.context.engine) as session:
        by = session.execute(text(BY_CHECKPOINT), {"load": "L5-%"}).all()
        back_at = session.scalar(text("SELECT max(activated_at) FROM policy"))
        mixed = session.scalar(text(MIXED), {"load": "L5-%"})
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


def train_worse_ones(site: Site, *, epochs: int) -> dict[str, Path]:
    """A challenger with one finding's labels shuffled, and one trained on AP films only."""
    films = pd.concat([site.films, labelled()[of_the_base(labelled())]])
    rng = np.random.default_rng(0)
    shuffled = films.assign(**{SHUFFLED: rng.permutation(films[SHUFFLED].to_numpy())})
    checkpoints = {}
    for name, table in (("shuffled", shuffled), ("ap-only", films[films["view_position"] == "AP"])):
        folder = site.folder / name
        folder.mkdir()
        prepared = prepare_base(table, folder, size=site.size)
        checkpoints[name] = from_imagenet(prepared, folder / "run", epochs=epochs, threads=1)
        say(f"trained: {name}")
    return checkpoints


def verdicts(site: Site, checkpoints: Mapping[str, Path]) -> list[str]:
    """The gate's result for each of these challengers."""
    results = []
    for name, path in checkpoints.items():
        digest = nightread(site.context, "models", "add", str(path)).split()[0]
        say(f"judged: {name}", nightread(site.context, "models", "judge", digest, expect=1))
        results.append(json.loads(nightread(site.context, "models", "verdict", digest, "--json"))["result"])
    return results


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
            run = latest_run(context)
            if run is not None and run.state != "running":
                say(f"kill {number + 1} came too late", "it had ended by itself")
                break
            say(f"kill {number + 1}", f"in stage {run.stage if run else 'none yet'}")
            with session_scope(context.engine) as session:  # instead of waiting two minutes for the lease
                session.execute(text("UPDATE training_run SET lease_expires_at = '2000-01-01 00:00:00' "
                                     "WHERE state = 'running'"))  # fmt: skip
        else:
            nightread(context, "retrain", expect=1)  # noise for films: the gate does not let it pass
        run = present(latest_run(context))
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
    parser.add_argument(
        "--size", type=int, default=224, help="of the networks' inputs, in pixels; less takes less time"
    )
    parser.add_argument("--champion-epochs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--worse-epochs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0, help="instead: kill one small retraining so often")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logs.configure(level="warning", style="console")
    with tempfile.TemporaryDirectory(prefix="nightread-retraining-") as made:
        if arguments.kills:
            return killed(Path(made), kills=arguments.kills, seed=arguments.seed)
        return whole_story(
            Path(made), size=arguments.size, champion_epochs=arguments.champion_epochs, epochs=arguments.epochs,
            worse_epochs=arguments.worse_epochs,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
