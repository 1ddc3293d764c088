"""Application context, built lazily from Settings: database engine, live checkpoint, active policy.

It only reads. What a new database needs before anything can rank is written by `Context.seed`, once.
"""

import getpass
import hashlib
import shutil
import socket
import uuid
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import arrivals, lookup, registry
from db.base import DocumentedError, short
from db.models import Checkpoint as CheckpointRow
from db.results import PriorityResult
from db.session import read_scope, session_scope
from training.checkpoint import SHIPPED, Header, MissingCheckpoint, WrongPurpose, read_header
from training.imaging.dicom import PixelLimits
from training.imaging.whole_file import remove_abandoned_parts, whole_file
from worker.database import open_database
from worker.errors import Unavailable
from worker.ranking import policy
from worker.ranking.blinding import Blinding
from worker.ranking.placement import placed_together, placed_unscored
from worker.ranking.policy import ActivePolicy
from worker.ranking.priority import Policy, single, unscored
from worker.settings import Settings

log = structlog.get_logger()


class NothingSeeded(DocumentedError, Unavailable):
    """No checkpoint and policy are registered in this database: run `nightread db upgrade`."""


@dataclass(frozen=True)
class Live:
    """The live ranking: a registered checkpoint and a stored policy."""

    checkpoint_id: int
    digest: str
    path: Path
    header: Header
    policy: Policy
    policy_id: int

    @property
    def short(self) -> str:
        """Its digest as people and commands write it."""
        return short(self.digest)

    @property
    def thresholds(self) -> dict[str, float]:
        """The checkpoint's thresholds, for findings to which the policy gives none."""
        return self.header.cuts(policy.THRESHOLD)

    def place(
        self, study_id: int, probabilities: npt.ArrayLike | None, *, complete: bool = True, blind: bool = False
    ) -> PriorityResult:
        """Where a study goes on the list by its probabilities, (11,) in FINDINGS order or None when no film was scored.

        `complete` False: some film in scope could not be scored. `blind`: the study stands as an unscored one does, and
        its place shows nothing of what the model saw.
        """
        if blind or probabilities is None:
            return placed_unscored(study_id, self.policy, blind=blind)
        (result,) = placed_together(
            [study_id],
            single(probabilities),
            [complete],
            rules=self.policy,
            thresholds=self.thresholds,
            checkpoint_id=self.checkpoint_id,
        )
        return result

    @property
    def first_placement(self) -> arrivals.Placement:
        """Where a study stands that no model has scored."""
        place = unscored(self.policy)
        return arrivals.Placement(place.category, place.urgency, place.flag or "", self.policy_id)


