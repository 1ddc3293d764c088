"""`nightread demo`: a night of phantoms, scored and ranked, in a folder of its own. Needs no data and no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from db.lookup import instance_ends
from db.session import read_scope
from db.totals import read_totals
from db.worklist import study_findings, worklist
from training.findings import FINDINGS, column
from training.imaging.pixels import PixelLimits, UnusablePixels, open_dataset, read_film
from worker.context import Context
from worker.demo.contact_sheet import CARD_WIDTH, SCALE, Card, save_contact_sheet
from worker.demo.film import Outcome
from worker.demo.night import Written, generate, plan
from worker.intake.receive import find_files, receive
from worker.scoring.pipeline import score_waiting
from worker.scoring.recording import Tally
from worker.scoring.scorer import open_scorer
from worker.settings import Settings
from worker.terminal.console import progress
from worker.terminal.tables import category_cell, totals_table
from worker.wording import notes

ON_SHEET = 12  # studies on the contact sheet
WIDE = 120  # a terminal with this many columns has room for three findings of a study

WELCOME = (
    "A night of phantoms: drawings that look like chest films and belong to nobody. The checkpoint was trained "
    "on real films, so its scores on drawings mean little; how they become a worklist is the real thing."
)
STATES: dict[Outcome, str] = {"kept": "scored", "skipped": "skipped", "quarantined": "quarantined"}

SQL_TO_ASK = (
    "SELECT priority_rank, accession_number, category, urgency, top_finding FROM worklist ORDER BY priority_rank",
    "SELECT accession_number, pneumothorax, effusion FROM study_findings JOIN study_log USING (study_instance_uid)",
    "SELECT state, reason, count(*) FROM film_log GROUP BY state, reason",
)

NOTE = "Phantoms: drawings, not patients. The checkpoint was trained on real films; its scores on drawings mean little."


@dataclass(frozen=True)
class Morning:
    """Where the demo left things, and what came of them."""

    films: Path
    database: Path
    sheet: Path
    written: tuple[Written, ...]
    tally: Tally
    surprises: tuple[str, ...]  # what did not end as an honest worker should have ended it; none, one hopes


def run_demo(folder: Path, *, settings: Settings, console: Console, seed: int = 7) -> Morning:
    """Draw the night's films under `folder`, score them into its own SQLite file, and show the morning.

    Only what the demo itself made there is replaced, so running it again is harmless: the same seed draws the same
    films, and the morning starts anew. The user's database is not touched.
    """
    films, database, sheet = folder / "films", folder / "morning.db", folder / "worklist.png"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in (database, *(database.with_name(database.name + ending) for ending in ("-wal", "-shm"))):
        leftover.unlink(missing_ok=True)
    context = Context(own_settings(settings, database))
    context.seed()

    console.print(Panel(WELCOME, title="nightread demo", title_align="left", border_style="dim"))
    written = tuple(_draw(films, seed=seed))
    tally = _score(context, films)
    with read_scope(context.engine) as session:
        rows = [dict(row) for row in worklist(session)]
        findings, ends = study_findings(session), instance_ends(session)
        totals = read_totals(session)
    cards = cards_of(rows[:ON_SHEET], findings, films=films_by_study(written), limits=context.pixel_limits)
    save_contact_sheet(sheet, cards, heading="Nightread: the top of this morning's list", note=NOTE)
    morning = Morning(films, database, sheet, written, tally, surprises(written, ends))
    best = 3 if console.width >= WIDE else 1
    console.print(morning_table(rows, findings, written, best=best), totals_table(totals), sep="\n\n")
    _say_where(morning, console)
    return morning


def own_settings(settings: Settings, database: Path) -> Settings:
    """The user's device, batch and decoders, but the demo's own database, and its own idea of what a chest film is."""
    defaults = {
        name: Settings.model_fields[name].default for name in ("modalities", "allow_secondary_capture", "roots")
    }
    return settings.model_copy(
        update=defaults
        | {
            "database_url": f"sqlite:///{database.resolve()}",
            "broker_url": None,
            "state_folder": database.resolve().parent,
        }
    )


def _draw(films: Path, *, seed: int) -> list[Written]:
    studies = plan()
    with progress("Drawing the night", total=len(studies)) as advance:
        return generate(films, seed=seed, studies=studies, on_study=lambda: advance(1))


def _score(context: Context, films: Path) -> Tally:
    with progress("Reading headers", total=sum(1 for _ in find_files([films]))) as advance:
        receive(context, [films], on_file=lambda: advance(1))
    with read_scope(context.engine) as session:
        waiting = read_totals(session).waiting
    with open_scorer(context) as scorer, progress("Scoring studies", total=waiting) as advance:
        return score_waiting(scorer, kind="score", on_settled=advance)


def surprises(written: Sequence[Written], ends: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """Films that did not end as planned, in words; `ends`: SOP Instance UID -> the instance's state and reason."""
    found = []
    for each in written:
        planned = (STATES.get(each.outcome, ""), each.reason)
        if planned[0] and ends.get(each.sop_instance_uid) != planned:
            state, reason = ends.get(each.sop_instance_uid, ("missing", ""))
            found.append(f"{each.title}: {' '.join(planned).strip()} was planned, but it is {state} {reason}".strip())
    return tuple(found)


