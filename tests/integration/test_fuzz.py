"""The fuzzing drill, for less than a minute with a fixed seed; `make fuzz SECONDS=600` goes on with others."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.drills import fuzz
from worker.context import Context
from worker.monitoring.prometheus import WorkMetrics
from worker.queue.tasks import Service

SECONDS = 40


def test_what_is_damaged_by_seed_ends_in_refusals_of_ours() -> None:
    # A process of its own: it silences every log, and bounds its cases by the alarm that only a main thread may set.
    command = [sys.executable, "-m", "tests.drills.fuzz", "--seconds", f"{SECONDS}", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 found" in ended.stdout


def test_a_message_that_names_no_row_does_nothing(context: Context) -> None:
    strange: list[Any] = [10**40, -1, "7", None, [7], 7.5, {"id": 7}]
    for study_id in strange:
        Service(context, metrics=WorkMetrics()).score(study_id)


def test_a_find_is_made_small_and_told_with_the_command_that_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def fails_on_braces(data: bytes) -> None:
        if b"{" in data:
            raise ZeroDivisionError("a brace")

    target = fuzz.Target("braces", [b"some text", b"more"], fails_on_braces)
    tried, found = fuzz.fuzz([target], seconds=1.0, seed=3)
    assert tried["braces"] > 100
    first = found[0]
    assert "ZeroDivisionError: a brace" in first
    (number,) = {int(first.split("case ")[1].split(":")[0])}
    assert f"--seed 3 --target braces --case {number}" in first
    example, edits = fuzz.case(target, seed=3, number=number)
    small = fuzz.smallest(target, example, edits)
    assert len(small) == 1
    assert b"{" in (tmp_path / "build/fuzz" / f"braces-3-{number}").read_bytes()


def test_a_case_that_hangs_is_a_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "CASE_SECONDS", 1)

    def hangs(_data: bytes) -> None:
        while True:
            pass

    assert "longer than 1 s" in str(fuzz.outcome(fuzz.Target("hangs", [b"x"], hangs), b"x", []))
