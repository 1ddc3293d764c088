"""Files that appear whole or not at all."""

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PART = re.compile(r"\..+\.[0-9]+\.part")
ABANDONED_SECONDS = 3600.0  # nothing was written to a part for this long: its process was killed


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to; after the block it takes the place of `path`, also after a power cut.

    A reader sees the old file or the new one. If the block raises, the old one stays and nothing else is left.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # left by a kill, or planted: a link is never followed
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield part
        _sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all; text as UTF-8, its line ends as they are."""
    with whole_file(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_abandoned_parts(folder: Path) -> int:
    """Remove what killed processes left of unfinished files in a folder and those below it; returns how many.

    Nothing but a regular file with the name of a part is touched, and none that was written to lately.
    """
    removed = 0
    for above, _, names in os.walk(folder):
        for name in filter(_PART.fullmatch, names):
            path = Path(above, name)
            with suppress(OSError):  # its process has ended it meanwhile, or it is not ours to remove
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
                    removed += 1
    return removed


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
