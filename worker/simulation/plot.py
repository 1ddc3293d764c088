"""The simulator's answer as a figure."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from db.base import DocumentedError
from worker.simulation.simulate import Row


class PlotUnavailable(DocumentedError, RuntimeError):
    """The figure needs matplotlib: pip install 'nightread[train]'."""


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write mean, 95th percentile and maximum per group and discipline to `path` (.png, .svg or .pdf by its name).

    Raises PlotUnavailable where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotUnavailable from error
    shown = groups_of(rows, None)
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


def groups_of(rows: Sequence[Row], groups: Iterable[str] | None) -> list[str]:
    """The groups that have studies, in their order; `groups` None: all."""
    present = dict.fromkeys(row.group for row in rows)
    return [group for group in (present if groups is None else groups) if group in present]
