"""The machine of a benchmark, other processes on it, and the use of a tree of processes."""

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("torch", "torchvision", "numpy", "pydicom", "imagecodecs", "pillow", "pylibjpeg", "celery", "sqlalchemy")
LOOK_FOR_PROCESSES_SECONDS = 1.0
CORES = len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Machine, versions and commit, for the record."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": CORES,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "commit": commit.stdout.strip(),
    }


class Tree:
    """Processes and their descendants, looked for once a second: each time costs 6 ms of processor time per root, which
    the watched would lack."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = [psutil.Process(pid) for pid in roots]
        self._found: list[psutil.Process] = []
        self._found_at = 0.0

    def cpu_seconds(self) -> float:
        """Processor time so far, of children that have ended too."""
        total = 0.0
        for process in self._members():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory_mb(self) -> float:
        """Resident memory now; what processes share counts in each."""
        total = 0
        for process in self._members():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20

    def _members(self) -> list[psutil.Process]:
        if time.monotonic() - self._found_at > LOOK_FOR_PROCESSES_SECONDS:
            self._found = []
            for root in self._roots:
                with suppress(psutil.NoSuchProcess):
                    self._found += [root, *root.children(recursive=True)]
            self._found_at = time.monotonic()
        return self._found


def busy_cpu_seconds() -> float:
    """Processor time that the whole machine has spent on anything."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq
