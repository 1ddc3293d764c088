"""The contact sheet: any rows, one picture."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from worker.demo.contact_sheet import CARD_WIDTH, CATEGORIES, COLUMNS, Card, contact_sheet


def card(rank: int = 1, **changes: Any) -> Card:
    values: dict[str, Any] = {
        "rank": rank,
        "title": f"A{rank}",
        "category": "A",
        "note": "urgency 0.90",
        "findings": (("Pneumothorax", 0.8), ("Mass", 0.1)),
        "found": 1,
        "flag": "",
        "thumbnail": np.full((120, 90), 128, np.uint8),
    }
    return Card(**(values | changes))


def colours(image: Image.Image) -> set[tuple[int, int, int]]:
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)}


@pytest.mark.parametrize(("cards", "rows"), [(1, 1), (4, 1), (5, 2), (9, 3)])
def test_the_sheet_grows_by_rows(cards: int, rows: int) -> None:
    one = contact_sheet([card()], heading="", note="")
    sheet = contact_sheet([card(rank) for rank in range(cards)], heading="", note="")
    assert sheet.width == one.width > COLUMNS * CARD_WIDTH
    assert (sheet.height - one.height) % max(rows - 1, 1) == 0
    assert (sheet.height > one.height) == (rows > 1)


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_each_category_has_its_colour(category: str) -> None:
    others = set(CATEGORIES) - {category, "STAT"}  # STAT's white is also the ink's
    sheet = contact_sheet([card(category=category)], heading="", note="").crop((0, 100, 450, 700))
    assert CATEGORIES[category][0] in colours(sheet)
    assert not {CATEGORIES[other][0] for other in others} & colours(sheet)


def test_a_longer_bar_for_a_higher_probability() -> None:
    red = [
        int(
            (np.asarray(contact_sheet([card(findings=(("Mass", p),))], heading="", note="")) == (255, 84, 76))
            .all(2)
            .sum()
        )
        for p in (0.2, 0.9)
    ]
    assert red[1] > red[0] + 300


def test_a_study_without_scores_still_has_a_card() -> None:
    sheet = contact_sheet([card(note="", findings=(), flag="not scored")], heading="", note="")
    assert sheet.getbbox() is not None


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2000, 500), (300, 900), (1, 1)])
def test_films_of_any_shape_are_shown_whole(shape: tuple[int, int]) -> None:
    sheet = contact_sheet([card(thumbnail=np.full(shape, 200, np.uint8), category="D")], heading="", note="")
    assert (200, 200, 200) in colours(sheet)


def test_an_empty_list_makes_an_empty_sheet() -> None:
    assert contact_sheet([], heading="Nothing waits", note="").height > 0
