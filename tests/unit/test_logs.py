"""Lines of the log: to standard error, as it is when they are written."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from worker import logs


def test_a_line_goes_to_the_standard_error_of_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    replaced, now = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    logs.configure(level="info", style="json")
    replaced.close()
    monkeypatch.setattr(sys, "stderr", now)
    logging.getLogger("worker").warning("after it was closed")
    assert json.loads(now.getvalue())["event"] == "after it was closed"


PRINTING = """
import sys, threading
from worker import logs
logs.configure(level="info", style="json")
logs.take_over_output()
print("printed")
print("in", "parts", end=" ")
print("of a line")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise ValueError("two\\nlines")
"""


def test_what_a_service_prints_and_what_nobody_catches_are_lines_of_the_log() -> None:
    ended = subprocess.run([sys.executable, "-c", PRINTING], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    printed, parts, *uncaught = map(json.loads, ended.stderr.splitlines())
    assert (printed["event"], printed["level"]) == ("printed", "info")
    assert parts["event"] == "in parts of a line"
    assert [line["event"] for line in uncaught] == ["uncaught_error", "uncaught_error"]
    assert "ZeroDivisionError" in uncaught[0]["exception"]
    assert "ValueError: two\nlines" in uncaught[1]["exception"]


UNWRITABLE = """
import structlog
from worker import logs
logs.configure(level="info", style="json")
logs.take_over_output()
structlog.get_logger("worker").warning("not_written")
print("nor is this")
"""


def test_a_service_whose_standard_error_cannot_be_written_goes_on_without_its_lines() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-c", UNWRITABLE], stdout=subprocess.PIPE, stderr=full, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"")


ENDING = """
import sys, threading
from worker import logs
logs.configure(level="info", style="json")
logs.take_over_output()
thread = threading.Thread(target=sys.exit)
thread.start()
thread.join()
"""


def test_a_thread_that_ends_itself_is_no_error() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
