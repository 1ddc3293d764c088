"""From folders and files to registered studies: headers only, committed before any message is sent."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import structlog
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session
from tenacity import retry, retry_if_exception, stop_after_delay, wait_exponential

from db import arrivals, lookup
from db.arrivals import Arrival, Placement, Registered
from db.session import is_away, read_scope, session_scope
from training.imaging.dicom import UnusablePixels, read_header
from worker.context import Context, file_digest
from worker.errors import UnusableStudy
from worker.intake.header import INTAKE_TAGS, arrival_of
from worker.intake.views import ViewRules

log = structlog.get_logger()

FILES_PER_TRANSACTION = 64

# A database that restarts must not end a backfill of a year. No lease runs out meanwhile, as a worker's would.
patiently = retry(
    retry=retry_if_exception(is_away),
    wait=wait_exponential(multiplier=0.5, max=5),
    stop=stop_after_delay(120),
    reraise=True,
)


@dataclass
class Received:
    """What became of the files of one intake."""

    files: int = 0
    new_instances: int = 0
    known: int = 0
    rejected: int = 0
    studies: set[int] = field(default_factory=set)  # ids of the studies that got something new

    def add(self, other: "Received") -> None:
        """Count the files of another intake too."""
        self.files += other.files
        self.new_instances += other.new_instances
        self.known += other.known
        self.rejected += other.rejected
        self.studies |= other.studies


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Every regular file at or below `paths`, folders in sorted order; links to folders are not followed.

    What cannot be walked or opened (a closed folder, a dangling link, a pipe) is yielded as it is: whoever reads it
    will say what is wrong with it, and so it leaves a trace.
    """
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder above is closed
            yield from _files_below(path)
        else:
            yield path


