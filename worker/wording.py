"""Words and formats for people: durations, shares, counts and moments."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any
from urllib.parse import quote


def in_words(code: str) -> str:
    """Pleural_Thickening -> Pleural thickening."""
    return code.replace("_", " ").capitalize()


def percent(share: float | None) -> str:
    """A probability or a share as people say it; small ones are not rounded to nothing."""
    if share is None:
        return "–"
    return "< 1\u00a0%" if 0 < share < 0.01 else f"{100 * share:.0f}\u00a0%"


def times(lift: float | None) -> str:
    """How many times the usual a probability is: 0.4, 4.2, 12; a dash where no reference says what is usual."""
    if lift is None:
        return "–"
    return f"{lift:.1f}" if lift < 9.95 else f"{lift:.0f}"


def unusual(lift: float | None, share: float | None) -> str:
    """A probability beside those of the reference films; nothing where there is no reference."""
    parts = [] if lift is None else [f"{times(lift)}\u00a0times the usual"]
    return ", ".join(parts if share is None else [*parts, f"top {percent(share)} of films"])


def category_meaning(category: str, shares: Mapping[str, float | None]) -> str:
    """The reason why studies are in a category.

    shares: its findings, each with the share of films that it flags (None: not known).
    """
    if category == "D":
        return "no finding of another category reaches its threshold"
    if not shares:
        return ""
    if len(shares) == 1:
        ((finding, share),) = shares.items()
        films = "the films that show most" if share is None else f"the top {percent(share)} of films by"
        return f"{films} suspicion of {in_words(finding).lower()}"
    each = [
        in_words(finding).lower() + ("" if share is None else f" (top {percent(share)})")
        for finding, share in shares.items()
    ]
    return f"suspicion of {', '.join(each[:-1])} or {each[-1]}"


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in words: 3, 7 to 12 and 20."""
    runs: list[list[int]] = []
    for each in numbers:
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    words = [f"{number(run[0])} to {number(run[-1])}" if len(run) > 1 else number(run[0]) for run in runs]
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def number(count: int) -> str:
    """12345 -> 12,345."""
    return f"{count:,}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """1 film, 12,345 films."""
    return f"{number(count)} {noun if count == 1 else plural or noun + 's'}"


def day(time: datetime, zone: tzinfo | None = None) -> str:
    """Monday, 23 November 2026, in a time zone; None: this machine's."""
    return f"{time.astimezone(zone):%A, %-d %B %Y}"


def moment(time: datetime, zone: tzinfo | None = None) -> str:
    """Local day and time, with the zone."""
    return f"{time.astimezone(zone):%-d %B, %H:%M %Z}"


def clock(time: datetime, zone: tzinfo | None = None) -> str:
    """Local time of day."""
    return f"{time.astimezone(zone):%H:%M}"


def day_and_clock(time: datetime, zone: tzinfo | None = None) -> str:
    """23 Nov 22:40, in local time."""
    return f"{time.astimezone(zone):%-d %b %H:%M}"


def minute(time: datetime | None) -> str:
    """2026-11-23 22:40, in this machine's zone; a dash where there is none."""
    return "-" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M}"


def duration(span: timedelta) -> str:
    """A span in seconds below two minutes, else as waiting times are told."""
    seconds = max(0, round(span.total_seconds()))
    return f"{seconds} s" if seconds < 120 else waited(span)


def waited(duration: Any) -> str:
    """A duration as 5 min or 3 h 20."""
    minutes = max(0, int(duration.total_seconds() // 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def notes(row: Mapping[str, Any]) -> str:
    """STAT, overdue and flags in words."""
    words = ["STAT"] if row["stat"] else []
    words += ["overdue"] if row["overdue"] else []
    words += [str(row["flag"]).replace("_", " ")] if row["flag"] else []
    return ", ".join(words)


def viewer_address(template: str | None, *, study_instance_uid: str, accession_number: str | None) -> str | None:
    """The viewer's address for a study; None where there is no template, or the study lacks what it names."""
    for name, value in (("study_instance_uid", study_instance_uid), ("accession_number", accession_number)):
        if template is None or (f"{{{name}}}" in template and not value):
            return None
        template = template.replace(f"{{{name}}}", quote(value or "", safe=""))
    return template


FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")


def spreadsheet_cell(value: Any) -> Any:
    """A CSV value that no spreadsheet takes for a formula: such a text gets the apostrophe that marks text there."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_BEGINS) else value


def spreadsheet_text(cell: str) -> str:
    """The text that `spreadsheet_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_BEGINS) else cell
