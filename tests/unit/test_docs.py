"""The documentation: links lead to files, and the index knows every page."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [*DOCS.rglob("*.md"), *REPOSITORY.glob("*.md")]
CODE = [
    path
    for folder in ("worker", "training", "db", "migrations", "docker", "tests")
    for path in (REPOSITORY / folder).rglob("*")
    if path.suffix in {".py", ".yaml", ".yml", ".json", ".j2", ".example"}
]


def links(page: Path) -> set[Path]:
    """The files that a page links to."""
    targets = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_leads_to_a_file(page: Path) -> None:
    assert [target for target in links(page) if not target.exists()] == []


def test_the_index_lists_every_page() -> None:
    assert set(DOCS.rglob("*.md")) - links(DOCS / "README.md") == {DOCS / "README.md"}


def test_every_page_that_a_file_names_exists() -> None:
    named = {
        (path.relative_to(REPOSITORY).as_posix(), name)
        for path in [*PAGES, *CODE, REPOSITORY / "Makefile"]
        for name in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert named
    assert sorted(item for item in named if not (REPOSITORY / item[1]).exists()) == []
