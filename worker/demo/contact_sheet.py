"""The top of a worklist as one picture: what to read first, at a glance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom

INK, QUIET, PAPER, CARD, TRACK = (236, 240, 245), (138, 149, 165), (11, 14, 19), (21, 26, 34), (40, 48, 60)
CATEGORIES: dict[str, tuple[Colour, str]] = {
    "STAT": ((236, 240, 245), "by a person"),
    "A": ((255, 84, 76), "now"),
    "B": ((246, 166, 35), "soon"),
    "C": ((72, 166, 255), "today"),
    "D": ((122, 138, 156), "can wait"),
}

SCALE = 2  # everything is drawn twice as large and reduced, because Pillow's shapes have hard edges
MARGIN, GAP = 36, 20
CARD_WIDTH, FILM_HEIGHT, TEXT_HEIGHT = 368, 368, 148
HEADER, FOOTER = 104, 60
BARS = 3
COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class Card:
    """One study of the worklist.

    findings: (name, probability in [0, 1]), most telling first; `found`: how many of them reach their threshold.
    thumbnail: uint8 (h, w) of any size, white = dense.
    flag: a few words in the corner of the film (overdue, partly scored); "" for none.
    """

    rank: int
    title: str
    category: str
    note: str
    findings: tuple[tuple[str, float], ...]
    found: int
    flag: str
    thumbnail: NDArray[np.uint8]


def contact_sheet(cards: Sequence[Card], *, heading: str, note: str) -> Image.Image:
    """Cards in reading order, row by row, on a dark page; `note` stands under them in small type."""
    rows = -(-len(cards) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * CARD_WIDTH + (COLUMNS - 1) * GAP
    height = HEADER + rows * (FILM_HEIGHT + TEXT_HEIGHT + GAP) - GAP + FOOTER
    page = Page(width, height)
    page.text((MARGIN, 38), heading, size=30)
    right = float(width - MARGIN)
    for category, (colour, meaning) in reversed(CATEGORIES.items()):
        right -= page.text((right, 38), f"{category} {meaning}", size=16, colour=QUIET, anchor="rm") + 10
        page.box((right - 10, 33, right, 43), colour, radius=5)
        right -= 28
    for index, card in enumerate(cards):
        row, column = divmod(index, COLUMNS)
        _draw_card(page, card, MARGIN + column * (CARD_WIDTH + GAP), HEADER + row * (FILM_HEIGHT + TEXT_HEIGHT + GAP))
    page.text((MARGIN, height - FOOTER / 2), note, size=16, colour=QUIET)
    return page.image.reduce(SCALE)


class Page:
    """A drawing in page units (1 = one pixel of the finished sheet)."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self, at: tuple[float, float], text: str, *, size: float, colour: Colour = INK, anchor: str = "lm"
    ) -> float:
        """Write one line; returns its width."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, fill=colour, font=font, anchor=anchor)
        return self._draw.textlength(text, font=font) / SCALE

    def box(self, box: Box, colour: Colour, *, radius: float = 0) -> None:
        self._draw.rounded_rectangle([edge * SCALE for edge in box], radius * SCALE, fill=colour)

    def picture(self, film: NDArray[np.uint8], box: Box) -> None:
        """Show the whole film in a box, enlarged or reduced, on black."""
        left, top, right, bottom = (round(edge * SCALE) for edge in box)
        image = Image.fromarray(film)
        zoom = min((right - left) / image.width, (bottom - top) / image.height)
        image = image.resize((round(image.width * zoom), round(image.height * zoom)), Image.Resampling.LANCZOS)
        self.image.paste(image, ((left + right - image.width) // 2, (top + bottom - image.height) // 2))


def _draw_card(page: Page, card: Card, x: float, y: float) -> None:
    colour, _ = CATEGORIES[card.category]
    right, bottom = x + CARD_WIDTH, y + FILM_HEIGHT
    page.box((x, y, right, bottom + TEXT_HEIGHT), CARD, radius=10)
    page.box((x, y, right, bottom), (0, 0, 0))
    page.picture(card.thumbnail, (x, y, right, bottom))
    page.box((x, bottom, right, bottom + 5), colour)
    page.box((x, y, x + 44 + 16 * len(str(card.rank)) + 12 * len(card.category), y + 46), colour)
    after = page.text((x + 14, y + 23), str(card.rank), size=27, colour=PAPER)
    page.text((x + 14 + after + 12, y + 25), card.category, size=20, colour=PAPER)
    if card.flag:
        page.box((right - 30 - 8 * len(card.flag), y + 10, right - 10, y + 38), INK, radius=14)
        page.text((right - 20 - 4 * len(card.flag), y + 24), card.flag, size=15, colour=PAPER, anchor="mm")
    page.text((x + 16, bottom + 28), card.title, size=18)
    page.text((right - 16, bottom + 28), card.note, size=16, colour=QUIET, anchor="rm")
    for line, (finding, probability) in enumerate(card.findings[:BARS]):
        at = (x + 16, bottom + 58 + 30 * line)
        _draw_bar(page, finding, probability, at, colour if line < card.found else QUIET)


def _draw_bar(page: Page, finding: str, probability: float, at: tuple[float, float], colour: Colour) -> None:
    x, y = at
    start, end = x + 158, x + CARD_WIDTH - 84
    page.text((x, y), finding.replace("_", " "), size=16, colour=INK)
    page.box((start, y - 5, end, y + 5), TRACK, radius=5)
    page.box((start, y - 5, start + max(10.0, (end - start) * probability), y + 5), colour, radius=5)
    page.text((x + CARD_WIDTH - 32, y), f"{probability:.0%}", size=16, colour=INK, anchor="rm")
