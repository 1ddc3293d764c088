"""The retraining drill says by its exit code whether it did what it is for."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.drills import retraining_run
from tests.drills.retraining_run import PARTS, SOMETHING_LEFT_OUT, cpu_seconds, ending, was_in_the_middle


def test_a_drill_that_did_all_ends_with_0() -> None:
    assert ending(PARTS) == (0, "every part was done")


@pytest.mark.parametrize("part", PARTS)
def test_a_drill_that_left_a_part_out_ends_with_another_code_and_names_it(part: str) -> None:
    assert ending([other for other in PARTS if other != part]) == (SOMETHING_LEFT_OUT, f"LEFT OUT: {part}")


def test_a_rollback_that_came_after_the_night_or_mixed_two_checkpoints_is_none_in_its_middle() -> None:
    new, old = "a" * 12, "b" * 12
    assert was_in_the_middle([new, old], challenger="a" * 64, mixed=0)
    assert not was_in_the_middle([new], challenger="a" * 64, mixed=0)
    assert not was_in_the_middle([old], challenger="a" * 64, mixed=0)
    assert not was_in_the_middle([new, old], challenger="a" * 64, mixed=1)


def test_the_code_of_the_story_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["retraining_run"])
    monkeypatch.setattr(retraining_run, "whole_story", lambda _folder, **_settings: SOMETHING_LEFT_OUT)
    assert retraining_run.main() == SOMETHING_LEFT_OUT


def test_two_kinds_of_checkpoints_after_kills_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["retraining_run", "--kills", "1"])
    monkeypatch.setattr(retraining_run, "killed", lambda _folder, **_how: 1)
    assert retraining_run.main() == 1


def test_processor_time_counts_children_that_have_ended_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, pathlib\n"
        "subprocess.run([sys.executable, '-c', 'sum(range(20_000_000))'], check=True)\n"
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "done")]) as process:
        try:
            while not (tmp_path / "done").exists():
                assert process.poll() is None
            assert cpu_seconds([process.pid]) > 0.2
        finally:
            process.kill()
