"""`nightread demo`: a night of phantoms, scored and ranked, in a folder of its own. Needs no data and no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from db.lookup import instance_ends
from db.session import read_scope
from db.totals import Totals, read_totals
from db.worklist import contributions, worklist
from training.findings import FINDINGS
from training.imaging.dicom import PixelLimits, open_dataset
from training.imaging.pixels import read_film
from worker.context import Context
from worker.demo.contact_sheet import CARD_WIDTH, SCALE, Card, contact_sheet
from worker.demo.film import Outcome
from worker.demo.learn import CHECKPOINT, PURPOSE
from worker.demo.night import Written, generate, plan
from worker.intake.receive import find_files, receive
from worker.ranking import priority
from worker.reasons import sentence
from worker.report.page import write_report
from worker.scoring.pipeline import score_waiting
from worker.scoring.recording import Tally
from worker.scoring.scorer import open_scorer
from worker.settings import Settings
from worker.terminal.console import progress
from worker.terminal.listing import Column, Listing
from worker.terminal.tables import category_cell
from worker.wording import counted, in_words, notes, percent

DATABASE, SHEET, PAGE = "morning.db", "worklist.png", "morning.html"
ON_SHEET = 12  # studies on the contact sheet
HEAD = 10  # studies that the last line counts
WIDE = 100  # a terminal with this many columns has room for the reasons

WELCOME = (
    "A night of phantoms: forty studies as many devices would send them, all drawn; no patient is in them. They are "
    "scored by the demo checkpoint, which learned from other drawings and must never rank real films."
)
NOTE = (
    "Under each film: what was drawn, then what was found. Drawings, not patients, and a checkpoint learned from "
    "drawings, not for real films. Ranks that are missing could not be read."
)
STATES: dict[Outcome, str] = {"kept": "scored", "skipped": "skipped", "quarantined": "quarantined"}
SQL_TO_ASK = (
    "SELECT priority_rank, accession_number, category, urgency, top_finding FROM worklist ORDER BY priority_rank",
    "SELECT accession_number, pneumothorax, effusion FROM study_findings JOIN study_log USING (study_instance_uid)",
    "SELECT state, reason, count(*) FROM film_log GROUP BY state, reason",
)


@dataclass(frozen=True)
class Place:
    """One study of the list, beside what was drawn."""

    row: Mapping[str, Any]  # of the view worklist
    films: tuple[Written, ...]
    parts: Sequence[Mapping[str, Any]]  # of study_contribution, what counts first; none where no film could be scored

    @property
    def found(self) -> list[Mapping[str, Any]]:
        """The findings that reach their thresholds."""
        return [part for part in self.parts if part["counts"]]

    @property
    def drawn(self) -> set[str]:
        return {finding for film in self.films for finding in film.findings}

    @property
    def why(self) -> str:
        """Why it stands where it does, or why it has no scores."""
        row, broken = self.row, next((film.reason for film in self.films if film.reason), "")
        if not self.parts:
            return sentence(broken)
        if row["stat"]:
            return "a person marked it STAT"
        parts = ["category A"] if row["category"] == "A" else []
        parts += [f"urgency {row['urgency']:.2f}"]
        return ", ".join([*parts, "a film is broken"] if row["flag"] == priority.PARTLY_SCORED else parts)


@dataclass(frozen=True)
class Morning:
    """Where the demo left things, and what came of them."""

    folder: Path
    written: tuple[Written, ...]
    tally: Tally
    totals: Totals
    scored: tuple[Place, ...]
    unscored: tuple[Place, ...]
    surprises: tuple[str, ...]  # films that did not end as planned, in words; none if all is well

    @property
    def database(self) -> Path:
        return self.folder / DATABASE

    @property
    def sheet(self) -> Path:
        return self.folder / SHEET


def run_demo(folder: Path, *, settings: Settings, console: Console, seed: int = 7) -> Morning:
    """Draw the night's films under `folder`, score them into its own SQLite file, and show the morning.

    Only what the demo itself made there is replaced, so running it again is harmless: the same seed draws the same
    films, and the morning starts anew. The user's database is not touched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("", "-wal", "-shm"):
        (folder / (DATABASE + ending)).unlink(missing_ok=True)
    context = Context(own_settings(settings, folder / DATABASE), purpose=PURPOSE)
    context.seed()
    console.print(Panel(WELCOME, title="nightread demo", title_align="left", border_style="dim"))
    studies = plan()
    with progress("Drawing the night", total=len(studies)) as advance:
        written = tuple(generate(folder / "films", seed=seed, studies=studies, on_study=lambda: advance(1)))
    tally = _score(context, folder / "films")
    morning = _morning(context, folder, written, tally)
    cards = [card_of(place, limits=context.pixel_limits) for place in morning.scored[:ON_SHEET]]
    contact_sheet(cards, heading="Nightread demo: the top of this morning's list", note=NOTE).save(morning.sheet)
    write_report(context, run="latest", output=folder / PAGE)
    show(morning, console)
    return morning


