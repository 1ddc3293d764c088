"""The documentation: links lead to files, the index knows every page, and the commands exist."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from worker.cli.app import app

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


def commands(page: Path) -> list[list[str]]:
    """The words after `nightread` wherever a page shows a command, up to a comment or the end of its line."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"(?:^ {4}(?:\S*/)?|`)nightread ([^`#\n]+)", text, flags=re.MULTILINE)
    return [re.findall(r"[^\s\[\]]+", line) for line in shown]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: page.relative_to(REPOSITORY).as_posix()
)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    for line in commands(page):
        command: Any = typer.main.get_command(app)
        words = list(line)
        while words and (subcommands := getattr(command, "commands", {})):
            names = words.pop(0).split("|")  # `policy show|edit|activate` names three
            assert set(names) <= set(subcommands), line
            command = subcommands[names[0]]
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_module_that_a_page_starts_exists() -> None:
    modules = {
        name for page in PAGES for name in re.findall(r"python -m (tests[\w.]+)", page.read_text(encoding="utf-8"))
    }
    assert modules
    assert [name for name in sorted(modules) if not importlib.util.find_spec(name)] == []
