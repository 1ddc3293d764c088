"""The simulator's answer for people: a table on the terminal, a figure on paper."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from db.base import DocumentedError
from worker.simulation.simulate import Estimate, Row


class PlotUnavailable(DocumentedError, RuntimeError):
    """The figure needs matplotlib: pip install 'nightread[train]'."""


def table(rows: Sequence[Row], *, groups: Iterable[str] | None = None) -> Table:
    """One block per group of studies, one line per discipline; `groups` None shows all."""
    answer = Table("group", "discipline", title="Minutes to the report, with 95 % intervals over seeds")
    for heading in ("studies", "mean", "95th percentile", "maximum", "saved per study"):
        answer.add_column(heading, justify="right")
    for group in _groups(rows, groups):
        for index, row in enumerate(row for row in rows if row.group == group):
            figures = [_text(estimate) for estimate in (row.mean, row.p95, row.maximum, row.saved)]
            answer.add_row("" if index else group, row.discipline, f"{row.studies:,}", *figures)
        answer.add_section()
    return answer


def plot(rows: Sequence[Row], path: Path, *, groups: Iterable[str] | None = None) -> None:
    """Write mean, 95th percentile and maximum per group and discipline to `path` (.png, .svg or .pdf by its name).

    Raises PlotUnavailable where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotUnavailable from error
    shown = _groups(rows, groups)
    disciplines = list(dict.fromkeys(row.discipline for row in rows))
    figure = Figure(figsize=(11, 1.5 + 0.13 * len(shown) * len(disciplines)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3, sharey=True), ("mean", "p95", "maximum"), strict=True):
        for number, discipline in enumerate(disciplines):
            estimates = {row.group: getattr(row, name) for row in rows if row.discipline == discipline}
            places = [index + 0.8 * (number / len(disciplines) - 0.5) for index in range(len(shown))]
            values = [estimates[group].value for group in shown]
            widths = [estimates[group].half_width or 0.0 for group in shown]
            axes.errorbar(values, places, xerr=widths, fmt="o", markersize=4, label=discipline)
        axes.set_title({"mean": "mean", "p95": "95th percentile", "maximum": "maximum"}[name])
        axes.set_xlabel("minutes to the report")
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise PlotUnavailable(f"{path.name} cannot be drawn: name a .png, .svg or .pdf file") from error


def _groups(rows: Sequence[Row], groups: Iterable[str] | None) -> list[str]:
    present = dict.fromkeys(row.group for row in rows)
    return [group for group in (present if groups is None else groups) if group in present]


def _text(estimate: Estimate) -> str:
    width = "" if estimate.half_width is None else f" ± {estimate.half_width:.1f}"
    return f"{estimate.value:.1f}{width}"
