"""CSV from a RIS: which studies were read, and what radiologists confirmed (docs/how-to/read-and-review.md).

A row that makes no sense becomes a Problem with its line; the whole file is refused only when its columns are wrong.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias, TypeVar

from db.reading import Opinion, Reading
from training.findings import FINDINGS, column
from worker.wording import spreadsheet_text

STUDY_COLUMNS = ("study_instance_uid", "accession_number")
VERDICTS = {"present": "present", "absent": "absent", "not_assessed": "not_assessed", "1": "present", "0": "absent"}
KEYS = {column(finding): finding for finding in FINDINGS}

Fields: TypeAlias = dict[str, str]
T = TypeVar("T", Reading, Opinion)


class WrongFile(ValueError):
    """The file is no table of the kind that is asked for; the text says what is missing."""


class WrongValue(ValueError):
    """A field that cannot be understood; the text says which and why, without repeating an identifier."""


@dataclass(frozen=True)
class Problem:
    """A line of the file (the header is line 1) that was left out, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Defaults:
    """Defaults for what a file leaves out: the reader, and the zone of times without one."""

    reader: str | None = None
    zone: tzinfo | None = None


def readings(path: Path, defaults: Defaults) -> Iterator[tuple[int, Reading] | Problem]:
    """Rows of study_instance_uid or accession_number, and read_at, read_by if they are there. Raises WrongFile."""

    def parse(fields: Fields) -> list[Reading]:
        reader = fields.get("read_by") or defaults.reader
        return [Reading(_study(fields), moment(fields.get("read_at"), defaults.zone), reader)]

    return _parsed(path, parse, also=())


def opinions(path: Path, defaults: Defaults) -> Iterator[tuple[int, Opinion] | Problem]:
    """Rows of one finding (columns finding, verdict) or of several (a column per finding). Raises WrongFile.

    In a column per finding an empty field says nothing: it is neither absent nor not_assessed.
    """

    def parse(fields: Fields) -> list[Opinion]:
        reader = fields.get("reader") or defaults.reader
        if not reader:
            raise WrongValue("no reader: fill the column reader, or give --reader")
        verdicts = [(fields["finding"], fields.get("verdict", ""))] if "finding" in fields else _verdicts_of(fields)
        if not verdicts:
            raise WrongValue("no finding has a verdict")
        study, at = _study(fields), moment(fields.get("reviewed_at"), defaults.zone)
        return [Opinion(study, finding_key(name), verdict(word), reader, at) for name, word in verdicts]

    return _parsed(path, parse, also=("finding", *KEYS))


def _verdicts_of(fields: Fields) -> list[tuple[str, str]]:
    return [(name, word) for name, word in fields.items() if name in KEYS and word]


def _parsed(
    path: Path, parse: Callable[[Fields], Sequence[T]], *, also: Sequence[str]
) -> Iterator[tuple[int, T] | Problem]:
    for line, fields in _rows(path, also=also):
        try:
            if isinstance(fields, str):
                raise WrongValue(fields)
            for row in parse(fields):
                yield line, row
        except WrongValue as error:
            yield Problem(line, str(error))


def _rows(path: Path, *, also: Sequence[str]) -> Iterator[tuple[int, Fields | str]]:
    """Line number and fields by lower-case column name, or what is wrong with the line; empty lines are passed."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            names = [_plain(name) for name in next(csv.reader([header], delimiter=separator), [])]
            try:
                _check_columns(names, also=also)
            except WrongFile as wrong:
                raise WrongFile(f"{path} {wrong}") from wrong
            rows = csv.reader(file, delimiter=separator, strict=True)
            while True:
                try:
                    values = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield rows.line_num + 1, f"it is no CSV: {error}"
                    continue
                if any(value.strip() for value in values):
                    yield rows.line_num + 1, _fields(names, values)
    except UnicodeDecodeError as error:
        raise WrongFile(f"{path} is not UTF-8 text; save it as CSV UTF-8") from error
    except csv.Error as error:
        raise WrongFile(f"{path} is no CSV: {error}") from error


def _plain(name: str) -> str:
    """A column's or a finding's name as it is written here, whatever its case and whatever parts its words."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _fields(names: Sequence[str], values: Sequence[str]) -> Fields | str:
    if len(values) > len(names):
        return "it has more fields than the header"
    if any("\0" in value for value in values):  # PostgreSQL's text holds everything else
        return "it holds a NUL character"
    return dict(zip(names, (spreadsheet_text(value.strip()) for value in values), strict=False))


def _check_columns(names: Sequence[str], *, also: Sequence[str]) -> None:
    if not set(names) & set(STUDY_COLUMNS):
        raise WrongFile("has no column study_instance_uid or accession_number in its first line")
    if also and not set(names) & set(also):
        raise WrongFile("has no column finding, and none named like a finding, in its first line")
    for name in names if also else ():
        if name not in KEYS and (meant := get_close_matches(name, KEYS, cutoff=0.8)):
            raise WrongFile(f"has a column {name!r}, which is no finding: is it {meant[0]}?")
    if len(set(names)) < len(names):
        raise WrongFile("has two columns of the same name")


def _study(fields: Fields) -> str:
    name = next((fields[column] for column in STUDY_COLUMNS if fields.get(column)), None)
    if name is None:
        raise WrongValue("no study: both study_instance_uid and accession_number are empty or missing")
    return name


def moment(text: str | None, zone: tzinfo | None) -> datetime | None:
    """An ISO 8601 moment, in `zone` if it names none itself; None for no text. Raises WrongValue."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        in_utc = (at if at.tzinfo else at.replace(tzinfo=zone or UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:  # the calendar's first day has no moment in UTC everywhere
        raise WrongValue("the time is not ISO 8601, as 2026-11-20T23:15:00+01:00") from error
    if at.tzinfo is None and zone is None:
        raise WrongValue("the time has no zone: write its offset (+01:00), or give --time-zone")
    return in_utc


def finding_key(name: str) -> str:
    """The finding's key, whatever its case. Raises WrongValue."""
    key = KEYS.get(_plain(name))
    if key is None:
        raise WrongValue(f"no finding is called {name[:32]!r}; there are {', '.join(FINDINGS)}")
    return key


def verdict(word: str) -> str:
    """present, absent or not_assessed; 1 and 0 stand for the first two. Raises WrongValue."""
    found = VERDICTS.get(word.strip().lower().replace(" ", "_"))
    if found is None:
        raise WrongValue(f"a verdict is present, absent or not_assessed, not {word[:32]!r}")
    return found
