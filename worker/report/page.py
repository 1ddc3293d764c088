"""The morning page: one self-contained HTML file about one run, to open, to print and to show.

Ranks are those that stood when the run ended; while a run goes on, those of the moment. Nothing on the page comes from
the network, no script runs in it, and neither a patient's name, key, sex nor age is on it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import RowMapping
from sqlalchemy.orm import Session

from db import drift, morning, policies, registry
from db.arrivals import TWO_PATIENTS
from db.base import database_now
from db.finding_rules import FindingRule, rules_of, shares_by_finding
from db.models import Checkpoint, Drift, Run
from db.morning import CategoryCount, Film
from db.session import read_scope
from db.totals import Totals, kept_totals, read_totals
from training.checkpoint import CheckpointError, Header, read_header
from training.findings import FINDINGS
from training.imaging.whole_file import write_whole
from training.pointing import Pointing, no_map_because, pointing_of
from worker.context import Context
from worker.ranking import policy, priority
from worker.reasons import sentence
from worker.report.charts import (
    HEIGHT,
    TICKS,
    WIDTH,
    Compared,
    Table,
    charts_of,
    flagged_of,
    reference_of,
    shares_of,
    table_of,
    x_of,
)
from worker.report.drift import DAYS, drifted, first_day
from worker.report.pictures import Picture, Wanted, pictures_of
from worker.settings import Settings
from worker.wording import (
    category_meaning,
    clock,
    day,
    day_and_clock,
    duration,
    in_words,
    moment,
    number,
    percent,
    ranges,
    unusual,
    viewer_address,
    waited,
)

CARDS = 12  # studies at the head of the list that get a card with pictures
BARS = 3  # findings shown per study
COMPARED_DAYS = 7
COMPARED_FILMS = 50  # fewer earlier films than this say little about a distribution
QUARANTINED_SHOWN = 20

# What a state is called, and the names that Totals has for its reasons, by study and by instance.
SET_ASIDE = (
    ("Skipped", "skipped studies", "skipped instances"),
    ("Quarantined", "quarantined studies", "quarantined films"),
    ("Waiting", "waiting studies", ""),
    ("Rejected at intake: no instance (nightread status --rejected names the files)", "", "rejected files"),
)


@dataclass(frozen=True)
class Bar:
    """One finding of a study; `threshold` None where none applies, `beside` how unusual its probability is."""

    finding: str
    category: str
    probability: float
    threshold: float | None
    beside: str

    @property
    def reaches(self) -> bool:
        return self.threshold is not None and self.probability >= self.threshold


@dataclass(frozen=True)
class Entry:
    """One study of the ranked list, as the page shows it."""

    row: RowMapping
    waited: str
    films: str  # "PA and AP, DX"
    bars: tuple[Bar, ...]
    remark: str | None  # why it is not, or only partly, scored (its flag says which)
    film: Film | None  # the one to show
    viewer: str | None  # the study's address in the site's viewer
    picture: Picture | None = None

    @property
    def unread_by_model(self) -> bool:
        return bool(self.row["flag"] == priority.NOT_SCORED)


@dataclass(frozen=True)
class Facts:
    """All that the database says about one run."""

    run: Run
    as_of: datetime
    written_at: datetime
    since: datetime | None
    checkpoint: Checkpoint
    rules: priority.Policy
    thresholds: dict[str, float]
    counts: list[CategoryCount]
    rows: Sequence[RowMapping]
    films: dict[int, list[Film]]
    unusual: Mapping[tuple[int, str], tuple[float | None, float | None]]  # by study and finding: lift and share
    finding_rules: Sequence[FindingRule]
    night: Totals
    totals: Totals
    quarantined: Sequence[RowMapping]
    scores: Table
    earlier: Table
    drift: Sequence[Drift]


def write_report(context: Context, *, run: str, output: Path, top: int = 50) -> Path:
    """Write the page about a run ("latest" or its number) with its first `top` studies; returns `output`.

    Raises NoSuchRun. The file is replaced whole: who has it open or fetches it never sees half a page.
    """
    facts = _ask(context, run, top)
    header = _header_of(facts.checkpoint)
    pictures = _pictures(context, facts, header)
    template = _environment(context.settings.zone).get_template("morning.html.j2")
    page = template.render(_page(facts, pictures, header, context.settings))
    write_whole(output, page)
    return output


def _environment(zone: tzinfo | None) -> Environment:
    environment = Environment(
        loader=PackageLoader("worker.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        number=number,
        finding=in_words,
        x=x_of,
        **{each.__name__: partial(each, zone=zone) for each in (day, moment, clock, day_and_clock)},
    )
    return environment


# ----------------------------------------------------------------------------------------------------- what is asked


def _ask(context: Context, name: str, top: int) -> Facts:
    with read_scope(context.engine) as session:
        run = morning.run_named(session, name)
        now = database_now(session)
        as_of, since = run.finished_at or now, morning.previous_end(session, run)
        checkpoint = registry.by_id(session, run.checkpoint_id)
        rules = policy.from_rows(session, policies.by_id(session, run.policy_id))
        rows = morning.ranked(session, run, top=top)
        return Facts(
            run=run,
            as_of=as_of,
            written_at=now,
            since=since,
            checkpoint=checkpoint,
            rules=rules,
            thresholds=_thresholds(rules, checkpoint),
            counts=morning.counts(session, run),
            rows=rows,
            films=morning.films_of(session, [row["study_id"] for row in rows]),
            unusual=morning.unusual(session, [row["study_id"] for row in rows]),
            finding_rules=rules_of(session, policy_id=run.policy_id, checkpoint_id=run.checkpoint_id),
            night=read_totals(session, since=since, until=as_of),
            totals=kept_totals(session),
            quarantined=morning.quarantined(session, limit=QUARANTINED_SHOWN),
            scores=table_of(morning.scores_in(session, run)),
            earlier=table_of(morning.scores_before(session, run, days=COMPARED_DAYS)),
            drift=_drift(session, run, as_of),
        )


def _drift(session: Session, run: Run, as_of: datetime) -> Sequence[Drift]:
    last = as_of.date()
    days = {"first": first_day(last).isoformat(), "last": last.isoformat()}
    return drift.history(session, checkpoint_id=run.checkpoint_id, **days)


def _thresholds(rules: priority.Policy, checkpoint: Checkpoint) -> dict[str, float]:
    """The probability from which each finding counted, for those that had one."""
    own = {row.finding: row.threshold for row in rules.findings if row.threshold is not None}
    return policy.checkpoint_thresholds(checkpoint.header) | own


def _header_of(checkpoint: Checkpoint) -> Header | None:
    """Header of the run's checkpoint; the page does without where its file is gone or is another now."""
    try:
        header = read_header(Path(checkpoint.path), expected_digest=checkpoint.digest)
    except CheckpointError:
        return None
    return header if header.findings == FINDINGS else None


