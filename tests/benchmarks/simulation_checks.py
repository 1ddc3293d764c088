"""Print the figures of docs/background/simulation.md: the simulator beside queueing theory and published examples.

python -m tests.benchmarks.simulation_checks  (3 minutes)
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console

from worker.simulation.reading_room import Department, Discipline
from worker.simulation.simulate import BinormalCases, Extent, OperatingPoint, Row, simulate
from worker.terminal.tables import simulation_table

FIFO = Discipline("FIFO")
CONSOLE = Console(width=130)


def steady(*, load: float, minutes: float, **fields: Any) -> Department:
    return Department((60 * load / minutes,) * 24, (minutes,) * 24, **fields)


def flagged_tenth() -> BinormalCases:
    return BinormalCases({"Pneumothorax": OperatingPoint(0.1, tpf=0.9, fpf=0.1)})


def three_findings(*aucs: float) -> BinormalCases:
    prevalence = {"Pneumothorax": 0.047, "Effusion": 0.28, "Atelectasis": 0.20}
    pairs = zip(prevalence.items(), aucs, strict=True)
    return BinormalCases({finding: OperatingPoint(share, auc) for (finding, share), auc in pairs})


def waits(title: str, rows: Iterable[Row], expected: Sequence[tuple[str, str, float]]) -> None:
    CONSOLE.print(title, style="bold")
    found = {(row.discipline, row.group): row for row in rows}
    for discipline, group, truth in expected:
        wait, saved = found[discipline, group].wait, found[discipline, group].saved
        shown = saved if title.startswith("QuCAD") else wait
        CONSOLE.print(
            f"  {discipline:10} {group:14} expected {truth:6.2f}  found {shown.value:6.2f} ± {shown.half_width:.2f}"
        )


def closed_form() -> None:
    disciplines = [FIFO, Discipline("A first", ahead="A")]
    rows = simulate(
        steady(load=0.8, minutes=10), cases=flagged_tenth(), disciplines=disciplines, extent=Extent(days=500, seeds=12)
    )
    expected = [
        ("FIFO", "all", 40.0),
        ("A first", "category A", 8 / 0.856),
        ("A first", "category D", 8 / 0.856 / 0.2),
        ("A first", "Pneumothorax", 13.08),
        ("A first", "normal", 42.99),
    ]
    waits("M/M/1, non-preemptive, load .8, 18 % flagged: waits", rows, expected)


def qucad() -> None:
    department = steady(load=1.6 * 10 / 9.5, minutes=10, readers=2, stat_share=0.1, stat_reading_factor=0.5)
    disciplines = [Discipline("without", preemptive=True), Discipline("with", ahead="A", preemptive=True)]
    rows = simulate(department, cases=flagged_tenth(), disciplines=disciplines, extent=Extent(days=500, seeds=12))
    expected = [("with", "Pneumothorax", 15.72), ("with", "normal", -1.7)]
    waits("QuCAD manual: minutes saved per study", rows, expected)


def hospital() -> None:
    orders = [
        FIFO,
        Discipline("urgency", by_urgency=True),
        Discipline("urgency, 720", by_urgency=True, max_wait_minutes=720),
        Discipline("urgency, 480", by_urgency=True, max_wait_minutes=480),
        Discipline("A, urgency, 720", ahead="A", by_urgency=True, max_wait_minutes=720),
    ]
    categories = [FIFO, Discipline("category", ahead="ABC"), Discipline("category, 720", "ABC", max_wait_minutes=720)]
    for aucs, disciplines in (((0.87, 0.83, 0.80), orders), ((0.97, 0.93, 0.90), orders[:3]), ((1.0,) * 3, categories)):
        CONSOLE.print(f"Default department, areas {aucs}", style="bold")
        rows = simulate(cases=three_findings(*aucs), disciplines=disciplines, extent=Extent(seeds=12))
        CONSOLE.print(simulation_table(rows, groups=["Pneumothorax", "Effusion", "normal"]))


if __name__ == "__main__":
    closed_form()
    qucad()
    hospital()
