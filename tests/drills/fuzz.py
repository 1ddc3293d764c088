"""Damaged input of every kind, by seed: make fuzz SECONDS=60 SEED=7.

Small good examples are made in code and damaged a few bytes at a time: headers, whole intakes, the codestreams of every
codec, broker messages, checkpoints, files of view words, and tables from a RIS. What may happen is one of our refusals.
Anything else is a find: another exception, a decoder that dies, hangs or takes too much memory, totals that do not
balance. Its input is made as small as its damage allows and written to a file, and the command that repeats it is
printed.

Each case follows from seed, target and number alone. What needs torch is imported by its function: decoder processes
import this module too, and live within a memory limit. Ends with exit code 0 when nothing was found, else with 1.
"""

import argparse
import json
import logging
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType

import structlog
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from db.session import read_scope
from db.totals import kept_totals, read_totals
from tests.support.dicom_files import LOSSLESS_SYNTAXES, LOSSY_SYNTAXES, make_film, save, texture
from tests.support.hostile_headers import nested_views, spliced
from training.checkpoint import CheckpointError
from training.checkpoint import read_header as read_checkpoint_header
from training.imaging.dicom import PixelLimits, UnusablePixels, read_header
from training.imaging.preprocessing import Preprocessing
from training.imaging.quiet import quieten_pydicom
from worker.cli import ris_csv
from worker.context import Context
from worker.errors import UnusableStudy
from worker.intake.header import INTAKE_TAGS, arrival_of
from worker.intake.receive import receive
from worker.intake.view_rules import ViewRules
from worker.monitoring.prometheus import WorkMetrics
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, Failure
from worker.setting_groups import words_in
from worker.settings import Settings

CASE_SECONDS = 10  # a case that takes longer hangs
INTAKE_FILES = 12
UNFORESEEN = {"decoder_raised", "decoder_crashed", "decoder_timeout"}
TOKENS = (
    b"\0", b"\xff", b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff\xfe", b"\xed\xa0\x80",
    b'"', b"'", b"\n", b"\r", b"\\", b"[", b"]", b"{", b"}", b",", b";", b"\t", b"[" * 300, b"null", b"true", b"-1",
    b"0", b"1e999", b"NaN", b"9" * 40, b"2026-02-30", b"\xef\xbb\xbf", b"\xfe\xff\x00\xe0", b"\xff\xd9", b"\xff\x93",
)  # fmt: skip


class Found(Exception):
    """A case whose outcome is none that may be; the text says which."""


class Hangs(BaseException):
    """A case that took longer than CASE_SECONDS. No `except Exception` on its way holds it up."""


@dataclass(frozen=True)
class Edit:
    """Bytes put in the place of others."""

    at: int
    removed: int
    inserted: bytes

    def apply(self, data: bytes) -> bytes:
        return data[: self.at] + self.inserted + data[self.at + self.removed :]


@dataclass(frozen=True)
class Target:
    """A kind of input: good examples of it, and a run that returns, or raises what is a find."""

    name: str
    examples: Sequence[bytes]
    run: Callable[[bytes], None]


def damaged(data: bytes, donor: bytes, rng: random.Random) -> Iterator[Edit]:
    """One to six edits, each of what the ones before it have made."""
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(len(data) + 1), rng.choice((0, 1, 1, 2, 4, 8, 64, 1000))
        from_donor = rng.randrange(len(donor) + 1)
        edit = Edit(
            at,
            rng.choice((0, length)),
            rng.choice(
                (
                    rng.choice(TOKENS),
                    rng.randbytes(length),
                    struct.pack("<I", rng.getrandbits(32)),
                    bytes((data[at] ^ 1 << rng.randrange(8),)) if at < len(data) else b"",
                    data[at : at + length] * 2,
                    donor[from_donor : from_donor + length],
                )
            ),
        )
        if rng.random() < 0.03:
            edit = Edit(at, len(data), b"")  # cut off
        data = edit.apply(data)
        yield edit


def case(target: Target, *, seed: int, number: int) -> tuple[bytes, list[Edit]]:
    """The good example of one case, and its damage."""
    rng = random.Random(f"{seed}/{target.name}/{number}")
    example, donor = rng.choice(target.examples), rng.choice(target.examples)
    return example, list(damaged(example, donor, rng))


def outcome(target: Target, example: bytes, edits: Sequence[Edit]) -> str | None:
    """What is wrong with a case; None where nothing is."""
    data = example
    for edit in edits:
        data = edit.apply(data)
    try:
        with _limited():
            target.run(data)
    except Hangs:
        return f"it took longer than {CASE_SECONDS} s"
    except Found as found:
        return str(found)
    except Exception as error:  # noqa: BLE001 - whatever is no refusal is a find
        return f"{type(error).__name__}: {error}"[:300]
    return None


