"""Words and formats for people."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from worker.wording import category_meaning, minute, ranges, times, unusual, viewer_address

UID = "1.2.840.1"


@pytest.mark.parametrize(
    ("template", "accession_number", "address"),
    [
        (None, "A1", None),
        ("https://pacs.example/?study={study_instance_uid}", None, "https://pacs.example/?study=1.2.840.1"),
        ("https://pacs.example/{accession_number}", None, None),
        ("https://pacs.example/{accession_number}", "A 1/&#", "https://pacs.example/A%201%2F%26%23"),
        ("https://pacs.example/{accession_number}", "{study_instance_uid}", "https://pacs.example/%7Bstudy_instance_uid%7D"),
    ],
)  # fmt: skip
def test_a_viewers_address_names_the_study_and_nothing_else(
    template: str | None, accession_number: str | None, address: str | None
):
    assert viewer_address(template, study_instance_uid=UID, accession_number=accession_number) == address


def test_how_unusual_a_probability_is_reads_as_a_sentence_and_says_nothing_without_a_reference():
    assert unusual(4.237, 0.03) == "4.2\u00a0times the usual, top 3\u00a0% of films"
    assert unusual(None, None) == ""
    assert [times(lift) for lift in (0.04, 1.0, 9.96, 31.7, None)] == ["0.0", "1.0", "10", "32", "–"]


def test_a_category_is_called_what_it_is():
    assert category_meaning("A", {"Pneumothorax": 0.13}) == "the top 13\u00a0% of films by suspicion of pneumothorax"
    assert category_meaning("A", {"Pneumothorax": None}) == "the films that show most suspicion of pneumothorax"
    both = category_meaning("B", {"Effusion": 0.1, "Pleural_Thickening": None})
    assert both == "suspicion of effusion (top 10\u00a0%) or pleural thickening"
    assert "no finding" in category_meaning("D", {"Hernia": 0.1})
    assert category_meaning("C", {}) == ""


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([], ""), ([3], "3"), ([3, 4], "3 to 4"), ([1, 3, 4, 5, 9], "1, 3 to 5 and 9"), ([1, 1000], "1 and 1,000")],
)
def test_ranks_are_told_in_ranges(numbers: list[int], words: str):
    assert ranges(numbers) == words


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine in another time zone."""
    with monkeypatch.context() as there:
        there.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_lists_tell_minutes_in_this_machines_zone():
    assert minute(datetime(2026, 1, 1, 22, 40, tzinfo=UTC)) == "2026-01-02 07:40"
    assert minute(None) == "-"
