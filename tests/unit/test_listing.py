"""Lists: whole at a terminal of 80 columns, plain behind a pipe."""

import io
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime

import pytest
from rich.console import Console

from worker.terminal.listing import Column, Listing, show, show_stream
from worker.terminal.tables import worklist_row, worklist_table

UID = "1.3.6.1.4.1.11129.5.5.110503645592756492463169821050252582267888"
ROW = {
    "priority_rank": 1, "category": "A", "urgency": 1.25, "top_finding": "Pleural_Thickening", "top_probability": 0.97,
    "accession_number": "CT:100:7-ABCDEFG", "study_instance_uid": UID, "received_at": datetime.now(UTC), "stat": True,
    "overdue": True, "flag": "partly_scored", "top_lift": 12.3, "top_share": 0.03,
}  # fmt: skip


def shown(listing: Listing, *, terminal: bool, wide: bool = False, width: int = 80) -> str:
    file = io.StringIO()
    show(
        listing,
        console=Console(file=file, force_terminal=terminal, width=width, color_system=None, emoji=False),
        wide=wide,
    )
    return file.getvalue()


def worklist(*rows: Mapping[str, object], shared: Collection[str] = ()) -> Listing:
    listing = worklist_table()
    for row in rows:
        listing.add(*worklist_row(row, shared=shared))
    return listing


def test_a_narrow_terminal_shows_accession_numbers_whole_and_within_its_width():
    text = shown(worklist(ROW), terminal=True)
    assert "CT:100:7-ABCDEFG" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_study_without_an_accession_number_of_its_own_is_named_by_its_uid():
    rows = [ROW | {"accession_number": None}, ROW | {"study_instance_uid": f"{UID}.1"}, ROW | {"accession_number": "A"}]
    listing = worklist(*rows, shared={str(ROW["accession_number"])})
    cells = [line.split("\t")[7] for line in shown(listing, terminal=False).splitlines()[1:]]
    assert cells == [UID, f"{UID}.1", "A"]


def test_a_long_uid_is_folded_and_never_cut():
    text = shown(worklist(ROW | {"accession_number": None}), terminal=True)
    heading = next(line for line in text.splitlines() if "Study" in line)
    cell = slice(heading.index("Study"), heading.index("Waits"))
    assert UID in "".join(line[cell].split()[0] for line in text.splitlines()[3:] if line[cell].strip())
    assert "…" not in text


def test_words_that_do_not_all_fit_are_folded_and_no_column_is_cut():
    listing = Listing("x", [Column(heading) for heading in ("reason", "accession number", "Study", "file")])
    cells = ("modality_not_accepted", "2008050417172310", UID, "/work/shared/data/dicom/rare/pylibjpeg-data.dcm")
    listing.add(*cells)
    listing.add("x", "12345", "1.2.3", "/a/b-twenty-letters-long")

    def letters(width: int) -> list[str]:
        return sorted("".join(shown(listing, terminal=True, width=width).split()).replace("─", ""))

    for width in (80, 60, 40):
        assert max(map(len, shown(listing, terminal=True, width=width).splitlines())) <= width
        assert letters(width) == letters(1000)


def test_wide_shows_every_column_in_one_line():
    lines = shown(worklist(ROW), terminal=True, wide=True).splitlines()
    assert any(UID in line and "CT:100:7-ABCDEFG" in line and "1.250" in line for line in lines)


def test_a_pipe_gets_one_line_to_a_row_with_every_column():
    heading, row = shown(worklist(ROW), terminal=False).splitlines()
    assert heading.split("\t")[0] == "#"
    assert UID in row.split("\t")


@pytest.mark.parametrize("terminal", [True, False])
def test_no_rows_are_a_sentence(terminal):
    assert shown(worklist(), terminal=terminal) == "Nothing waits to be read.\n"


def test_a_pipe_gets_each_row_before_the_next_one_is_asked_for():
    file, lines_before = io.StringIO(), []

    def rows() -> Iterator[list[str]]:
        for number in range(3):
            lines_before.append(len(file.getvalue().splitlines()))
            yield [str(number)]

    show_stream(Listing("x", [Column("n")]), rows(), console=Console(file=file, width=80))
    assert lines_before == [0, 2, 3]
    assert file.getvalue() == "n\n0\n1\n2\n"


def test_a_stream_is_a_table_at_a_terminal_and_a_sentence_when_it_is_empty():
    for rows, expected in (([["a"], ["b"]], "n\n"), ([], "None.\n")):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=80, color_system=None)
        show_stream(Listing("", [Column("n")], empty="None."), rows, console=console)
        assert expected in file.getvalue().replace(" ", "")


def test_a_senders_words_can_neither_drive_the_terminal_nor_end_a_line():
    listing = Listing("x", [Column("file")])
    listing.add("a\x1b[2J\tb\nc:100:")
    for terminal in (True, False):
        text = shown(listing, terminal=terminal)
        assert "\x1b" not in text
        assert "c:100:" in text
    assert len(shown(listing, terminal=False).splitlines()) == 2


def test_two_disciplines_can_be_told_apart_at_80_columns():
    listing = Listing(
        "x", [Column("group"), Column("discipline"), *[Column(n, right=True) for n in ("a", "b", "c", "d")]]
    )
    for discipline in ("nightread, maximum", "nightread, category"):
        listing.add("Consolidation", discipline, "12,345", "123.4 ± 12.3", "1234.5 ± 123.4", "123.4 ± 12.3")
    text = shown(listing, terminal=True)
    assert "maximum" in text
    assert "category" in text
    assert "…" not in text
