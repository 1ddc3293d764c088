"""Programs that come from Debian: CI installs them by itself, a laptop skips the test with a sentence."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def need(*programs: str, packages: str) -> None:
    """Go on where every program is there. In CI, which runs as root, the packages are installed first."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("CI") == "true":
        install(packages)
        missing = [program for program in programs if shutil.which(program) is None]
        assert not missing, f"apt-get brought no {missing[0]}"
    if missing:
        pytest.skip(f"{missing[0]} is not installed: apt-get install {packages}")


def install(packages: str) -> None:
    """apt-get install; two test processes take turns, for apt's own time-out does not hold for its lists."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
    with Path(tempfile.gettempdir(), "nightread-tests-apt").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (["update"], ["install", "--yes", "--no-install-recommends", *packages.split()]):
            subprocess.run(["apt-get", *options, *words], env=environment, check=True, timeout=600, capture_output=True)
