"""The lists that the commands print: worklist, totals, instances, runs, health checks, verdicts, drift."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from worker.reasons import sentence
from worker.terminal.listing import Cell, Column, Listing
from worker.wording import minute, notes, percent, times, waited

if TYPE_CHECKING:
    from db.drift import Figure
    from db.totals import Totals
    from worker.checkpoints.comparison import Comparison
    from worker.doctor import CheckResult
    from worker.explain import Explained
    from worker.monitoring.drift import Judged
    from worker.simulation.simulate import Estimate, Row

DRIFT_STYLES = {"quiet": "", "warn": "yellow", "act": "bold white on red"}
DRIFT_MEASURES = {"psi": "PSI", "ks": "KS", "shares": "PSI", "rate": "rate"}
DRIFT_COLUMNS = ("PSI", "KS", "rate")
RESULT_STYLES = {"passed": "green", "undecided": "yellow", "failed": "bold red"}
CATEGORY_STYLES = {"A": "bold white on red", "B": "bold yellow", "C": "cyan", "D": "dim"}


def _columns(*headings: str, right: Iterable[str] = (), wide: Iterable[str] = ()) -> list[Column]:
    return [Column(heading, heading in right, heading in wide) for heading in headings]


def worklist_table(*, category_a: str = "") -> Listing:
    """The reading order, without its rows; `category_a` says what that category is."""
    columns = _columns("#", "Cat", "Urgency", "Finding", "p", "x usual", "Top", "Study", "Study Instance UID", "Waits",
                       "Notes", right=("#", "Urgency", "p", "x usual", "Top", "Waits"),
                       wide=("Urgency", "Study Instance UID"))  # fmt: skip
    title = "Worklist: read from the top" + (f". Category A: {category_a}" if category_a else "")
    return Listing(title, columns, empty="Nothing waits to be read.")


def worklist_row(row: Mapping[Any, Any], *, shared: Collection[str]) -> Sequence[Cell]:
    """The cells of one row of the view worklist.

    A study is named by its accession number, as the next command takes it; by its UID where it has none, or `shared`
    has it, the accession numbers of several studies.
    """
    number, uid = row["accession_number"], row["study_instance_uid"]
    return (
        str(row["priority_rank"]),
        category_cell(row["category"]),
        f"{row['urgency']:.3f}",
        (row["top_finding"] or "-").replace("_", " "),
        "-" if row["top_probability"] is None else f"{row['top_probability']:.3f}",
        "-" if row["top_lift"] is None else times(row["top_lift"]),
        "-" if row["top_share"] is None else percent(row["top_share"]),
        number if number and number not in shared else uid,
        uid,
        waited(datetime.now(UTC) - row["received_at"]),
        notes(row),
    )


def category_cell(category: str) -> Text:
    """A category in its colour."""
    return Text(category, style=CATEGORY_STYLES[category])


def totals_table(totals: "Totals") -> Listing:
    """The sums, and beneath them the reasons."""
    listing = Listing("Totals", [Column(), Column(right=True), Column()])
    for name in ("received", "scored", "skipped", "quarantined", "waiting"):
        listing.add(f"studies {name}", str(getattr(totals, name)), "", style="bold" if name == "received" else "")
    listing.add("balance", "yes" if totals.balance else "NO", "", style="green" if totals.balance else "bold red")
    listing.add("films scored", str(totals.films), "")
    listing.add("files rejected at intake", str(totals.rejected_files), "")
    for kind, reasons in totals.reasons.items():
        for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], str(pair[0]))):
            listing.add(f"{kind}: {reason}", str(count), sentence(reason), style="dim")
    return listing


def rejected_table(files: Sequence[Mapping[str, Any]]) -> Listing:
    """The files that could not become an instance; `explain FILE` says more of one."""
    listing = Listing("Rejected at intake", _columns("file", "reason", "what is wrong"), empty="No file was rejected.")
    for file in files:
        listing.add(file["path"], str(file["reason"]), file["detail"] or "")
    return listing


def set_aside_table(state: str, rows: Sequence[Mapping[str, Any]]) -> Listing:
    """The instances that were skipped or quarantined, and the studies of which none could be named."""
    columns = _columns(
        "reason", "accession number", "Study Instance UID", "file", "what is wrong", wide=("what is wrong",)
    )
    listing = Listing(f"{state.capitalize()}", columns, empty=f"Nothing is {state}.")
    for row in rows:
        listing.add(
            row["reason"] or "-",
            row["accession_number"] or "-",
            row["study_instance_uid"],
            row["path"] or "-",
            row["detail"] or "",
        )
    return listing


def deliveries_table(rows: Sequence[Mapping[str, Any]], *, paused: bool) -> Listing:
    """Results on their way: what goes where, and how far it is."""
    columns = _columns("id", "kind", "destination", "state", "reason", "attempts", "study", "Study Instance UID",
                       right=("id", "attempts"), wide=("Study Instance UID",))  # fmt: skip
    remarks = ["All deliveries are stopped; `nightread deliver --resume` lets them go on."] if paused else []
    listing = Listing("Deliveries", columns, empty="Nothing waits to be sent.", remarks=remarks)
    for row in rows:
        listing.add(
            str(row["id"]),
            row["kind"],
            row["destination"],
            row["state"],
            row["reason"] or "-",
            str(row["attempts"]),
            row["accession_number"] or row["study_instance_uid"],
            row["study_instance_uid"],
        )
    return listing


def unpulled_table(rows: Sequence[Mapping[str, Any]]) -> Listing:
    """Studies of archives of which films could not be fetched."""
    columns = _columns("peer", "day", "Study Instance UID", "reason", "failures", "since", "last tried",
                       right=("failures",))  # fmt: skip
    listing = Listing("Not fetched", columns, empty="Every study could be fetched.")
    for row in rows:
        listing.add(
            row["peer"],
            row["day"],
            row["study_instance_uid"] or "(illegal)",
            row["reason"],
            str(row["failures"]),
            minute(row["first_failed_at"]),
            minute(row["last_failed_at"]),
        )
    return listing


def runs_table(rows: Sequence[Mapping[str, Any]]) -> Listing:
    """Nights and single `score` runs, newest first."""
    counts = ("scored", "skipped", "quarantined", "films")
    columns = _columns("run", "kind", "started", "finished", *counts, "checkpoint", right=("run", *counts),
                       wide=("finished",))  # fmt: skip
    listing = Listing("Runs", columns, empty="No run yet: `nightread score` or a worker begins one.")
    for row in rows:
        finished = minute(row["finished_at"]) if row["finished_at"] else "open"
        numbers, digest = (str(row[name]) for name in counts), row["digest"][:12]
        listing.add(str(row["id"]), row["kind"], minute(row["started_at"]), finished, *numbers, digest)
    return listing


def checkpoints_table(rows: Sequence[Mapping[str, Any]]) -> Listing:
    """Registered checkpoints; a digest's first characters are what the other commands take."""
    columns = _columns("digest", "network", "for", "state", "since", "by", "reason")
    listing = Listing("Checkpoints", columns, empty="No checkpoint is registered yet: `nightread score` registers one.")
    for row in rows:
        names = row["digest"][:12], row["network"], row["purpose"], row["state"]
        listing.add(*names, minute(row["state_changed_at"]), row["state_changed_by"], row["state_reason"] or "")
    return listing


