"""Films are found where they lie, each once, and never by guessing between two."""

import zipfile
from pathlib import Path

import pytest

from training.sources import AmbiguousImage, Encoded, encoded_films


def found(*at: Path, rows: dict[str, int]) -> list[Encoded]:
    return list(encoded_films(at, rows, on_damage=lambda _: pytest.fail("no archive here is damaged")))


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_a_film_is_found_by_the_end_of_its_path(tmp_path: Path) -> None:
    write(tmp_path, "p1/film.png", "deep/p2/film.png", "p1/other.png")
    assert sorted(found(tmp_path, rows={"p1/film.png": 4, "p2/film.png": 9})) == [
        (4, b"p1/film.png"),
        (9, b"deep/p2/film.png"),
    ]


def test_two_files_for_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a/film.png", "b/film.png")
    with pytest.raises(AmbiguousImage, match="both answer to"):
        found(tmp_path, rows={"film.png": 0})


def test_an_exact_name_goes_before_a_deeper_one(tmp_path: Path) -> None:
    write(tmp_path, "film.png", "backup/film.png")
    assert found(tmp_path, rows={"film.png": 0}) == [(0, b"film.png")]


def test_a_second_copy_in_a_later_source_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "first/film.png", "second/film.png")
    assert found(tmp_path / "first", tmp_path / "second", rows={"film.png": 0}) == [(0, b"first/film.png")]


def test_archives_inside_a_folder_are_read(tmp_path: Path) -> None:
    write(tmp_path, "loose/film.png")
    with zipfile.ZipFile(tmp_path / "images_01.zip", "w") as opened:
        opened.writestr("images/packed.png", b"packed")
        opened.writestr("__MACOSX/images/._packed.png", b"a resource fork")
    assert found(tmp_path, rows={"film.png": 0, "packed.png": 1}) == [(0, b"loose/film.png"), (1, b"packed")]


def test_a_damaged_member_is_an_empty_film_and_its_neighbours_are_whole(tmp_path: Path) -> None:
    archive = tmp_path / "films.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.png", b"A" * 100)
        opened.writestr("b.png", b"B" * 100)
    archive.write_bytes(archive.read_bytes().replace(b"A" * 100, b"A" * 50 + b"x" * 50))
    assert found(archive, rows={"a.png": 0, "b.png": 1}) == [(0, b""), (1, b"B" * 100)]


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        found(tmp_path / "nowhere.zip", rows={"film.png": 0})
