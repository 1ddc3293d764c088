"""From folders and files to registered studies: headers only, committed before any message is sent."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import islice
from pathlib import Path

import structlog
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from db import arrivals, lookup
from db.arrivals import Arrival, Placement, Registered
from db.session import read_scope, session_scope
from training.imaging import digests
from training.imaging.dicom import UnusablePixels, open_regular, read_header
from worker.context import Context
from worker.errors import UnusableStudy
from worker.intake.header import INTAKE_TAGS, arrival_of
from worker.intake.view_rules import ViewRules
from worker.patience import PATIENCE_SECONDS, patience, patiently

log = structlog.get_logger()

FILES_PER_TRANSACTION = 64
SETTLED_AFTER_SECONDS = 2.0  # the coarsest clock of a file system (FAT's, some shares') ticks so


@dataclass
class Received:
    """Counts of one intake's files."""

    files: int = 0
    new_instances: int = 0
    known: int = 0
    changed: int = 0  # files that say or show something else than before, and were taken over
    rejected: int = 0
    studies: set[int] = field(default_factory=set)  # ids of the studies that got something new

    def add(self, other: "Received") -> None:
        """Count the files of another intake too."""
        self.files += other.files
        self.new_instances += other.new_instances
        self.known += other.known
        self.changed += other.changed
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


@dataclass(frozen=True)
class Footing:
    """Data for every registration: the place of a new study, and the secret of this site's patient keys."""

    unscored: Placement
    secret: str


def receive(
    context: Context,
    paths: Iterable[Path],
    *,
    on_file: Callable[[], None] = lambda: None,
    footing: Footing | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    sop_instance_uid: str | None = None,
) -> Received:
    """Register every instance found at `paths`; a file that cannot be one is recorded with its reason.

    Each file is committed with a few neighbours, and what fails costs only itself. `footing`: of a moment ago, for a
    caller that registers one file after the other. A database that is away is waited for up to `patience_seconds`,
    then its error is raised. `sop_instance_uid`: a file with another one is rejected.
    """
    with patience(seconds=patience_seconds):
        return _receive(context, paths, on_file, footing or footing_of(context), sop_instance_uid)


def _receive(
    context: Context, paths: Iterable[Path], on_file: Callable[[], None], footing: Footing, uid: str | None
) -> Received:
    received, unscored, secret = Received(), footing.unscored, footing.secret
    found = find_files(paths)
    while files := list(islice(found, FILES_PER_TRANSACTION)):
        read = [(file, read_arrival(context, file, secret, uid)) for file in files]
        taken = _register_all(context, read, unscored, received)
        for file, arrival, known in taken:
            _resolve_taken(context, file, arrival, known, unscored, received)
        for _ in files:
            on_file()
    log.info("files_received", files=received.files, instances=received.new_instances, rejected=received.rejected)
    return received


@patiently
def footing_of(context: Context) -> Footing:
    """The footing of this moment."""
    unscored = context.live().first_placement
    with read_scope(context.engine) as session:
        return Footing(unscored, lookup.patient_key_secret(session))


def read_arrival(context: Context, file: Path, secret: str, uid: str | None = None) -> Arrival | UnusableStudy:
    """One file's arrival, or why it cannot be used. Never raises: a file costs its own rejection and nothing else."""
    try:
        path = confined(file, context.settings.roots)
        if path.is_dir():
            raise _unsearched(file)
        stamp = _stamp(path)  # before it is read: what is written later has another
        header = read_header(path, limits=context.pixel_limits, specific_tags=list(INTAKE_TAGS), follow_links=False)
        arrival = arrival_of(
            header,
            path=path,
            stamp=stamp,
            rules=ViewRules.of(context.settings),
            secret=secret,
            zone=context.settings.zone,
        )
        if uid is not None and arrival.instance["sop_instance_uid"] != uid:
            raise UnusableStudy("sop_uid_differs", "its SOP Instance UID is not the one that its sender announced")
        return arrival
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


def _unsearched(folder: Path) -> UnusableStudy:
    """Why nothing in a folder was looked at."""
    if os.path.islink(folder):  # noqa: PTH114 - as find_files asks
        return UnusableStudy("folder_link", "a link to a folder, which is not followed: name the folder itself")
    try:
        os.scandir(folder).close()
    except OSError as error:
        sentence = f"the folder cannot be listed: {error.strerror}; let this user read it, and send it again"
        return UnusableStudy("folder_closed", sentence)
    return UnusableStudy("folder_closed", "the folder could not be listed before, and can be now; send it again")


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
    except (DataError, IntegrityError, UnicodeError):
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
        tried = {path for file, _ in read for path in (file, *file.absolute().parents)}  # a closed folder is open now
        arrivals.forget_rejections(session, [path_digest(path) for path in tried])
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
            elif registered.outcome == "changed" and registered.study_id is not None:
                received.changed += 1
                received.studies.add(registered.study_id)
            else:
                taken.append((file, arrival, registered))
    return received, taken