def explained_tables(found: "Explained") -> list[Listing]:
    """An explanation: its facts first."""
    facts = Listing(found.heading, [Column(), Column()])
    for name, value in found.facts:
        facts.add(name, value)
    return [facts, *(_plain_listing(*table) for table in found.tables)]


def _plain_listing(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Listing:
    listing = Listing(heading, _columns(*columns))
    for row in rows:
        listing.add(*row)
    return listing


def doctor_table(results: "Sequence[CheckResult]") -> Listing:
    """Outcomes of the health checks."""
    listing = Listing("Health checks", [Column()] * 3)
    for result in results:
        mark = Text("ok", style="green") if result.ok else Text("failed", style="bold red")
        listing.add(result.name, mark, result.text)
    return listing


def verdict_table(checks: Iterable[Any]) -> Listing:
    """The gate's lines: a figure of champion and challenger, the difference with its interval, the bound."""
    figures = ("champion", "challenger", "difference (95 %)", "bound")
    listing = Listing("The gate", _columns("check", *figures, "", "note", right=figures))
    for check in checks:
        of = f"{check.name} {check.subject}".strip().replace("_", " ")
        films = "" if check.films_from == "gold" else f", {check.films_from}"
        interval = "" if check.low is None else f" ({check.low:+.3f} {check.high:+.3f})"
        mark = Text(check.result, style=RESULT_STYLES[check.result])
        difference = _figure(check.difference, signed=True) + interval
        shown = (_figure(check.champion), _figure(check.challenger), difference, _figure(check.bound, signed=True))
        listing.add(of + films, *shown, mark, check.note or "")
    return listing


def _figure(value: float | None, *, signed: bool = False) -> str:
    return "" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def drift_table(judged: "Judged") -> Listing:
    """Drift of one day: a line per finding, attribute and rate that there was something to compare with."""
    from worker.monitoring.drift import worst

    level = judged.level if judged.figures else "not judged"
    title = f"{judged.day:%Y-%m-%d}, {judged.films} films, checkpoint {judged.digest[:12]}: {level}"
    columns = _columns("moved by", *DRIFT_COLUMNS, "level", right=DRIFT_COLUMNS)
    listing = Listing(title, columns, remarks=judged.remarks, titled=True)
    lines: dict[str, list[Figure]] = {}
    for figure in judged.figures:
        if figure.reference is not None:
            lines.setdefault(figure.subject, []).append(figure)
    for subject, figures in lines.items():
        moved = {DRIFT_MEASURES[figure.measure]: f"{figure.value:+.3f}" for figure in figures}
        level = worst(figure.level for figure in figures)
        cells = (moved.get(column, "") for column in DRIFT_COLUMNS)
        listing.add(subject.replace("_", " "), *cells, level, style=DRIFT_STYLES[level])
    return listing


def comparison_tables(found: "Sequence[Comparison]", *, titles: tuple[str, str]) -> list[Listing]:
    """Two orders beside each other: a line for each list, and of the first one who moves and why."""
    from worker.checkpoints.comparison import FAR, HEADS

    numbers = ("studies", "seen by both", f"moved > {FAR}", *(f"same in top {n}" for n in HEADS),
               "Spearman", "Kendall", "leave A", "enter A")  # fmt: skip
    lists = Listing(" beside ".join(reversed(titles)), _columns("list", *numbers, right=numbers),
                    empty="No study was seen by both.")  # fmt: skip
    for each in found:
        counts = (each.studies, each.seen_by_both, each.moved)
        same = (f"{same} of {min(n, each.studies)}" for n, same in each.same_head.items())
        alike = ("-" if value is None else f"{value:.3f}" for value in (each.spearman, each.kendall))
        lists.add(each.name, *map(str, counts), *same, *alike, str(len(each.leave_a)), str(len(each.enter_a)))
    return [lists, *([_movers(found[0], titles), _differences(found[0], titles)] if found else [])]


def _movers(found: "Comparison", titles: tuple[str, str]) -> Listing:
    headings = [f"{what} {title}" for title in titles for what in ("rank", "category")]
    columns = _columns("study", *headings, "places", right=(*headings, "places"))
    listing = Listing(f"The farthest moves in {found.name}", columns, empty="No study moves.")
    for each in found.movers:
        ranks = str(each.rank_before), each.category_before, str(each.rank_after), each.category_after
        listing.add(each.study, *ranks, f"{each.rank_before - each.rank_after:+d}")
    return listing


def _differences(found: "Comparison", titles: tuple[str, str]) -> Listing:
    columns = _columns("finding", "study", *titles, right=titles)
    listing = Listing(f"The largest differences in {found.name}", columns, empty="No probability differs.")
    for each in found.differences:
        listing.add(each.finding, each.study, f"{each.before:.3f}", f"{each.after:.3f}")
    return listing


def simulation_table(rows: "Sequence[Row]", *, groups: Iterable[str] | None = None) -> Listing:
    """One line per group of studies and discipline; `groups` None shows all."""
    from worker.simulation.plot import groups_of

    figures = ("studies", "mean", "95th percentile", "maximum", "saved per study")
    columns = _columns("group", "discipline", *figures, right=figures)
    listing = Listing("Minutes to the report, with 95 % intervals over seeds", columns)
    for group in groups_of(rows, groups):
        for row in (row for row in rows if row.group == group):
            estimates = (_estimate(estimate) for estimate in (row.mean, row.p95, row.maximum, row.saved))
            listing.add(group, row.discipline, f"{row.studies:,}", *estimates)
    return listing


def _estimate(estimate: "Estimate") -> str:
    width = "" if estimate.half_width is None else f" ± {estimate.half_width:.1f}"
    return f"{estimate.value:.1f}{width}"


def policy_table(findings: Iterable[Mapping[str, Any]]) -> Listing:
    """A policy's findings, the heaviest first."""
    columns = _columns(
        "finding", "category", "weight", "threshold", "SNOMED CT", "RadLex", right=("weight", "threshold")
    )
    listing = Listing("Findings", columns)
    for row in sorted(findings, key=lambda row: -row["weight"]):
        threshold = "checkpoint's" if row["threshold"] is None else f"{row['threshold']:g}"
        codes = (row["snomed_ct"] or "-", row["radlex"] or "-")
        listing.add(row["finding"], row["category"], f"{row['weight']:g}", threshold, *codes)
    return listing


def users_table(rows: Iterable[Mapping[str, Any]]) -> Listing:
    """Users of the web page."""
    columns = _columns("name", "role", "signs in by", "added", "by", "disabled")
    listing = Listing("Users", columns, empty="Nobody may sign in yet: `nightread users add` adds a user.")
    for row in rows:
        added, disabled = minute(row["created_at"]), minute(row["disabled_at"])
        way = "password" if row["by_password"] else "provider"
        listing.add(row["name"], row["role"], way, added, row["created_by"], disabled)
    return listing


def policies_table(rows: Iterable[Mapping[str, Any]]) -> Listing:
    """Versions of the policy, with who made and who activated each."""
    columns = _columns("version", "active", "made", "by", "activated", "by", "note", right=("version",))
    listing = Listing("Versions of the policy", columns)
    for row in rows:
        made, activated = minute(row["created_at"]), minute(row["activated_at"])
        active, by = "yes" if row["active"] else "", row["activated_by"] or "-"
        listing.add(str(row["version"]), active, made, row["created_by"], activated, by, row["note"] or "")
    return listing
