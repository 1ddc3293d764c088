"""Keeping films: a whole film goes into the inbox and into the ledger, or its sender hears that it did not."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from db import arrivals, lookup
from db.session import read_scope, session_scope
from worker.context import Context
from worker.dicom_network.inbox import ARRIVING, Inbox
from worker.intake.receive import Footing, Received, footing_of, path_digest, receive
from worker.settings import WrongSettings

log = structlog.get_logger()

FOOTING_SECONDS: Final = 10.0


@dataclass
class Keeper:
    """The inbox and the ledger together: what is in one of them is in the other, whatever breaks between."""

    context: Context
    inbox: Inbox
    _footing_read: tuple[float, Footing] | None = None
    _unsettled: set[Path] = field(default_factory=set)  # files that the ledger may refer to: it went away meanwhile

    @classmethod
    def of(cls, context: Context, *, arriving: str = ARRIVING) -> "Keeper":
        """The keeper of the settings' folder; `arriving` names the folder in it for films on their way in.

        Raises WrongSettings where no film in that folder would be read.
        """
        roots = [Path(root).resolve() for root in context.settings.roots]
        if roots and not any(context.receive_folder.is_relative_to(root) for root in roots):
            raise WrongSettings(
                "NIGHTREAD_ROOTS leaves out the folder of received films (NIGHTREAD_RECEIVE_FOLDER): add it"
            )
        free_bytes = context.settings.receive.free_mb * 2**20
        return cls(context, Inbox(context.receive_folder, free_bytes=free_bytes, arriving=arriving))

    def keep(self, arrived: Path, *, sop_instance_uid: str, patience_seconds: float) -> Received:
        """Keep a whole film and register it. Raises OSError, and SQLAlchemyError while the database is away."""
        self.settle()
        kept = self.inbox.keep(arrived)
        try:
            outcome = receive(
                self.context,
                [kept],
                footing=self._footing(),
                patience_seconds=patience_seconds,
                sop_instance_uid=sop_instance_uid,
            )
            if outcome.rejected:
                self._set_aside(kept)
            if not outcome.new_instances:
                self.remove_unrecorded([kept])  # a second copy of a film that is in the ledger with its own file
        except BaseException:
            self._unsettled.add(kept)  # it may be registered: a commit's answer can be lost
            raise
        return outcome

    def _set_aside(self, refused: Path) -> None:
        """Record a refused film under the name that its bytes make: each time it is sent, the same entry and file."""
        aside = self.inbox.set_aside(refused)
        with session_scope(self.context.engine) as session:
            arrivals.move_rejection(session, path_digest(refused), path=str(aside), to_digest=path_digest(aside))

    def settle(self) -> None:
        """Remove the files of films whose registration failed, unless the ledger has them after all.

        Raises SQLAlchemyError while the database is away: then no further film is kept.
        """
        if unsettled := list(self._unsettled):
            self.remove_unrecorded(unsettled)
            self._unsettled.difference_update(unsettled)

    def remove_unrecorded(self, kept: Sequence[Path]) -> None:
        """Remove those of these files to which nothing in the ledger refers."""
        with read_scope(self.context.engine) as session:
            recorded = lookup.recorded_paths(session, [str(path) for path in kept])
        for path in kept:
            if str(path) not in recorded:
                path.unlink(missing_ok=True)

    def register_leftovers(self) -> int:
        """Register the films that were kept and not registered before a kill; returns how many there were.

        Their senders had no answer and will send them again, which is then a second copy; so may one of these be.
        """
        recent = self.inbox.recent()
        with read_scope(self.context.engine) as session:
            known = lookup.recorded_paths(session, [str(path) for path in recent])
        left = [path for path in recent if str(path) not in known]
        if left:
            receive(self.context, left)
            self.remove_unrecorded(left)
            log.info("leftovers_registered", films=len(left))
        return len(left)

    def _footing(self) -> Footing:
        """The footing of the last seconds: reading it for each film would cost more than registering the film."""
        if self._footing_read is None or time.monotonic() - self._footing_read[0] > FOOTING_SECONDS:
            self._footing_read = (time.monotonic(), footing_of(self.context))
        return self._footing_read[1]
