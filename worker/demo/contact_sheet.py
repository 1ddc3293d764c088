"""The top of a worklist as one picture: what to read first, at a glance. Serves phantoms and real studies alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK, QUIET, PAPER, CARD, TRACK = (236, 240, 245), (138, 149, 165), (11, 14, 19), (21, 26, 34), (40, 48, 60)
CATEGORY_COLOURS: dict[str, Colour] = {
    "A": (255, 84, 76),
    "B": (246, 166, 35),
    "C": (72, 166, 255),
    "D": (122, 138, 156),
}

SCALE = 2  # everything is drawn twice as large and reduced, because Pillow's shapes have hard edges
MARGIN, GAP = 36, 20
CARD_WIDTH, FILM_HEIGHT, TEXT_HEIGHT = 368, 368, 148
HEADER, FOOTER = 104, 60
BARS = 3


@dataclass(frozen=True, kw_only=True)
class Card:
    """One study of the worklist.

    findings: (name, probability in [0, 1]), most telling first; empty where no model could score the study.
    thumbnail: uint8 (h, w) of any size, white = dense; None where there is no picture to show.
    flag: a few words in the corner of the film (STAT, overdue, why it was not scored); "" for none.
    """

    rank: int
    title: str
    category: str
    urgency: float | None
    findings: tuple[tuple[str, float], ...]
    flag: str = ""
    thumbnail: NDArray[np.uint8] | None = None


def save_contact_sheet(path: Path, cards: Sequence[Card], *, heading: str, note: str, columns: int = 4) -> Path:
    """Write the sheet as PNG and return its path; `note` stands under the films in small type."""
    contact_sheet(cards, heading=heading, note=note, columns=columns).save(path)
    return path


def contact_sheet(cards: Sequence[Card], *, heading: str, note: str, columns: int = 4) -> Image.Image:
    """Cards in reading order, row by row, on a dark page."""
    rows = -(-len(cards) // columns)
    width = 2 * MARGIN + columns * CARD_WIDTH + (columns - 1) * GAP
    height = HEADER + rows * (FILM_HEIGHT + TEXT_HEIGHT + GAP) - GAP + FOOTER
    page = Page(width, height)
    page.text((MARGIN, 38), heading, size=30)
    page.legend((width - MARGIN, 38))
    for index, card in enumerate(cards):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (CARD_WIDTH + GAP), HEADER + row * (FILM_HEIGHT + TEXT_HEIGHT + GAP)
        _draw_card(page, card, x, y)
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

    def box(self, box: tuple[float, float, float, float], colour: Colour, *, radius: float = 0) -> None:
        """Fill (left, top, right, bottom)."""
        self._draw.rounded_rectangle([edge * SCALE for edge in box], radius * SCALE, fill=colour)

    def pill(self, right: float, top: float, text: str, *, colour: Colour, ink: Colour) -> None:
        """A label that ends at `right`."""
        width = self._draw.textlength(text, font=ImageFont.load_default(15 * SCALE)) / SCALE + 22
        self.box((right - width, top, right, top + 28), colour, radius=14)
        self.text((right - width / 2, top + 14), text, size=15, colour=ink, anchor="mm")

    def picture(self, film: NDArray[np.uint8], box: tuple[float, float, float, float]) -> None:
        """Show the whole film in a box, enlarged or reduced, on black."""
        left, top, right, bottom = (round(edge * SCALE) for edge in box)
        image = Image.fromarray(film)
        zoom = min((right - left) / image.width, (bottom - top) / image.height)
        image = image.resize((round(image.width * zoom), round(image.height * zoom)), Image.Resampling.LANCZOS)
        self.image.paste(image, ((left + right - image.width) // 2, (top + bottom - image.height) // 2))

    def legend(self, right_middle: tuple[float, float]) -> None:
        """The four categories, right-aligned."""
        right, y = right_middle
        for category, meaning in (("D", "can wait"), ("C", "today"), ("B", "soon"), ("A", "now")):
            right -= self.text((right, y), f"{category} {meaning}", size=16, colour=QUIET, anchor="rm") + 10
            self.box((right - 10, y - 5, right, y + 5), CATEGORY_COLOURS[category], radius=5)
            right -= 28


def _draw_card(page: Page, card: Card, x: float, y: float) -> None:
    colour = CATEGORY_COLOURS.get(card.category, QUIET)
    right, bottom = x + CARD_WIDTH, y + FILM_HEIGHT
    page.box((x, y, right, bottom + TEXT_HEIGHT), CARD, radius=10)
    page.box((x, y, right, bottom), (0, 0, 0))
    if card.thumbnail is not None:
        page.picture(card.thumbnail, (x, y, right, bottom))
    else:
        page.text(((x + right) / 2, (y + bottom) / 2), "no picture", size=18, colour=QUIET, anchor="mm")
    page.box((x, bottom, right, bottom + 5), colour)
    page.box((x, y, x + 56 + 16 * len(str(card.rank)), y + 46), colour)
    after = page.text((x + 14, y + 23), str(card.rank), size=27, colour=PAPER)
    page.text((x + 14 + after + 12, y + 25), card.category, size=20, colour=PAPER)
    if card.flag:
        page.pill(right - 10, y + 10, card.flag, colour=INK, ink=PAPER)
    page.text((x + 16, bottom + 28), card.title, size=18)
    urgency = "not scored" if card.urgency is None else f"urgency {card.urgency:.2f}"
    page.text((right - 16, bottom + 28), urgency, size=16, colour=QUIET, anchor="rm")
    for line, (finding, probability) in enumerate(card.findings[:BARS]):
        _draw_bar(page, finding, probability, (x + 16, bottom + 58 + 30 * line), colour if line == 0 else QUIET)


def _draw_bar(page: Page, finding: str, probability: float, at: tuple[float, float], colour: Colour) -> None:
    x, y = at
    start, end = x + 158, x + CARD_WIDTH - 84
    page.text((x, y), finding.replace("_", " "), size=16, colour=INK)
    page.box((start, y - 5, end, y + 5), TRACK, radius=5)
    page.box((start, y - 5, start + max(10.0, (end - start) * probability), y + 5), colour, radius=5)
    page.text((x + CARD_WIDTH - 32, y), f"{probability:.0%}", size=16, colour=INK, anchor="rm")
