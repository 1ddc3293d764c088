"""The folder of received films: a film is there whole under a name of our own, or it is not there.

    FOLDER/arriving/     one file per film on its way in; half films go once nobody writes them, for
                         several receivers may share the folder
    FOLDER/pulling/      the same for `nightread pull`
    FOLDER/2026-11-28/   the films of a day (UTC), each under a random name
    FOLDER/refused/      films that could not be used, each once, under the SHA-256 of its bytes

Names never come from a UID: a sender chooses those.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path

ARRIVING, PULLING = "arriving", "pulling"
REFUSED = "refused"
OUR_NAMES = re.compile(r"\d{4}-\d\d-\d\d/[0-9a-f]{32}\.dcm|refused/[0-9a-f]{64}\.dcm")  # below the folder
ABANDONED_SECONDS = 900.0  # nothing was written to an arriving file for this long: its association is gone


class ArrivingFilm:
    """A film's file while it comes, in `tempfile`'s folder; pynetdicom uses it as its own NamedTemporaryFile.

    Where the disk takes no more, the file is emptied and what still comes is passed over, so that the sender hears of
    it in an answer and not by a broken connection.
    """

    def __init__(self, **_: object) -> None:
        try:
            handle, self.name = tempfile.mkstemp(suffix=".dcm")
        except OSError:
            handle, self.name = os.open(os.devnull, os.O_WRONLY), ""
        self.file = FileIO(handle, "w")
        self._is_given_up = False

    def write(self, piece: bytes | memoryview) -> None:
        """Write a piece, whole."""
        left = memoryview(piece)
        try:
            while left and not self._is_given_up:
                left = left[self.file.write(left) :]
        except OSError:
            self._is_given_up = True
            with suppress(OSError):
                self.file.truncate(0)

    def close(self) -> None:
        """Close it; the file stays."""
        self.file.close()

    def discard(self) -> None:
        """Remove the half of a film that no more comes of."""
        self.close()
        Path(self.name).unlink(missing_ok=True)


def is_given_up(arrived: Path) -> bool:
    """Whether the disk could not take the film: a file that came whole has its preamble at least."""
    return not arrived.is_file() or not arrived.stat().st_size


@dataclass(frozen=True)
class Inbox:
    """The films that were received here. `free_bytes` is kept free on its file system."""

    folder: Path
    free_bytes: int
    arriving: str = ARRIVING  # the folder of films on their way in

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folders, readable by this user alone, remove half films, and receive into them.

        pynetdicom writes a film into `tempfile`'s folder while it arrives: for this process that is the inbox's own, on
        the same file system, so that a film is renamed and never copied.
        """
        self._arriving.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.remove_abandoned()
        before, tempfile.tempdir = tempfile.tempdir, str(self._arriving)
        try:
            yield
        finally:
            tempfile.tempdir = before

    def is_full(self) -> bool:
        """Whether less than `free_bytes` are free."""
        return shutil.disk_usage(self._arriving).free < self.free_bytes

    def keep(self, arrived: Path) -> Path:
        """Give a whole film its name for good; when this returns, both survive a power cut. Raises OSError."""
        with arrived.open("rb") as film:
            os.fsync(film.fileno())
        day = self.folder / f"{datetime.now(UTC):%Y-%m-%d}"
        is_new = not day.exists()
        day.mkdir(exist_ok=True, mode=0o700)
        kept = day / f"{uuid.uuid4().hex}.dcm"
        os.link(arrived, kept)  # whoever wrote the film unlinks its own name afterwards, as pynetdicom does
        try:
            _sync(day)
            if is_new:
                _sync(self.folder)
        except OSError:
            kept.unlink()
            raise
        return kept

    def set_aside(self, refused: Path) -> Path:
        """Give a film that was refused a second name, made from its bytes: what is sent again is there once."""
        with refused.open("rb") as film:
            digest = hashlib.file_digest(film, "sha256").hexdigest()
        folder = self.folder / REFUSED
        folder.mkdir(exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.link(refused, folder / f"{digest}.dcm")
            _sync(folder)
        return folder / f"{digest}.dcm"

    def older(self, than: datetime) -> Iterator[Path]:
        """Whole films that were written before a moment; nothing that has another name than ours gives."""
        for path in sorted(self.folder.glob("*/*.dcm")):
            found = path.lstat()
            is_ours = OUR_NAMES.fullmatch(path.relative_to(self.folder).as_posix()) and stat.S_ISREG(found.st_mode)
            if is_ours and found.st_mtime < than.timestamp():
                yield path

    def recent(self, *, days: int = 2) -> list[Path]:
        """The films of the last days: among them may be one that was kept and, after a kill, not registered."""
        names = {f"{datetime.now(UTC) - timedelta(days=back):%Y-%m-%d}" for back in range(days)}
        return [path for name in sorted(names) for path in sorted((self.folder / name).glob("*.dcm"))]

    def remove_abandoned(self, *, older_than_seconds: float = ABANDONED_SECONDS) -> int:
        """Remove half films whose association is gone; returns how many."""
        removed = 0
        for path in self._arriving.iterdir():
            try:
                if time.time() - path.stat().st_mtime >= older_than_seconds:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # it was kept, or given up, meanwhile
                continue
        return removed

    @property
    def _arriving(self) -> Path:
        return self.folder / self.arriving


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