def _pictures(context: Context, facts: Facts, header: Header | None) -> dict[int, Picture]:
    cards = _scored(_entries(facts, {}, viewer=None))[:CARDS]
    pointing = {} if header is None else pointing_of(header.training)
    wanted = [_wanted(entry.film, entry.bars, pointing) for entry in cards if entry.film]
    file = None if header is None else Path(facts.checkpoint.path)
    return pictures_of(context, wanted, checkpoint=file) if wanted else {}


def _wanted(film: Film, bars: Sequence[Bar], pointing: Mapping[str, Pointing]) -> Wanted:
    """The heat map of the first finding that may have one; where none may, why the first has none."""
    without = [
        no_map_because(bar.finding, probability=bar.probability, threshold=bar.threshold, pointing=pointing)
        for bar in bars
    ]
    finding = next((bar.finding for bar, because in zip(bars, without, strict=True) if because is None), None)
    return Wanted(film, finding, without[0] if without and finding is None else None)


# ---------------------------------------------------------------------------------------------------- what is shown


def _page(facts: Facts, pictures: Mapping[int, Picture], header: Header | None, settings: Settings) -> dict[str, Any]:
    """Names that the template may use."""
    entries = _entries(facts, pictures, viewer=settings.viewer_url)
    ranked, unread = _scored(entries), [entry for entry in entries if entry.unread_by_model]
    compared = _compared(facts, header)
    charts = charts_of(facts.scores, compared, facts.thresholds) if len(facts.scores) else []
    weights = {rule.finding: rule.weight for rule in facts.rules.findings}
    by_weight = sorted(weights, key=lambda finding: -weights[finding])
    total = sum(count.studies for count in facts.counts)
    return {
        "facts": facts,
        "total": total,
        "more": total - len(entries),
        "longest_wait": waited(facts.as_of - min((count.oldest for count in facts.counts), default=facts.as_of)),
        "cards": ranked[:CARDS],
        "rest": ranked[CARDS:],
        "unread": unread,
        "unread_ranks": ranges([entry.row["priority_rank"] for entry in unread]),
        "meanings": {
            category: category_meaning(category, shares_by_finding(facts.finding_rules, category))
            for category in priority.CATEGORIES
        },
        "with_heat": any(entry.picture and entry.picture.heat for entry in entries),
        "duration": duration(facts.as_of - facts.run.started_at),
        "set_aside": _set_aside(facts.night, facts.totals),
        "sentence": sentence,
        "charts": sorted(charts, key=lambda chart: by_weight.index(chart.finding)),
        "compared": compared,
        "chart_box": (WIDTH, HEIGHT),
        "ticks": TICKS,
        "drift": drifted(facts.drift, last=facts.as_of.date(), order=by_weight, rules=settings.drift),
        "drift_days": DAYS,
        "drift_films": settings.drift.min_films,
        "categories": {row.finding: row.category for row in facts.rules.findings},
        "training": _training(facts.checkpoint),
        "version": version("nightread"),
    }


