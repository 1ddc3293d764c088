"""Words and formats for people."""

import pytest

from worker.wording import viewer_address

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
