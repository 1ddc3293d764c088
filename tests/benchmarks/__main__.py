"""Nightread beside the plain ways of scoring films, and beside what the machine could do at most: `make bench`.

python -m tests.benchmarks [--turns 3] [--seconds 10] [--only NAME ...] [--out docs/benchmarks]
"""

import argparse
import json
import statistics
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from tests.benchmarks import films
from tests.benchmarks.machine import machine
from tests.benchmarks.throughput import GOALS, LIMIT, Goal, Results, run
from worker import logs


def measurements_table(results: Results) -> Table:
    table = Table(title="Medians over the turns")
    for column, justify in COLUMNS:
        table.add_column(column, justify=justify)
    for contender, by_films in results.samples.items():
        for name, samples in by_films.items():
            rate, cpu, memory, others = (
                statistics.median(getattr(each, field) for each in samples)
                for field in ("films_per_second", "cpu_ms_per_film", "peak_mb", "others")
            )
            start = results.start_up_seconds.get(contender)
            started = f"{start:.1f}" if start is not None and name == "mix" else ""
            table.add_row(contender, name, f"{rate:.2f}", f"{cpu:.0f}", f"{memory:,.0f}", started, f"{others:.0%}")
    if limits := results.rates(LIMIT, "mix"):
        table.add_row(LIMIT, "mix", f"{statistics.median(limits):.2f}", "", "", "", "")
    return table


COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    *(("", "left"), ("films", "left"), ("films/s", "right"), ("CPU ms/film", "right")),
    *(("peak MB", "right"), ("start-up s", "right"), ("of the machine, others had", "right")),
)


def known_goals(results: Results) -> list[Goal]:
    return [goal for goal in GOALS if goal.is_known(results)]


def goals_table(results: Results) -> Table:
    table = Table(title="Ratios")
    for column in ("", "films", "asked", "found (films/s)", "found (CPU time)"):
        table.add_column(column, justify="left" if column in ("", "films") else "right")
    for goal in known_goals(results):
        found, by_cpu = goal.found(results), goal.found(results, by_cpu=True)
        mark = "[green]" if found >= goal.at_least else "[red]"
        table.add_row(
            f"{goal.contender} / {goal.other}",
            goal.films,
            f"≥ {goal.at_least:g}",
            f"{mark}{found:.2f}",
            f"{by_cpu:.2f}",
        )
    return table


def record(results: Results, *, turns: int, seconds: float) -> dict[str, Any]:
    """All of it as JSON, sample by sample."""
    samples = {
        contender: {name: [sample.record() for sample in samples] for name, samples in by_films.items()}
        for contender, by_films in results.samples.items()
    }
    ratios = [
        asdict(goal) | {"found": round(goal.found(results), 3), "by_cpu": round(goal.found(results, by_cpu=True), 3)}
        for goal in known_goals(results)
    ]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "films": {"source": films.source(), "sides_pixels": films.SIDES_PIXELS, "mix": [uid.name for uid in films.MIX]},
        "turns": turns,
        "seconds": seconds,
        "ratios": ratios,
        "start_up_seconds": {name: round(value, 1) for name, value in results.start_up_seconds.items()},
        "samples": samples,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=3, help="how often each contender is measured")
    arguments.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    arguments.add_argument("--only", nargs="+", default=[], metavar="NAME", help="the contenders to measure, by name")
    arguments.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder of the JSON file")
    chosen = arguments.parse_args()
    logs.configure(level="warning", style="console")
    console = Console(width=130)
    results = run(turns=chosen.turns, seconds=chosen.seconds, only=chosen.only, console=console)
    console.print(measurements_table(results), goals_table(results))
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / f"{datetime.now(UTC):%Y-%m-%d-%H%M}.json"
    path.write_text(json.dumps(record(results, turns=chosen.turns, seconds=chosen.seconds), indent=1) + "\n")
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main()