def _entries(facts: Facts, pictures: Mapping[int, Picture], *, viewer: str | None) -> list[Entry]:
    return [_entry(row, facts.films[row["study_id"]], facts, pictures, viewer) for row in facts.rows]


def _scored(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if not entry.unread_by_model]


def _entry(
    row: RowMapping, films: Sequence[Film], facts: Facts, pictures: Mapping[int, Picture], viewer: str | None
) -> Entry:
    scored = [film for film in films if film.probabilities is not None]
    bars = _bars(row, scored, facts)
    film = _film_to_show(films, bars)
    return Entry(
        row=row,
        waited=waited(facts.as_of - row["received_at"]),
        films=_kinds(scored or films),
        bars=bars,
        remark=_remark(row, films),
        film=film,
        viewer=viewer_address(
            viewer, study_instance_uid=row["study_instance_uid"], accession_number=row["accession_number"]
        ),
        picture=pictures.get(film.instance_id) if film else None,
    )


def _film_to_show(films: Sequence[Film], bars: Sequence[Bar]) -> Film | None:
    """The scored film that speaks most for the first finding; of a blind study the first."""
    if bars:
        index = FINDINGS.index(bars[0].finding)
        return max((film for film in films if film.probabilities), key=lambda film: (film.probabilities or ())[index])
    return next((film for film in films if film.state == "scored"), None)


def _bars(row: RowMapping, scored: Sequence[Film], facts: Facts) -> tuple[Bar, ...]:
    """The findings to show: those that count for the category first, A before B, then those nearest to counting."""
    if not scored:
        return ()
    probabilities = priority.study_probabilities([film.probabilities or () for film in scored])
    # Another checkpoint's probabilities have other thresholds, and category D is where nothing counts.
    thresholds = facts.thresholds if row["checkpoint_id"] == facts.run.checkpoint_id else {}
    categories = {rule.finding: rule.category for rule in facts.rules.findings}
    bars = [
        Bar(
            finding=part.finding,
            category=categories[part.finding],
            probability=part.probability,
            threshold=thresholds.get(part.finding) if categories[part.finding] != "D" else None,
            beside=unusual(*facts.unusual.get((row["study_id"], part.finding), (None, None))),
        )
        for part in priority.contributions(probabilities, facts.rules)
    ]
    nearness = {bar.finding: bar.probability / max(thresholds.get(bar.finding, 1), 1e-6) for bar in bars}
    bars.sort(key=lambda bar: (bar.category if bar.reaches else "D", -nearness[bar.finding] if thresholds else 0))
    return tuple(bars[:BARS])


def _kinds(films: Iterable[Film]) -> str:
    """Views and modalities, each once, as they came: "PA and AP, DX"."""
    views = list(dict.fromkeys(film.view for film in films if film.view))
    modalities = list(dict.fromkeys(film.modality for film in films if film.modality))
    return ", ".join(" and ".join(words) for words in (views, modalities) if words)


def _remark(row: RowMapping, films: Sequence[Film]) -> str | None:
    if not row["flag"]:
        return None
    if row["flag"] in (priority.BLIND, TWO_PATIENTS):
        return sentence(row["flag"])
    reason = row["reason"] or next((film.reason for film in films if film.reason), None)
    return sentence(reason) if reason else "It still waits for the model."


def _compared(facts: Facts, header: Header | None) -> Compared | None:
    """Last week's scores; where there are too few, the checkpoint's reference."""
    if len(facts.earlier) < COMPARED_FILMS:
        return None if header is None else reference_of(header, facts.thresholds)
    earlier, name = facts.earlier, f"the {COMPARED_DAYS} days before"
    return Compared(name, "before", len(earlier), shares_of(earlier), flagged_of(earlier, facts.thresholds))


def _set_aside(night: Totals, totals: Totals) -> list[tuple[str, list[tuple[str, list[int]]]]]:
    """Not scored: for each state, reasons with counts of (studies, instances this run; the same in all)."""
    groups = []
    for state, studies, instances in SET_ASIDE:
        kept = [period.reasons.get(kind, {}) for period in (night, totals) for kind in (studies, instances)]
        rows = [(sentence(reason), [counts.get(reason, 0) for counts in kept]) for reason in kept[2] | kept[3]]
        if rows:
            groups.append((state, sorted(rows, key=lambda row: ([-count for count in row[1]], row[0]))))
    return groups


def _training(checkpoint: Checkpoint) -> str | None:
    """On how much the checkpoint was trained, where its header says so."""
    summary = checkpoint.header.get("training", {})
    films, patients = (summary.get(what, {}).get("train") for what in ("films", "patients"))
    return f"{number(films)} films of {number(patients)} patients" if films and patients else None