# ------------------------------------------------------------------------------------------------------ what is shown


def ranked_findings(row: Mapping[str, Any], scores: Mapping[str, Any] | None) -> tuple[tuple[str, float], ...]:
    """(finding, probability): the one that made the rank first, then the most probable; empty without scores."""
    if scores is None:
        return ()
    pairs = [(finding, float(scores[column(finding)])) for finding in FINDINGS]
    return tuple(sorted(pairs, key=lambda pair: (pair[0] != row["top_finding"], -pair[1])))


def morning_table(
    rows: Sequence[Mapping[str, Any]],
    findings: Mapping[str, Mapping[str, Any]],
    written: Sequence[Written],
    *,
    best: int,
) -> Table:
    """The worklist, each study's `best` findings beside what was drawn: a phantom's diagnosis is certain."""
    titles = {each.study_instance_uid: each.title for each in written}
    table = Table(title="The worklist: read from the top", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.padding = (0, 1 if best > 1 else 0, 0, 0)
    for heading, side in (("#", "right"), ("Cat", "center"), ("Urg.", "right"), ("Study", "left"), ("Model", "left")):
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("Drawn")
    table.add_column("Notes", no_wrap=True)
    for row in rows:
        scores = ranked_findings(row, findings.get(row["study_instance_uid"]))[:best]
        table.add_row(
            str(row["priority_rank"]),
            category_cell(row["category"]),
            f"{row['urgency']:.2f}" if scores else "-",
            row["accession_number"],
            ", ".join(f"{finding.replace('_', ' ')} {probability:.2f}" for finding, probability in scores) or "-",
            titles[row["study_instance_uid"]],
            notes(row),
        )
    return table


def films_by_study(written: Sequence[Written]) -> dict[str, Path]:
    """For each study the film to show: its first that could be scored, else its first."""
    films: dict[str, Path] = {}
    for each in sorted(written, key=lambda each: each.outcome != "kept"):
        if each.study_instance_uid:
            films.setdefault(each.study_instance_uid, each.path)
    return films


def cards_of(
    rows: Sequence[Mapping[str, Any]],
    findings: Mapping[str, Mapping[str, Any]],
    *,
    films: Mapping[str, Path],
    limits: PixelLimits,
) -> list[Card]:
    """Rows of the view worklist -> cards for the contact sheet, each with the picture of its film if it has one."""
    cards = []
    for row in rows:
        uid = row["study_instance_uid"]
        best = ranked_findings(row, findings.get(uid))
        cards.append(
            Card(
                rank=row["priority_rank"],
                title=row["accession_number"] or "",
                category=row["category"],
                urgency=row["urgency"] if best else None,
                findings=best,
                flag=notes(row),
                thumbnail=thumbnail(films[uid], limits=limits) if uid in films else None,
            )
        )
    return cards


def thumbnail(path: Path, *, limits: PixelLimits) -> NDArray[np.uint8] | None:
    """A film small enough for a card: uint8 (h, w), white = dense; None where it cannot be shown."""
    try:
        film = read_film(open_dataset(path, limits=limits), limits=limits)
    except (UnusablePixels, OSError):
        return None
    image = Image.fromarray(np.rint(film.image * 255).astype(np.uint8))
    image.thumbnail((CARD_WIDTH * SCALE, CARD_WIDTH * SCALE))
    return np.asarray(image)


def _say_where(morning: Morning, console: Console) -> None:
    for surprise in morning.surprises:
        console.print(Text.assemble(("Not as planned", "bold red"), f" {surprise}"))
    if not morning.surprises:
        console.print(Text(f"All {len(morning.written)} files ended as they should.", style="green"))
    bold = "bold"
    console.print(
        Text.assemble(
            ("\nLook at", bold), f"   {morning.sheet}\n",
            ("Films", bold), f"     {morning.films}\n",
            ("Database", bold), f"  {morning.database}\n\n",
            ("Ask it in SQL", bold), ", with any client:\n",
            *(f"  {query};\n" for query in SQL_TO_ASK),
            ("\nYour own films", bold), ": nightread score /path/to/folder && nightread worklist",
        ),
        soft_wrap=True,
    )  # fmt: skip