def _files_below(top: Path) -> Iterator[Path]:
    """Not os.walk: it calls itself for every level until Python 3.12, and folders can be nested a thousand deep."""
    folders = [os.fspath(top)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        except OSError:
            yield Path(folder)
            continue
        yield from (Path(folder, name) for name, is_folder in found if not is_folder)
        folders += [os.path.join(folder, name) for name, is_folder in reversed(found) if is_folder]  # noqa: PTH118


def receive(context: Context, paths: Iterable[Path], *, on_file: Callable[[], None] = lambda: None) -> Received:
    """Register every instance found at `paths`; a file that cannot be one is recorded with its reason.

    Each file is committed with a few neighbours, and what fails costs only itself.
    """
    received, (unscored, secret) = Received(), _placement_and_secret(context)
    found = find_files(paths)
    while files := list(islice(found, FILES_PER_TRANSACTION)):
        read = [(file, _read(context, file, secret)) for file in files]
        taken = _register_all(context, read, unscored, received)
        for file, arrival, known in taken:
            _resolve_taken(context, file, arrival, known, received)
        for _ in files:
            on_file()
    log.info("files_received", files=received.files, instances=received.new_instances, rejected=received.rejected)
    return received


@patiently
def _placement_and_secret(context: Context) -> tuple[Placement, str]:
    """Where a new study stands, and what makes this site's patient keys."""
    unscored = context.live().unscored
    with read_scope(context.engine) as session:
        return unscored, lookup.patient_key_secret(session)


def _read(context: Context, file: Path, secret: str) -> Arrival | UnusableStudy:
    """What one file says, or why it cannot be used. Never raises: a file costs its own rejection and nothing else."""
    try:
        path = confined(file, context.settings.roots)
        if path.is_dir():
            raise UnusableStudy("folder_closed", _closed(path))
        header = read_header(
            path, limits=context.pixel_limits, specific_tags=list(INTAKE_TAGS), follow_links=False
        )
        return arrival_of(header, path=path, rules=ViewRules.of(context.settings), secret=secret)
    except UnusablePixels as error:
        return UnusableStudy(error.reason, str(error))
    except UnusableStudy as error:
        return error
    except MemoryError:
        return UnusableStudy("too_large", "its header needs more memory than there is")
    except OSError as error:
        return UnusableStudy("file_unavailable", f"the file cannot be read: {error.strerror}; send it again")
    except Exception as error:  # noqa: BLE001 - whatever a sender's bytes make the parser raise, only that file pays
        log.error("header_raised", error=type(error).__name__)
        return UnusableStudy("header_raised", f"reading its header raised {type(error).__name__}")


def _closed(folder: Path) -> str:
    """Why nothing in a folder was looked at."""
    try:
        os.listdir(folder)  # noqa: PTH208 - only whether it can be listed
    except OSError as error:
        return f"the folder cannot be listed: {error.strerror}; open it to this user, and send it again"
    return "a folder; what lies in it was not looked at: send it again"


def confined(file: Path, roots: Sequence[str]) -> Path:
    """The file's real path. Raises UnusableStudy when it lies (or links) outside the roots, if there are any."""
    try:
        path = Path(os.path.realpath(file))  # Path.resolve raises where links lead in a circle
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UnusableStudy(
            "file_name_unusable", "its name or a folder's is not UTF-8: rename it, send it again"
        ) from error
    if roots and not any(path.is_relative_to(Path(root).resolve()) for root in roots):
        raise UnusableStudy("outside_roots", "the file lies outside the folders that this site receives from")
    return path


def _register_all(
    context: Context,
    read: Sequence[tuple[Path, Arrival | UnusableStudy]],
    unscored: Placement,
    received: Received,
) -> list[tuple[Path, Arrival, Registered]]:
    """Register a few files in one transaction; returns those whose SOP Instance UID was taken.

    A file that the database itself refuses is found by trying each alone: it must not cost its neighbours.
    """
    try:
        counted, taken = _register_together(context, read, unscored)
    except DataError:
        if len(read) > 1:
            return [taken for each in read for taken in _register_all(context, [each], unscored, received)]
        refused = UnusableStudy("header_not_storable", "a value of its header does not fit the database")
        counted, taken = _register_together(context, [(read[0][0], refused)], unscored)
    received.add(counted)
    return taken


@patiently
def _register_together(
    context: Context, read: Sequence[tuple[Path, Arrival | UnusableStudy]], unscored: Placement
) -> tuple[Received, list[tuple[Path, Arrival, Registered]]]:
    """One transaction: what it counted, and the arrivals whose SOP Instance UID was taken."""
    received, taken = Received(), []
    with session_scope(context.engine) as session:
        arrivals.forget_rejections(session, [_path_digest(file) for file, _ in read])
        for file, arrival in read:
            received.files += 1
            if isinstance(arrival, UnusableStudy):
                _reject(session, file, arrival)
                received.rejected += 1
                continue
            registered = arrivals.register(session, arrival, placement=unscored)
            if registered.outcome == "new" and registered.study_id is not None:
                received.new_instances += 1
                received.studies.add(registered.study_id)
            elif registered.outcome == "known":
                received.known += 1
            else:
                taken.append((file, arrival, registered))
    return received, taken


@patiently
def _resolve_taken(context: Context, file: Path, arrival: Arrival, known: Registered, received: Received) -> None:
    """A SOP Instance UID that is registered from another path: a copy, a file that moved, or two films with one UID."""
    if known.same_study and not os.path.lexists(known.path or ""):
        with session_scope(context.engine) as session:
            received.studies.add(arrivals.relocate(session, arrival))
    elif not (known.same_study and _is_copy(Path(known.path or ""), file, roots=context.settings.roots)):
        reason = UnusableStudy("uid_taken", "its SOP Instance UID belongs to another file; the first one is kept")
        with session_scope(context.engine) as session:
            _reject(session, file, reason)
        received.rejected += 1  # after the commit: whatever comes before it may be tried again
        return
    received.known += 1


def _is_copy(held: Path, file: Path, *, roots: Sequence[str]) -> bool:
    """Whether two files have the same bytes; one that cannot be read is no copy of anything, nor is a link or a pipe
    that has taken the place of the file that was registered."""
    try:
        if confined(held, roots) != held:
            return False
        first, second = held.stat(), file.stat()
        alike = stat.S_ISREG(first.st_mode) and first.st_size == second.st_size
        return alike and file_digest(held) == file_digest(file)
    except (OSError, UnusableStudy):
        return False


def _reject(session: Session, file: Path, reason: UnusableStudy) -> None:
    path = os.fsencode(file.absolute()).decode(errors="replace")
    arrivals.reject(session, path=path, path_digest=_path_digest(file), reason=reason.reason, detail=str(reason))


def _path_digest(file: Path) -> str:
    return hashlib.sha256(os.fsencode(file.absolute())).hexdigest()
