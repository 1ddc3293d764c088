"""Words and formats for people: durations, shares, counts and moments."""

from collections.abc import Mapping
from datetime import datetime, timedelta
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


def number(count: int) -> str:
    """12345 -> 12,345."""
    return f"{count:,}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """1 film, 12,345 films."""
    return f"{number(count)} {noun if count == 1 else plural or noun + 's'}"


def day(time: datetime) -> str:
    """Monday, 23 November 2026, in local time."""
    return f"{time.astimezone():%A, %-d %B %Y}"


def moment(time: datetime) -> str:
    """Local day and time, with the zone."""
    return f"{time.astimezone():%-d %B, %H:%M %Z}"


def clock(time: datetime) -> str:
    """Local time of day."""
    return f"{time.astimezone():%H:%M}"


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
