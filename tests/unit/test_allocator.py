"""Freed memory stays with the process, where the C library lets itself be told."""

import platform
import subprocess
import sys

import pytest

FAULTS_OF_A_SECOND_FILM = """
import resource
import numpy as np
from training.imaging.allocator import keep_freed_memory

assert keep_freed_memory()
np.ones(8_000_000)  # 64 MB: 15,625 pages
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_the_second_film_reuses_the_pages_of_the_first():
    found = subprocess.run([sys.executable, "-c", FAULTS_OF_A_SECOND_FILM], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch):
    from training.imaging import allocator

    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False