def _morning(context: Context, folder: Path, written: tuple[Written, ...], tally: Tally) -> Morning:
    with read_scope(context.engine) as session:
        rows, parts = worklist(session), contributions(session)
        totals, ends = read_totals(session), instance_ends(session)
    films: dict[str, list[Written]] = {}
    for each in written:
        films.setdefault(each.study_instance_uid, []).append(each)
    places = []
    for row in rows:
        uid = row["study_instance_uid"]
        places.append(Place(dict(row), tuple(films[uid]), [dict(part) for part in parts.get(uid, ())]))
    scored, unscored = (tuple(place for place in places if bool(place.parts) is kind) for kind in (True, False))
    return Morning(folder, written, tally, totals, scored, unscored, surprises(written, ends))


def own_settings(settings: Settings, database: Path) -> Settings:
    """The user's device, batch and decoders, but the demo's own database, checkpoint and idea of a chest film."""
    defaults = {
        name: Settings.model_fields[name].default for name in ("modalities", "allow_secondary_capture", "roots")
    }
    own = {
        "database_url": f"sqlite:///{database.resolve()}",
        "broker_url": None,
        "checkpoint": CHECKPOINT,
        "state_folder": database.resolve().parent,
    }
    return settings.model_copy(update=defaults | own)


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


def card_of(place: Place, *, limits: PixelLimits) -> Card:
    """A scored study's card for the contact sheet, with the picture of its first film that was scored."""
    path = next(film.path for film in place.films if film.outcome == "kept")
    image = Image.fromarray(
        np.rint(read_film(open_dataset(path, limits=limits), limits=limits).image * 255).astype("u1")
    )
    image.thumbnail((CARD_WIDTH * SCALE, CARD_WIDTH * SCALE))
    return Card(
        rank=place.row["priority_rank"],
        title=place.films[0].title,
        category="STAT" if place.row["stat"] else place.row["category"],
        note=f"urgency {place.row['urgency']:.2f}",
        findings=tuple((part["finding"], part["probability"]) for part in place.parts),
        found=len(place.found),
        flag="" if place.row["stat"] else notes(place.row),
        thumbnail=np.asarray(image),
    )


def show(morning: Morning, console: Console) -> None:
    """Print the list, what the model could not read, and where everything lies."""
    for listing in (_list(morning.scored, wide=console.width >= WIDE), _list_unscored(morning.unscored)):
        console.print(listing, "")
    console.print(Text(head_line(morning.scored), style="bold"))
    _say_where(morning, console)


def _list(places: Sequence[Place], *, wide: bool) -> Listing:
    headings = ["#", "Cat", "Study", "Drawn", "Found", *(["Why here"] if wide else [])]
    listing = Listing("The worklist: read from the top", [Column(heading, heading == "#") for heading in headings])
    most = 3 if wide else 2
    for place in places:
        row = place.row
        found = ", ".join(f"{in_words(part['finding'])} {percent(part['probability'])}" for part in place.found[:most])
        category = Text("STAT", style="bold") if row["stat"] else category_cell(row["category"])
        cells = (row["accession_number"], place.films[0].title, found or "nothing", *([place.why] if wide else []))
        listing.add(str(row["priority_rank"]), category, *cells)
    return listing


def _list_unscored(places: Sequence[Place]) -> Listing:
    headings = ("#", "Study", "Drawn", "Why it has no scores")
    title = "The model could not read these: a person looks at them, in category B"
    listing = Listing(title, [Column(heading, heading == "#") for heading in headings])
    for place in places:
        row = place.row
        listing.add(str(row["priority_rank"]), row["accession_number"], place.films[0].title, place.why)
    return listing


def head_line(scored: Sequence[Place]) -> str:
    """Counts what the first ten studies that the model read hold, by what was drawn."""
    head = scored[:HEAD]
    right = sum(bool(place.found) and place.found[0]["finding"] in place.drawn for place in head)
    counts = []
    for finding in FINDINGS:
        inside, everywhere = (sum(finding in place.drawn for place in places) for places in (head, scored))
        if inside:
            counts.append((inside, f"{inside} of {everywhere} {in_words(finding).lower()}"))
    held = ", ".join(words for _, words in sorted(counts, reverse=True))
    return f"Of the first {len(head)}, {right} hold what the model names first. Drawn in them: {held}."


def _say_where(morning: Morning, console: Console) -> None:
    totals = morning.totals
    for surprise in morning.surprises:
        console.print(Text.assemble(("Not as planned", "bold red"), f" {surprise}"))
    if not morning.surprises:
        sums = f"{totals.scored} scored + {totals.skipped} skipped + {totals.quarantined} quarantined"
        ended = f"All {counted(len(morning.written), 'file')} ended as they should: {totals.received} studies = {sums}."
        console.print(Text(ended, style="green"))
    places = {"Morning page": PAGE, "Contact sheet": SHEET, "Films": "films", "Database": DATABASE}
    lines = [(f"{name:15}", f"{morning.folder / file}") for name, file in places.items()]
    lines += [("Ask it in SQL", ", with any client:"), *(("", f"  {query};") for query in SQL_TO_ASK)]
    url = f"sqlite:///{(morning.folder / DATABASE).resolve()}"
    lines += [("In the browser", f": NIGHTREAD_DATABASE_URL='{url}' nightread serve")]
    lines += [("Your own films", ": nightread score /path/to/folder && nightread worklist")]
    console.print()
    for name, text in lines:
        console.print(Text.assemble((name, "bold"), text), soft_wrap=True)
