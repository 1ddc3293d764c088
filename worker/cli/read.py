"""`nightread read`, `unread`, `review`: what people say back about studies."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, tzinfo
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from worker.terminal.console import DONE, SOME_LEFT_OUT, AsJson, open_engine, print_json, refuse, say

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.reading import Answer
    from worker.cli.ris_csv import Problem

CHUNK = 500  # rows to a transaction: an import that is stopped keeps what it has done, and may be repeated

Studies = Annotated[list[str] | None, typer.Argument(help="Study Instance UIDs or accession numbers.")]
Csv = Annotated[Path | None, typer.Option("--csv", exists=True, dir_okay=False, help="A table from the RIS.")]
Zone = Annotated[str | None, typer.Option(help="Of times without one, as Europe/Berlin.")]
WholeOrder = Annotated[
    bool, typer.Option("--whole-order", help="An accession number that several studies share means them all.")
]
Findings = Annotated[list[str] | None, typer.Option(metavar="FINDING", help="May be given several times.")]


@dataclass
class Report:
    """Result of an import; `rows` counts the rows that could be understood and were answered."""

    rows: int = 0
    changed: int = 0
    left_out: "list[Problem]" = field(default_factory=list)

    @property
    def unchanged(self) -> int:
        """Rows that changed nothing."""
        return self.rows - self.changed


app = typer.Typer()


@app.command()
def read(
    studies: Studies = None,
    reader: Annotated[str | None, typer.Option(help="Who read; for rows that do not say.")] = None,
    at: Annotated[str | None, typer.Option(help="When, ISO 8601; without it: now.")] = None,
    table: Csv = None,
    time_zone: Zone = None,
    whole_order: WholeOrder = False,
    as_json: AsJson = False,
) -> None:
    """Take studies off the worklist because they were read."""
    from db.reading import Reading, mark_read
    from worker.cli import ris_csv

    _one_source(studies, table)
    zone = _zone(time_zone)
    if table is not None:
        rows: Iterable[Any] = ris_csv.readings(table, ris_csv.Defaults(reader, zone))
    else:
        moment = _moment(at, zone)
        rows = enumerate((Reading(study, moment, reader) for study in studies or ()), start=1)
    report = _answered(rows, lambda session, some: mark_read(session, some, whole_order=whole_order))
    _finish(report, names=studies, as_json=as_json)


@app.command()
def unread(studies: Studies = None, whole_order: WholeOrder = False, as_json: AsJson = False) -> None:
    """Bring studies back to the worklist.

    Each comes to the place that it would have had.
    """
    from db.reading import mark_unread
    from worker.context import actor

    if not studies:
        refuse("name at least one study")
    rows = enumerate(studies, start=1)

    def bring_back(session: "Session", some: Sequence[str]) -> "list[Answer]":
        return mark_unread(session, some, by=actor(), whole_order=whole_order)

    _finish(_answered(rows, bring_back), names=studies, as_json=as_json)


@app.command()
def review(
    study: Annotated[str | None, typer.Argument(help="A Study Instance UID or accession number.")] = None,
    reader: Annotated[str | None, typer.Option(help="Who confirmed it.")] = None,
    present: Findings = None,
    absent: Findings = None,
    not_assessed: Findings = None,
    at: Annotated[str | None, typer.Option(help="When, ISO 8601; without it: now.")] = None,
    table: Csv = None,
    time_zone: Zone = None,
    as_json: AsJson = False,
) -> None:
    """Keep what a radiologist confirmed of a study.

    Finding by finding: these are the labels that retraining trusts.
    """
    from db.reading import Opinion, record_opinions
    from worker.cli import ris_csv

    _one_source([study] if study else None, table)
    zone = _zone(time_zone)
    if table is not None:
        rows: Iterable[Any] = ris_csv.opinions(table, ris_csv.Defaults(reader, zone))
    else:
        verdicts = _verdicts_of(present=present, absent=absent, not_assessed=not_assessed)
        if not reader or not verdicts:
            refuse("a review needs --reader and at least one of --present, --absent, --not-assessed")
        moment = _moment(at, zone)
        rows = enumerate((Opinion(study or "", key, word, reader, moment) for key, word in verdicts.items()), start=1)
    report = _answered(rows, record_opinions)
    names = None if study is None else [study] * (report.rows + len(report.left_out))
    _finish(report, names=names, as_json=as_json)


def _one_source(studies: Sequence[str] | None, table: Path | None) -> None:
    if bool(studies) == (table is not None):
        refuse("name studies, or give --csv FILE; one of the two")


def _zone(name: str | None) -> tzinfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError):
        refuse(f"no time zone is called {name!r}; Europe/Berlin is one")


def _moment(text: str | None, zone: tzinfo | None) -> datetime | None:
    from worker.cli.ris_csv import WrongValue, moment
    from worker.terminal.refusals import usage_errors

    with usage_errors(WrongValue):
        return moment(text, zone)


def _verdicts_of(**findings: Sequence[str] | None) -> dict[str, str]:
    """Finding -> verdict; a finding that is named twice, or that is none, ends the command."""
    from worker.cli.ris_csv import WrongValue, finding_key
    from worker.terminal.refusals import usage_errors

    verdicts: dict[str, str] = {}
    for word, names in findings.items():
        for name in names or ():
            with usage_errors(WrongValue):
                key = finding_key(name)
            if key in verdicts:
                refuse(f"{key} is named twice")
            verdicts[key] = word
    return verdicts


def _answered(rows: Iterable[Any], write: "Callable[[Session, Any], list[Answer]]") -> Report:
    """Write rows, (line, row) or Problem, in short transactions; what is refused keeps its line and reason."""
    from db.session import session_scope
    from worker.cli.ris_csv import Problem, WrongFile
    from worker.terminal.refusals import usage_errors

    engine, report, rows = open_engine(), Report(), iter(rows)
    with usage_errors(WrongFile):
        while chunk := list(islice(rows, CHUNK)):
            report.left_out += [row for row in chunk if isinstance(row, Problem)]
            asked = [row for row in chunk if not isinstance(row, Problem)]
            with session_scope(engine) as session:
                answers = write(session, [row for _, row in asked])
            for (line, _), answer in zip(asked, answers, strict=True):
                if answer.refused is not None:
                    report.left_out.append(Problem(line, answer.refused))
                else:
                    report.rows += 1
                    report.changed += answer.changed > 0
    return report


def _finish(report: Report, *, names: Sequence[str] | None, as_json: bool) -> None:
    """Say what came of it; what was left out by its `names` on the command line, or by its line in the table."""
    left_out = sorted(report.left_out, key=lambda problem: problem.line)
    if as_json:
        counts = {"changed": report.changed, "unchanged": report.unchanged}
        print_json(counts | {"left_out": [asdict(problem) for problem in left_out]})
    else:
        say(f"{report.changed} changed, {report.unchanged} known already, {len(left_out)} left out.")
        for problem in left_out:
            place = names[problem.line - 1] if names else f"line {problem.line}"
            say(f"  {place}: {problem.reason}")
    raise typer.Exit(SOME_LEFT_OUT if left_out else DONE)