@contextmanager
def _limited() -> Iterator[None]:
    def hang(_signal: int, _frame: FrameType | None) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(CASE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def smallest(target: Target, example: bytes, edits: list[Edit]) -> list[Edit]:
    """Those of the edits without which nothing is found, as far as leaving out one after the other tells."""
    for edit in list(edits):
        fewer = [each for each in edits if each is not edit]
        if outcome(target, example, fewer) is not None:
            edits = fewer
    return edits


# ------------------------------------------------------------------------------------------------------------- targets


def headers(_folder: Path) -> Target:
    """A film's header, below the barrier that keeps one file's error from its neighbours."""
    rules = ViewRules.of(Settings())

    def run(data: bytes) -> None:
        path = scratch / "film.dcm"
        path.write_bytes(data)
        try:
            header = read_header(path, limits=PixelLimits(), specific_tags=list(INTAKE_TAGS))
            arrival_of(header, path=path, rules=rules, secret="00" * 32)
        except (UnusablePixels, UnusableStudy):
            return

    scratch = _folder / "headers"
    scratch.mkdir()
    return Target("headers", _films(), run)


def _films() -> list[bytes]:
    """Films' files in every encoding of a header, some with sequences."""
    folder = Path(tempfile.mkdtemp())
    made = []
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    for syntax in syntaxes:
        film = make_film(pixels=texture(24, 20), bits=12, transfer_syntax=syntax, PatientAge="041Y", ViewPosition="")
        save(film, folder / "film.dcm")
        made.append((folder / "film.dcm").read_bytes())
    made.append(spliced(make_film(pixels=texture(24, 20), bits=12), nested_views(5)))
    return made


def intakes(folder: Path) -> Target:
    """Folders of films through the whole intake: what came in must be what was counted."""
    from tests.support.untrained import save_untrained

    settings = Settings(database_url=f"sqlite:///{folder / 'intake.db'}", state_folder=folder, decoders=1)
    context = Context(settings.changed(checkpoint=save_untrained(folder / "checkpoint.safetensors")))
    context.seed()
    films, numbers = _films(), count()

    def run(data: bytes) -> None:
        inbox = folder / f"intake-{next(numbers)}"
        inbox.mkdir()
        rng = random.Random(data)
        for number in range(INTAKE_FILES):
            film = rng.choice(films)
            for edit in damaged(film, data, rng) if number else ():
                film = edit.apply(film)
            (inbox / f"{number}.dcm").write_bytes(film)
        received = receive(context, [inbox])
        told = received.new_instances + received.known + received.changed + received.rejected
        with read_scope(context.engine) as session:
            kept, counted = kept_totals(session), read_totals(session)
        if received.files != INTAKE_FILES or told != INTAKE_FILES:
            raise Found(f"of {INTAKE_FILES} files {received.files} were seen and {told} accounted for")
        if not counted.balance or kept != counted:
            raise Found("the totals do not balance")

    return Target("intakes", films, run)


def codestreams(folder: Path, decoders: DecoderPool) -> Target:
    """Compressed pixels of every codec, in a decoder process with its limits."""
    syntaxes = [each for each in (*LOSSLESS_SYNTAXES, *LOSSY_SYNTAXES) if each.is_encapsulated]
    films = []
    for syntax in syntaxes:
        bits = 8 if syntax.keyword == "JPEGBaseline8Bit" else 12
        films.append(make_film(pixels=texture(96, 80, bits=bits), bits=bits, transfer_syntax=syntax))
    # The first byte of an example says which film it is of.
    examples = [bytes((i,)) + get_frame(film.PixelData, 0, number_of_frames=1) for i, film in enumerate(films)]

    def run(data: bytes) -> None:
        film = films[(data[0] if data else 0) % len(films)]
        film.PixelData = encapsulate([data[1:] or b"\0\0"])
        path = folder / "codestream.dcm"
        save(film, path)
        decoded = decoders.submit(str(path), film.SOPInstanceUID).awaited()
        if isinstance(decoded, Failure) and (decoded.reason in UNFORESEEN or "needs more" in decoded.sentence):
            raise Found(f"{film.file_meta.TransferSyntaxUID.name}: {decoded.reason}: {decoded.sentence}")

    return Target("codestreams", examples, run)


def messages(context: Context) -> Target:
    """Bodies of broker messages that are JSON; Celery itself refuses the others."""
    from celery import Celery

    from worker.queue.app import SCORE
    from worker.queue.tasks import Service, register

    celery = Celery(set_as_current=False)
    register(celery, Service(context, metrics=WorkMetrics()))
    task = celery.tasks[SCORE]
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    examples = [json.dumps(body).encode() for body in ([[7], {}, options], [[], {"study_id": 70_000}, options])]

    def run(data: bytes) -> None:
        try:
            args, keywords, _ = json.loads(data)
            task.__header__(*args, **keywords)  # as Celery checks them
        except (ValueError, TypeError, RecursionError):
            return  # no message of ours, or not this task's arguments
        task.run(*args, **keywords)

    return Target("messages", examples, run)


def checkpoints(folder: Path) -> Target:
    """The headers of checkpoint files."""
    from tests.support.untrained import save_untrained

    whole = save_untrained(folder / "fuzzed.safetensors").read_bytes()
    header = whole[: 8 + int.from_bytes(whole[:8], "little")]
    path = folder / "checkpoint.fuzz"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read_checkpoint_header(path)
        except CheckpointError:
            return

    return Target("checkpoints", [header], run)


def words(folder: Path) -> Target:
    """Files of a site's own words for views."""
    examples = [b'AP = ["a.p.", "sdraiato"]\nPA = ["p.a."]\nlateral = ["ll"]\n', b"chest = ['torace']\nother = []\n"]
    path = folder / "words.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            words_in(str(path))
        except ValueError as refused:
            if not str(refused).startswith(str(path)):
                raise Found(f"the refusal does not name the file: {refused}") from refused

    return Target("words", examples, run)


def tables(folder: Path) -> Target:
    """Tables from a RIS: every line is answered, or the whole file is refused."""
    examples = [
        b"accession_number,read_at,read_by\nA1,2026-11-20T22:30:00+01:00,kim\nA2,,\n",
        b"study_instance_uid;finding;verdict;reader\n1.2.3;Mass;present;kim\n1.2.4;Edema;0;lee\n",
        b"accession_number\tmass\tpleural_thickening\treader\nA1\t1\t\tkim\n",
    ]
    path, defaults = folder / "table.csv", ris_csv.Defaults("kim", None)

    def run(data: bytes) -> None:
        path.write_bytes(data)
        for kind in (ris_csv.readings, ris_csv.opinions):
            try:
                list(kind(path, defaults))
            except ris_csv.WrongFile:
                continue

    return Target("tables", examples, run)


# --------------------------------------------------------------------------------------------------------------- drill


@contextmanager
def every_target(folder: Path) -> Iterator[list[Target]]:
    """All targets; their files lie in the folder."""
    options = DecodeOptions(Preprocessing(size=32), PixelLimits(), timeout_seconds=CASE_SECONDS, memory_mb=2048)
    with ExitStack() as stack:
        decoders = stack.enter_context(DecoderPool(options, decoders=1))
        decoders.begin_proof()()  # its process has started before it has a case
        intake = intakes(folder)
        context = Context(Settings(database_url=f"sqlite:///{folder / 'intake.db'}", state_folder=folder))
        yield [
            headers(folder),
            codestreams(folder, decoders),
            messages(context),
            checkpoints(folder),
            words(folder),
            tables(folder),
            intake,
        ]


def fuzz(targets: Sequence[Target], *, seconds: float, seed: int, first: int = 0) -> tuple[dict[str, int], list[str]]:
    """Try cases until the time is over, as much of it for each target; how many of each, and what was found."""
    tried, spent = {target.name: 0 for target in targets}, {target.name: 0.0 for target in targets}
    found, end = [], time.monotonic() + seconds
    while not any(tried.values()) or time.monotonic() < end:
        target = min(targets, key=lambda each: spent[each.name])
        number, began = first + tried[target.name], time.monotonic()
        example, edits = case(target, seed=seed, number=number)
        if (wrong := outcome(target, example, edits)) is not None:
            found.append(_told(target, example, smallest(target, example, edits), wrong, seed=seed, number=number))
        tried[target.name] += 1
        spent[target.name] += time.monotonic() - began
    return tried, found


def _told(target: Target, example: bytes, edits: list[Edit], wrong: str, *, seed: int, number: int) -> str:
    """A find in a few lines, its input written to a file."""
    folder = Path("build/fuzz")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target.name}-{seed}-{number}"
    data = example
    for edit in edits:
        data = edit.apply(data)
    path.write_bytes(data)
    again = f"python -m tests.drills.fuzz --seed {seed} --target {target.name} --case {number}"
    return f"{target.name}, case {number}: {wrong}\n  damage: {edits}\n  input: {path}\n  again: {again}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--case", type=int, help="only this case of it")
    asked = parser.parse_args(arguments)
    quieten_pydicom()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder, every_target(Path(folder)) as targets:
        chosen = [target for target in targets if asked.target in (None, target.name)]
        seconds = 0.0 if asked.case is not None else asked.seconds
        tried, found = fuzz(chosen, seconds=seconds, seed=asked.seed, first=asked.case or 0)
    print(*found, sep="\n")
    print(f"seed {asked.seed}: {', '.join(f'{name} {cases}' for name, cases in tried.items())}; {len(found)} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