def _stamp(path: Path) -> str | None:
    """A file's size and times: while they stay, so do its bytes. None while it may still be written: a second change
    within the clock's grain would leave no trace in them."""
    found = path.stat()
    if time.time() - found.st_ctime < SETTLED_AFTER_SECONDS:
        return None
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _resolve_taken(
    context: Context, file: Path, arrival: Arrival, known: Registered, unscored: Placement, received: Received
) -> None:
    """A SOP Instance UID that is registered already: the same file changed, a copy, a file that moved, a better copy of
    a film in quarantine, or two films with one UID."""
    path, held = Path(arrival.instance["path"]), Path(known.path or "")
    moved = known.same_study and held != path and not os.path.lexists(held)
    if moved or (known.same_study and held == path):
        same = known.file_digest in (None, digest_at(path))
        cause = "header_changed" if known.says_otherwise else None if same else "file_changed"
        _settle_resend(context, arrival, received, unscored, cause=cause, moved=moved)
    elif known.same_study and _is_copy(held, path, roots=context.settings.roots):
        received.known += 1
    elif known.same_study and known.state == "quarantined":
        _settle_resend(context, arrival, received, unscored, cause="copy_sent")
    else:
        _reject_taken(context, file, arrival, of_study=known.same_study)
        received.rejected += 1  # after the commit: whatever comes before it may be tried again


@patiently
def _in_transaction(context: Context, write: Callable[[Session], int]) -> int:
    with session_scope(context.engine) as session:
        return write(session)


def _settle_resend(
    context: Context,
    arrival: Arrival,
    received: Received,
    unscored: Placement,
    *,
    cause: str | None,
    moved: bool = False,
) -> None:
    """Take a file over because of `cause`, or note that it is the one that was read."""

    def write(session: Session) -> int:
        if cause is not None:
            return arrivals.take_over(session, arrival, cause=cause, placement=unscored)
        return arrivals.relocate(session, arrival) if moved else arrivals.confirm(session, arrival)

    study_id = _in_transaction(context, write)
    if cause is not None:
        received.changed += 1
    else:
        received.known += 1
    if cause is not None or moved:
        received.studies.add(study_id)


def _reject_taken(context: Context, file: Path, arrival: Arrival, *, of_study: bool) -> None:
    """Two films with one UID: the first is kept, and the second tried if the first cannot be read."""
    reason = UnusableStudy("uid_taken", "its SOP Instance UID belongs to another file; the first one is kept")
    uid = arrival.instance["sop_instance_uid"] if of_study else None

    def write(session: Session) -> int:
        _reject(session, file, reason, copy_of=uid)
        return 0

    _in_transaction(context, write)


def digest_at(path: Path) -> str | None:
    """The digest of a file; None where it can no longer be read, which is no digest of anything."""
    try:
        with _opened(path) as file:
            return digests.of_file(file)
    except (OSError, UnusablePixels):
        return None


def _is_copy(held: Path, file: Path, *, roots: Sequence[str]) -> bool:
    """Whether two files have the same bytes; one that cannot be read is no copy of anything, nor is a link or a pipe
    that has taken the place of the file that was registered."""
    try:
        if confined(held, roots) != held:
            return False
        with _opened(held) as first, _opened(confined(file, roots)) as second:
            same_size = os.fstat(first.fileno()).st_size == os.fstat(second.fileno()).st_size
            return same_size and digests.of_file(first) == digests.of_file(second)
    except (OSError, UnusableStudy, UnusablePixels):
        return False


def _opened(path: Path) -> BufferedReader:
    return open_regular(path, follow_links=False)


def _reject(session: Session, file: Path, reason: UnusableStudy, *, copy_of: str | None = None) -> None:
    path = os.fsencode(os.path.realpath(file) if copy_of else file.absolute()).decode(errors="replace")
    digest, detail = path_digest(file), str(reason)
    arrivals.reject(
        session, path=path, path_digest=digest, reason=reason.reason, detail=detail, sop_instance_uid=copy_of
    )


def path_digest(file: Path) -> str:
    """The key of a rejected file: a path may be no text."""
    return hashlib.sha256(os.fsencode(file.absolute())).hexdigest()
