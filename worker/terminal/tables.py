"""Tables that the commands print: worklist, totals, health checks, verdicts, drift."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from db.drift import Figure
from db.totals import Totals
from worker.checkpoints.comparison import FAR, HEADS, Comparison
from worker.doctor import CheckResult
from worker.explain import Explained
from worker.monitoring.drift import Judged, worst
from worker.reasons import sentence
from worker.wording import notes, waited

DRIFT_STYLES = {"quiet": "", "warn": "yellow", "act": "bold white on red"}
DRIFT_MEASURES = {"psi": "PSI", "ks": "KS", "shares": "PSI", "rate": "rate"}
DRIFT_COLUMNS = ("PSI", "KS", "rate")
CATEGORY_STYLES = {"A": "bold white on red", "B": "bold yellow", "C": "cyan", "D": "dim"}


def worklist_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The reading order as a table; `rows` are of the view worklist."""
    table = Table(title="Worklist: read from the top", title_justify="left")
    for heading in ("#", "Cat", "Urgency", "Top finding", "p", "Accession", "Study UID", "Waits", "Notes"):
        table.add_column(heading, justify="right" if heading in ("#", "Urgency", "p", "Waits") else "left")
    now = datetime.now(UTC)
    for row in rows:
        table.add_row(
            str(row["priority_rank"]),
            category_cell(row["category"]),
            f"{row['urgency']:.3f}",
            row["top_finding"] or "-",
            "-" if row["top_probability"] is None else f"{row['top_probability']:.2f}",
            row["accession_number"] or "-",
            shortened(row["study_instance_uid"]),
            waited(now - row["received_at"]),
            notes(row),
        )
    return table


def category_cell(category: str) -> Text:
    """A category in its colour."""
    return Text(f" {category} ", style=CATEGORY_STYLES[category])


def shortened(uid: str) -> str:
    """The end of a UID, in which two studies differ; `--json` and `--csv` print it whole."""
    return uid if len(uid) <= 14 else f"…{uid[-12:]}"


def totals_table(totals: Totals) -> Table:
    """The sums, and beneath them the reasons."""
    table = Table(title="The totals", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name in ("received", "scored", "skipped", "quarantined", "waiting"):
        table.add_row(f"studies {name}", str(getattr(totals, name)), style="bold" if name == "received" else "")
    table.add_row("balance", "yes" if totals.balance else "NO", style="green" if totals.balance else "bold red")
    table.add_section()
    table.add_row("films scored", str(totals.films))
    table.add_row("files rejected at intake", str(totals.rejected_files))
    for kind, reasons in totals.reasons.items():
        if reasons:
            table.add_section()
        for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], str(pair[0]))):
            table.add_row(f"{kind}: {reason}\n  {sentence(reason)}", str(count), style="dim")
    return table


def rejected_table(files: Sequence[Mapping[str, Any]]) -> Table:
    """The files that could not become an instance; `explain FILE` says more of one."""
    table = Table("file", "reason", "what is wrong", title="Rejected at intake", title_justify="left")
    for file in files:
        # A sender chose the path: no markup, and nothing that a terminal obeys.
        path = "".join(letter if letter.isprintable() else "?" for letter in file["path"])
        table.add_row(Text(path, overflow="fold"), str(file["reason"]).replace("_", " "), file["detail"] or "")
    return table


def explained_tables(found: Explained) -> list[Table]:
    """An explanation as tables: its facts first."""
    facts = Table(title=found.heading, title_justify="left", show_header=False)
    for name, value in found.facts:
        facts.add_row(name, value)
    return [facts, *(_plain_table(*table) for table in found.tables)]


def _plain_table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns, title=heading, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _mark(good: bool, yes: str, no: str) -> Text:
    return Text(yes, style="green") if good else Text(no, style="bold red")


def doctor_table(results: Sequence[CheckResult]) -> Table:
    """Outcomes of the health checks."""
    table = Table(title="Health checks", title_justify="left", show_header=False)
    for result in results:
        table.add_row(result.name, _mark(result.ok, "ok", "failed"), result.text)
    return table