@dataclass(frozen=True)
class Context:
    """Settings and what follows from them. Nothing is connected before it is used.

    purpose: of the checkpoint that the settings name; empty where real films are ranked. Only the demo has another.
    """

    settings: Settings
    purpose: str = ""

    @cached_property
    def engine(self) -> Engine:
        """The database, with its schema checked; SQLite, which belongs to one site's machine, is brought up to date."""
        return open_database(self.settings)

    def live(self) -> Live:
        """The checkpoint and policy that rank now. Raises NothingSeeded, or CheckpointError for a file that is away."""
        with read_scope(self.engine) as session:
            row, active = self._checkpoint(session), active_policy(session)
        path = self.file_of(row)
        return Live(row.id, row.digest, path, read_header(path), active.policy, active.policy_id)

    def _checkpoint(self, session: Session) -> CheckpointRow:
        named = self._named_checkpoint
        if named is None:
            return champion_of(session)
        try:
            return registry.by_digest(session, file_digest(named))
        except registry.UnknownCheckpoint as error:
            raise NothingSeeded("the checkpoint that NIGHTREAD_CHECKPOINT names is not registered in this database: "
                                "run `nightread db upgrade`, or start a worker") from error  # fmt: skip

    @property
    def _named_checkpoint(self) -> Path | None:
        """The checkpoint that the settings name; what cannot serve is refused by its own name, not as one that nobody
        registered. Raises CheckpointError."""
        named = self.settings.checkpoint
        if named is not None and (purpose := read_header(named).purpose) != self.purpose:
            raise WrongPurpose(f"{named.name} must not rank these films; its only purpose: {purpose or 'real films'}. "
                               "Name another, or unset NIGHTREAD_CHECKPOINT")  # fmt: skip
        return named

    def seed(self) -> None:
        """Register what a new database needs to rank: the first checkpoint and the default policy.

        Also a checkpoint that the settings name, in any database. Running it again, or twice at once, changes nothing.
        What killed processes left unfinished in the state folder is removed.
        """
        self._remove_abandoned()
        named = self._named_checkpoint
        with session_scope(self.engine) as session:
            registry.lock_promotions(session)
            champion = registry.champion(session)
            if champion is None:
                champion = self.register(session, named or SHIPPED)
                registry.set_state(session, champion, "champion", by=actor(), reason="the first")
            elif named is not None:
                self.register(session, named)
            elif champion.path == str(SHIPPED):  # no copy could be kept where it was registered
                self.register(session, self.file_of(champion))
            if policy.active(session) is None:
                thresholds = policy.checkpoint_thresholds(champion.header)
                policy.activate_default(session, capacity=thresholds)

    def _remove_abandoned(self) -> None:
        folders = (self._kept("").parent, self.retraining_folder)  # not what was received, which may be millions
        if removed := sum(map(remove_abandoned_parts, folders)):
            log.info("partial_files_removed", files=removed)

    @property
    def state_folder(self) -> Path:
        """Where checkpoints and retrainings are kept, as an absolute path."""
        return self.settings.state_folder.expanduser().resolve()

    @property
    def receive_folder(self) -> Path:
        """Where films that came by DICOM are kept, as an absolute path."""
        folder = self.settings.receive.folder
        return self.state_folder / "received" if folder is None else folder.expanduser().resolve()

    @property
    def pictures_folder(self) -> Path:
        """Where the web page keeps the pictures of films that it drew, and morning pages."""
        return self.state_folder / "pictures"

    @property
    def retraining_folder(self) -> Path:
        """Where films lie while they are learned from or judged on."""
        return self.state_folder / "retraining"

    def register(self, session: Session, path: Path) -> CheckpointRow:
        """Record a checkpoint file in the registry and keep a copy under its digest: an upgrade of the package, or a
        tidy hand, must not take the champion's file away. Raises CheckpointError when it cannot serve."""
        header = read_header(path)
        digest = file_digest(path)
        kept = self._keep(path, digest)
        summary = _summary(header)
        return registry.register(
            session,
            digest=digest,
            path=str(kept),
            network=header.network,
            header=summary,
            reference=header.reference,
            by=actor(),
        )

    def _keep(self, path: Path, digest: str) -> Path:
        """The copy of a checkpoint file. The one that ships may stay where it is while the state folder can't be
        written: a migration's container has none, and the first worker makes the copy."""
        kept = self._kept(digest)
        try:
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(kept) as copy:
                    shutil.copyfile(path, copy)
        except OSError:
            if path != SHIPPED:
                raise
            return path
        return kept

    def _kept(self, digest: str) -> Path:
        return self.state_folder / "checkpoints" / f"{digest}.safetensors"

    def file_of(self, row: CheckpointRow) -> Path:
        """A registered checkpoint's file on this machine. Raises MissingCheckpoint when it is nowhere here."""
        for path in (Path(row.path), self._kept(row.digest)):
            if path.exists():
                return path
        if SHIPPED.exists() and file_digest(SHIPPED) == row.digest:
            return SHIPPED
        raise MissingCheckpoint(
            f"the file of checkpoint {row.short} is not in the state folder: copy it there, or promote another"
        )

    @cached_property
    def blinding(self) -> Blinding:
        """Which studies are listed as if no model had scored them."""
        with read_scope(self.engine) as session:
            return Blinding(self.settings.blind_share, lookup.patient_key_secret(session))

    @cached_property
    def pixel_limits(self) -> PixelLimits:
        """Limits of a file before it is refused."""
        return PixelLimits(
            max_bytes=self.settings.max_file_mb * 2**20, max_pixels=self.settings.max_megapixels * 1_000_000
        )


def champion_of(session: Session) -> CheckpointRow:
    """The champion. Raises NothingSeeded where there is none yet."""
    champion = registry.champion(session)
    if champion is None:
        raise NothingSeeded
    return champion


def active_policy(session: Session) -> ActivePolicy:
    """The policy that ranks now. Raises NothingSeeded where there is none yet."""
    active = policy.active(session)
    if active is None:
        raise NothingSeeded
    return active


def _summary(header: Header) -> dict[str, Any]:
    """The header as JSON for SQL, without the long tables."""
    return {
        "findings": list(header.findings),
        "preprocessing": asdict(header.preprocessing),
        "thresholds": {finding: dict(cuts) for finding, cuts in header.thresholds.items()},
        "training": dict(header.training),
        "code_commit": header.code_commit,
        "purpose": header.purpose,
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def process_name() -> str:
    """A name for this process to hold leases under: no other has it, and people see the machine in it."""
    return f"{socket.gethostname()[:40]}-{uuid.uuid4().hex[:12]}"


def actor() -> str:
    """Name for the audit: the operating system's user."""
    try:
        return getpass.getuser()[:64]
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
