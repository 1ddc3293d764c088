"""`nightread worklist`, `report`, `explain`: what is asked in the morning."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.terminal.console import (
    AsJson,
    Wide,
    err,
    open_context,
    open_engine,
    print_json,
    require_place_for,
    say,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.terminal.listing import Cell

app = typer.Typer()


@app.command()
def worklist(
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Show at most N studies.")] = None,
    wide: Wide = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for a spreadsheet.")] = False,
) -> None:
    """List the unread studies in reading order."""
    from db.finding_rules import rules_in_force, shares_by_finding
    from db.session import reading
    from db.worklist import columns, stream
    from worker.terminal.listing import show_stream
    from worker.terminal.tables import worklist_table
    from worker.wording import category_meaning

    if as_json and as_csv:
        raise typer.BadParameter("name one of --json and --csv")
    with reading(open_engine()) as connection:
        rows = stream(connection, limit=limit)
        if as_json:
            print_json(dict(row) for row in rows)
        elif as_csv:
            _print_csv(columns(connection), rows)
        else:
            category_a = category_meaning("A", shares_by_finding(rules_in_force(connection), "A"))
            listing = worklist_table(category_a=category_a)
            show_stream(listing, _worklist_rows(connection, rows), wide=wide)


def _worklist_rows(connection: "Connection", rows: Iterable[Mapping[Any, Any]]) -> "Iterator[Sequence[Cell]]":
    from db.worklist import ROWS_AT_ONCE, shared_numbers
    from worker.terminal.tables import worklist_row

    rows = iter(rows)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        shared = shared_numbers(connection, [row["accession_number"] for row in some])
        yield from (worklist_row(row, shared=shared) for row in some)


def _print_csv(names: Iterable[str], rows: Iterable[Mapping[Any, Any]]) -> None:
    import csv

    from worker.wording import spreadsheet_cell

    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a sender's letters, whatever the terminal
    writer = csv.writer(sys.stdout)
    writer.writerow(names)
    writer.writerows([spreadsheet_cell(value) for value in row.values()] for row in rows)


@app.command()
def report(
    run: Annotated[str, typer.Option(help="A run's number, as `nightread runs` lists it, or latest.")] = "latest",
    output: Annotated[Path, typer.Option(help="Where the page goes.", dir_okay=False)] = Path("morning.html"),
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Show the first N studies of the list.")] = 50,
) -> None:
    """Write the morning page: list, pictures and totals in one file."""
    from db.morning import NoSuchRun
    from worker.report.page import write_report
    from worker.terminal.refusals import usage_errors

    require_place_for(output)
    with usage_errors(NoSuchRun):
        say(f"{write_report(open_context(), run=run, output=output, top=top)}")


@app.command()
def explain(
    what: Annotated[str, typer.Argument(help="A file, a Study or SOP Instance UID, or an accession number.")],
    heatmap: Annotated[Path | None, typer.Option(help="Write heat maps of a film into this folder.")] = None,
    layers: Annotated[bool, typer.Option(help="With --heatmap: also every filter of every layer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say why a file is scored or not, or a study stands where it is."""
    from worker.explain import NoFilm, NothingToExplain, explain_file, explain_named, write_heatmaps
    from worker.terminal.listing import answer
    from worker.terminal.refusals import usage_errors
    from worker.terminal.tables import explained_tables

    if layers and heatmap is None:
        raise typer.BadParameter("--layers needs --heatmap FOLDER")
    if os.sep in what and os.path.exists(what) and not os.path.isfile(what):  # noqa: PTH110, PTH113 - else a number
        raise typer.BadParameter(f"{what} is a folder, or something else that is no file: name one film")
    context = open_context()
    with usage_errors(NothingToExplain, NoFilm):
        found = explain_file(context, Path(what)) if os.path.isfile(what) else explain_named(context, what)  # noqa: PTH113
        pictures = [] if heatmap is None else write_heatmaps(context, what, heatmap, layers=layers)
    for path in pictures:
        err.print(f"wrote {path}", soft_wrap=True)
    record = {"heading": found.heading, "facts": found.facts, "tables": found.tables, **found.structured}
    answer(record, *explained_tables(found), as_json=as_json)