RESULT_STYLES = {"passed": "green", "undecided": "yellow", "failed": "bold red"}


def verdict_table(checks: Iterable[Any]) -> Table:
    """The gate's lines: a figure of champion and challenger, the difference with its interval, the bound."""
    table = Table(title="The gate", title_justify="left")
    for heading in ("check", "champion", "challenger", "difference (95 %)", "bound", ""):
        right = heading in ("champion", "challenger", "difference (95 %)", "bound")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    table.add_column("note")
    for check in checks:
        of = f"{check.name} {check.subject}".strip().replace("_", " ")
        films = "" if check.films_from == "gold" else f", {check.films_from}"
        interval = "" if check.low is None else f" ({check.low:+.3f} {check.high:+.3f})"
        mark = Text(check.result, style=RESULT_STYLES[check.result])
        difference = _figure(check.difference, signed=True) + interval
        figures = (_figure(check.champion), _figure(check.challenger), difference, _figure(check.bound, signed=True))
        table.add_row(of + films, *figures, mark, check.note or "")
    return table


def _figure(value: float | None, *, signed: bool = False) -> str:
    return "" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def drift_table(judged: Judged) -> Table:
    """What moved on one day: a line per finding, attribute and rate that there was something to compare with."""
    level = judged.level if judged.figures else "not judged"
    table = Table(
        title=f"{judged.day:%Y-%m-%d}, {judged.films} films, checkpoint {judged.digest[:12]}: {level}",
        title_justify="left",
        caption="\n".join(judged.remarks),
        caption_justify="left",
    )
    for heading in ("moved by", *DRIFT_COLUMNS, "level"):
        table.add_column(heading, justify="right" if heading in DRIFT_COLUMNS else "left")
    lines: dict[str, list[Figure]] = {}
    for figure in judged.figures:
        if figure.reference is not None:
            lines.setdefault(figure.subject, []).append(figure)
    for subject, figures in lines.items():
        moved = {DRIFT_MEASURES[figure.measure]: f"{figure.value:+.3f}" for figure in figures}
        level = worst(figure.level for figure in figures)
        cells = (moved.get(column, "") for column in DRIFT_COLUMNS)
        table.add_row(subject.replace("_", " "), *cells, level, style=DRIFT_STYLES[level])
    return table


def comparison_tables(found: Sequence[Comparison], *, titles: tuple[str, str]) -> list[Table]:
    """Two orders beside each other: a line for each list, and of the first one who moves and why."""
    lists = Table(title=" beside ".join(reversed(titles)), title_justify="left")
    headings = ("list", "studies", "seen by both", f"moved > {FAR}", *(f"same in top {n}" for n in HEADS))
    for heading in (*headings, "Spearman", "Kendall", "leave A", "enter A"):
        lists.add_column(heading, justify="left" if heading == "list" else "right")
    for each in found:
        counts = (each.studies, each.seen_by_both, each.moved)
        same = (f"{same} of {min(n, each.studies)}" for n, same in each.same_head.items())
        alike = ("-" if value is None else f"{value:.3f}" for value in (each.spearman, each.kendall))
        lists.add_row(each.name, *map(str, counts), *same, *alike, str(len(each.leave_a)), str(len(each.enter_a)))
    return [lists, *([_movers_table(found[0], titles), _differences_table(found[0], titles)] if found else [])]


def _movers_table(found: Comparison, titles: tuple[str, str]) -> Table:
    table = Table("study", *(f"{what} {title}" for title in titles for what in ("rank", "category")), "places",
                  title=f"The farthest moves in {found.name}", title_justify="left")  # fmt: skip
    for each in found.movers:
        ranks = str(each.rank_before), each.category_before, str(each.rank_after), each.category_after
        table.add_row(each.study, *ranks, f"{each.rank_before - each.rank_after:+d}")
    return table


def _differences_table(found: Comparison, titles: tuple[str, str]) -> Table:
    table = Table("finding", "study", *titles, title=f"The largest differences in {found.name}", title_justify="left")
    for each in found.differences:
        table.add_row(each.finding, each.study, f"{each.before:.3f}", f"{each.after:.3f}")
    return table
