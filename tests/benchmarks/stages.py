"""Draw where a night's time goes: what each process does, from the first claim to the last record.

python -m tests.benchmarks.stages [--out docs/pipeline.png]
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.benchmarks.films import write_films
from worker import logs
from worker.context import Context
from worker.intake.receive import receive
from worker.monitoring.prometheus import WorkMetrics
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, Failure, NetworkInput, decode_film
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer
from worker.settings import Settings

SPANS_FILE = "spans.txt"
COLOURS = {"decode": "#4c78a8", "predict": "#e45756", "record": "#54a24b", "claim": "#b279a2", "wait": "#d8d8d8"}
LABELS = {"wait": "wait for films"}
STAGES = {"decode": "wait"}  # the main process waits while its decoders decode


@dataclass
class Trace(WorkMetrics):
    """The stages of the main process as (stage, begun, ended), in seconds of the machine's monotonic clock."""

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.spans.append((STAGES.get(name, name), begun, time.monotonic()))


def traced_decode(
    path: str, sop_instance_uid: str, options: DecodeOptions, pixel_digest: str | None, spans: str
) -> NetworkInput | Failure:
    """In a decoder process: decode a film, and append when to a file, one short line at a time."""
    begun = time.monotonic()
    outcome = decode_film(path, sop_instance_uid, options, pixel_digest)
    with Path(spans).open("a") as file:
        file.write(f"{os.getpid()} {begun} {time.monotonic()}\n")
    return outcome


class TracedPool(DecoderPool):
    """Decoders that say when they are at work."""

    def __init__(self, options: DecodeOptions, *, decoders: int, spans: Path) -> None:
        super().__init__(options, decoders=decoders)
        self._spans = str(spans)

    def _schedule(self, function: Callable[..., Any], *, args: tuple[Any, ...], timeout: float) -> "Future[Any]":
        if function is decode_film:
            function, args = traced_decode, (*args, self._spans)
        return super()._schedule(function, args=args, timeout=timeout)


def traced_night(folder: Path) -> dict[str, list[tuple[str, float, float]]]:
    """Score a hundred films of the mix; what each process did, and when: row -> spans."""
    films, trace = write_films(folder / "films"), Trace()
    context = Context(
        Settings(database_url=f"sqlite:///{folder / 'night.db'}", checkpoint=None, log={"level": "error"})
    )
    context.seed()
    receive(context, [films.of("mix")])
    spans = folder / SPANS_FILE
    with open_scorer(context, metrics=trace) as scorer:
        options, decoders = scorer.decoders.options, context.settings.decoders
        with TracedPool(options, decoders=decoders, spans=spans) as scorer.decoders:
            score_waiting(scorer, kind="score")
    rows = defaultdict(list)
    for line in spans.read_text().splitlines():
        pid, begun, ended = line.split()
        rows[pid].append(("decode", float(begun), float(ended)))
    decoding = {f"decoder {number}": rows[pid] for number, pid in enumerate(sorted(rows), start=1)}
    return {"worker": trace.spans} | decoding


def draw(rows: dict[str, list[tuple[str, float, float]]], path: Path) -> None:
    first = min(begun for name, begun, _ in rows["decoder 1"] if name == "decode")
    figure = Figure(figsize=(11, 0.7 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for height, spans in enumerate(reversed(rows.values())):
        for stage, colour in COLOURS.items():
            bars = [(begun - first, ended - begun) for name, begun, ended in spans if name == stage]
            axes.broken_barh(bars, (height - 0.35, 0.7), facecolors=colour, edgecolor="white", linewidth=0.3)
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds since the first film began to be decoded (one hundred films of the archive mix)")
    for stage, colour in COLOURS.items():
        axes.broken_barh([], (0, 0), facecolors=colour, label=LABELS.get(stage, stage))
    figure.legend(loc="outside upper center", ncols=len(COLOURS), frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("docs/pipeline.png"), help="the picture")
    logs.configure(level="warning", style="console")
    with tempfile.TemporaryDirectory(prefix="nightread-stages-") as folder:
        draw(traced_night(Path(folder)), arguments.parse_args().out)


if __name__ == "__main__":
    main()
