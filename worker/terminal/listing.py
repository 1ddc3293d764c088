"""A list as a person at a terminal sees it, and as plain lines for a program behind a pipe. Neither cuts a cell."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from worker.terminal.console import out, print_json

Cell: TypeAlias = str | Text

WHOLE_CHARACTERS = 24  # a word up to this length is not folded where there is room: accession numbers, digests, reasons
UNBOUNDED_COLUMNS = 10_000
GAP_CHARACTERS = 2  # between two columns


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

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table(width=options.max_width)

    def table(self, *, wide: bool = False, width: int = UNBOUNDED_COLUMNS) -> Table:
        """For a terminal of `width` characters: cells are wrapped, and folded where a word does not fit."""
        caption = "\n".join(self.remarks) or None
        with_headings = any(column.heading for column in self.columns)
        table = Table(title=self.title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD,
                      show_header=with_headings, padding=(0, 1, 0, 0), show_edge=False)  # fmt: skip
        shown = [number for number, column in enumerate(self.columns) if wide or not column.wide]
        for number, characters in zip(shown, self._widths(shown, width=width), strict=True):
            column = self.columns[number]
            table.add_column(
                column.heading, justify="right" if column.right else "left", overflow="fold", width=characters
            )
        for number, row in enumerate(self.rows):
            table.add_row(*(row[column] for column in shown), style=self.styles.get(number, ""))
        return table

    def _widths(self, shown: Sequence[int], *, width: int) -> list[int]:
        """The columns' widths: a long word is folded only where there is no room for it, and the longest first. Rich's
        own would be wider than the terminal, and cut, where words ask for more than their share."""
        cells = [[self.columns[n].heading, *(str(row[n]) for row in self.rows)] for n in shown]
        whole = [max(1, *map(cell_len, of_column)) for of_column in cells]
        words = [{cell_len(word) for cell in of_column for word in cell.split()} for of_column in cells]
        room = width - GAP_CHARACTERS * len(shown)
        widths = [1] * len(shown)
        for longest in range(1, WHOLE_CHARACTERS + 1):
            least = [max((n for n in lengths if n <= longest), default=1) for lengths in words]
            widths = least if sum(least) <= room else widths
        while sum(widths) < room and widths != whole:
            narrow = [n for n, characters in enumerate(widths) if characters < whole[n]]
            widths[min(narrow, key=lambda n: widths[n])] += 1
        return widths

    def lines(self, rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
        """For a program: headings and these rows, every column, cells parted by tabs."""
        headings = [column.heading for column in self.columns]
        if any(headings):
            yield "\t".join(headings)
        for row in rows:
            yield "\t".join(str(_printable(cell)) for cell in row)


def answer(found: Mapping[str, Any] | Iterable[Any], *listings: Listing, as_json: bool, wide: bool = False) -> None:
    """Print what a command found: as JSON for a program, else as lists."""
    if as_json:
        print_json(found)
    else:
        show(*listings, wide=wide)


def show(*listings: Listing, console: Console = out, wide: bool = False) -> None:
    """Print lists to a terminal as tables, elsewhere as plain lines; an empty one as its sentence."""
    for number, listing in enumerate(listings):
        if number:
            console.print()
        if not listing.rows:
            sentences = [listing.empty or listing.title, *listing.remarks]
            console.print("\n".join(sentences), soft_wrap=True, highlight=False)
        elif console.is_terminal:
            terminal = _unbounded(console) if wide else console
            terminal.print(listing.table(wide=wide, width=terminal.width))
        else:
            _print_plain(listing, listing.rows, console, titled=listing.titled or len(listings) > 1)


def show_stream(
    listing: Listing, rows: Iterable[Sequence[Cell]], *, console: Console = out, wide: bool = False
) -> None:
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
