"""Lines of the log: to standard error, as it is when they are written."""

import io
import json
import logging
import sys

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
