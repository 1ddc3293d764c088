"""A list as a person at a terminal sees it, and as plain lines for a program behind a pipe. Neither cuts a cell."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell: TypeAlias = str | Text

WHOLE_CHARACTERS = 24  # a word up to this length is never folded: accession numbers, digests, reasons
UNBOUNDED_COLUMNS = 10_000


@dataclass(frozen=True)
class Column:
    """One column. `wide`: left out at a terminal, unless every column is asked for."""

    heading: str = ""
    right: bool = False
    wide: bool = False


@dataclass
class Listing:
    """Rows under columns; `empty` is the sentence that stands for no rows at all. `titled`: the title says what
    the rows do not, so plain lines begin with it."""

    title: str
    columns: Sequence[Column]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    empty: str = ""
    remarks: Sequence[str] = ()
    titled: bool = False
    styles: dict[int, str] = field(default_factory=dict)  # of single rows, by their number from 0

    def add(self, *cells: Cell, style: str = "") -> None:
        """Append a row."""
        self.styles[len(self.rows)] = style
        self.rows.append([_printable(cell) for cell in cells])

    def __rich__(self) -> Table:
        return self.table()

    def table(self, *, wide: bool = False) -> Table:
        """For a terminal: cells are wrapped, and folded where a word does not fit."""
        caption = "\n".join(self.remarks) or None
        with_headings = any(column.heading for column in self.columns)
        table = Table(title=self.title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD,
                      show_header=with_headings, padding=(0, 1, 0, 0), show_edge=False)  # fmt: skip
        shown = [number for number, column in enumerate(self.columns) if wide or not column.wide]
        for number in shown:
            column = self.columns[number]
            cells = (column.heading, *(str(row[number]) for row in self.rows))
            words = (word for cell in cells for word in cell.split())
            longest = max((len(word) for word in words if len(word) <= WHOLE_CHARACTERS), default=0)
            table.add_column(
                column.heading, justify="right" if column.right else "left", overflow="fold", min_width=longest
            )
        for number, row in enumerate(self.rows):
            table.add_row(*(row[column] for column in shown), style=self.styles.get(number, ""))
        return table

    def lines(self, rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
        """For a program: headings and these rows, every column, cells parted by tabs."""
        headings = [column.heading for column in self.columns]
        if any(headings):
            yield "\t".join(headings)
        for row in rows:
            yield "\t".join(str(_printable(cell)) for cell in row)


def show(*listings: Listing, console: Console, wide: bool = False) -> None:
    """Print lists to a terminal as tables, elsewhere as plain lines; an empty one as its sentence."""
    for number, listing in enumerate(listings):
        if number:
            console.print()
        if not listing.rows:
            sentences = [listing.empty or listing.title, *listing.remarks]
            console.print("\n".join(sentences), soft_wrap=True, highlight=False)
        elif console.is_terminal:
            (_unbounded(console) if wide else console).print(listing.table(wide=wide))
        else:
            _print_plain(listing, listing.rows, console, titled=listing.titled or len(listings) > 1)


def show_stream(listing: Listing, rows: Iterable[Sequence[Cell]], *, console: Console, wide: bool = False) -> None:
    """`show` for rows that memory should not hold: plain lines are written as they come. A table holds them all."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        show(listing, console=console)
    elif console.is_terminal:
        for row in chain([first], rows):
            listing.add(*row)
        show(listing, console=console, wide=wide)
    else:
        _print_plain(listing, chain([first], rows), console, titled=listing.titled)


def _unbounded(console: Console) -> Console:
    """The same terminal without its width: it wraps the lines itself."""
    return Console(file=console.file, force_terminal=True, width=UNBOUNDED_COLUMNS, markup=False, emoji=False)


def _print_plain(listing: Listing, rows: Iterable[Sequence[Cell]], console: Console, *, titled: bool) -> None:
    lines = chain([listing.title] if titled else [], listing.lines(rows), listing.remarks)
    console.file.writelines(f"{line}\n" for line in lines)


def _printable(cell: Cell) -> Cell:
    """A sender's words without what a terminal would obey, or what would end a line."""
    if isinstance(cell, Text):
        return cell
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in cell)
