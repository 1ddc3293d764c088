"""A progress bar leaves nothing behind on the terminal, however its command ends."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.contexts import bring_schema
from worker.terminal.console import WRONG_USAGE

DESCRIPTION = "Reading headers"
BLOCK = f"""
import os, signal, sys, time
from worker.terminal.console import progress, refuse
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
with progress("{DESCRIPTION}", total=3) as advance:
    for step in range(3):
        advance(1)
        time.sleep(.15)  # for the bar to be drawn
        if step == 1:
            {{ending}}
"""
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def on_a_terminal(*words: str, **environment: str) -> tuple[str, int]:
    """All that a command wrote to its terminal, and its exit code."""
    ours, its = pty.openpty()
    settings = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment
    command = subprocess.Popen([sys.executable, *words], stdin=its, stdout=its, stderr=its, env=settings)
    os.close(its)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    return written.decode(), command.wait(timeout=30)


def screen(written: str) -> str:
    """What stands on the terminal after all that, without colours."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[\d;?]*[A-Za-z]|\r|\n)", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b["):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b["):
            lines[row] += part
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),
        ("refuse('no more films')", WRONG_USAGE),
        ("raise RuntimeError('a fault')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_no_bar_and_no_hidden_cursor_is_left_however_the_work_ends(ending: str, code: int) -> None:
    written, ended = on_a_terminal("-c", BLOCK.format(ending=ending))
    assert ended == code
    assert DESCRIPTION in written  # it was drawn
    assert DESCRIPTION not in screen(written)
    assert written.rfind(SHOW) > written.rfind(HIDE) > -1


def test_a_command_that_fails_beside_its_bar_leaves_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'nightread.db'}"
    bring_schema(url)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "text.dcm").write_text("no DICOM")
    written, code = on_a_terminal(
        "-m", "worker.cli", "enqueue", str(tmp_path / "films"), NIGHTREAD_DATABASE_URL=url,
        NIGHTREAD_BROKER_URL="redis://127.0.0.1:1/0", NIGHTREAD_STATE_FOLDER=str(tmp_path),
    )  # fmt: skip
    assert code != 0
    assert DESCRIPTION in written
    assert written.rfind(SHOW) > written.rfind(HIDE) > -1
    assert DESCRIPTION not in screen(written)
    assert "nightread:" in screen(written)
