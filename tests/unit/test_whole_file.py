"""Files written whole, and work begun ahead."""

import os
from pathlib import Path

import pytest

from training.imaging.look_ahead import look_ahead
from training.imaging.whole_file import remove_abandoned_parts, whole_file, write_whole


def test_a_file_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "ä\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\r\n"
    write_whole(tmp_path / "a.txt", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"two"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(tmp_path / "a") as part:
        part.write_text("half \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    with whole_file(tmp_path / "a") as part:
        name = part.name
    (tmp_path / name).symlink_to(tmp_path / "victim")
    write_whole(tmp_path / "a", "mine")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "a").is_symlink()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    kept = [".a.77.part", "a.77.part", ".a.part", ".a.x.part", "a.safetensors", ".link.7.part"]
    for path in (below / ".a.7.part", *(below / name for name in kept[:-1])):
        path.write_text("half")
        os.utime(path, (0, 0))
    os.utime(below / ".a.77.part")  # it is being written
    (below / ".link.7.part").symlink_to(below / "a.safetensors")
    assert remove_abandoned_parts(tmp_path) == 1
    assert sorted(path.name for path in below.iterdir()) == sorted(kept)
    assert remove_abandoned_parts(tmp_path / "missing") == 0


def test_work_is_begun_a_bounded_number_of_items_ahead_and_comes_in_order() -> None:
    begun: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        return item

    ahead = look_ahead(begin, range(10), depth=3)
    assert next(ahead) == 0
    assert begun == [0, 1, 2, 3]
    assert list(ahead) == list(range(1, 10))
    assert list(look_ahead(begin, range(2), depth=5)) == [0, 1]
