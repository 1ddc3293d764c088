"""Films that were received or pulled belong to this site: they are removed by age (`nightread prune`).

Only files in the inbox, under names of our own, and older than the date: what was only pointed at is never touched, nor
is a film of a study that is still wanted.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from db import lookup, retention
from db.session import read_scope, session_scope
from worker.context import Context
from worker.dicom_network.inbox import Inbox
from worker.retention import Pruning


@dataclass(frozen=True)
class OldFilms:
    """Films in the inbox that may go."""

    paths: Sequence[Path]
    size_bytes: int

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "OldFilms":
        """With their size on disk."""
        return cls(paths, sum(path.stat().st_size for path in paths))


def prunable_films(context: Context, pruning: Pruning, *, results_stay: bool = False) -> OldFilms:
    """Films of the studies that the pruning takes away; where their results go too, also what nothing refers to."""
    old = list(_inbox(context).older(pruning.before))
    with read_scope(context.engine) as session:
        goes = retention.prunable_paths(session, **vars(pruning))
        if results_stay:
            return OldFilms.of([path for path in old if str(path) in goes])
        goes |= retention.prunable_rejected_paths(session, before=pruning.before)
        recorded = lookup.recorded_paths(session, [str(path) for path in old])
    return OldFilms.of([path for path in old if str(path) in goes or str(path) not in recorded])


def prune_films(context: Context, pruning: Pruning, *, by: str, results_stay: bool = False) -> OldFilms:
    """Remove them, and write to the audit who did; returns what went.

    Where results go too, it is called after them: then the films of the studies that went are those to which nothing
    refers. Interrupted, it goes on where it stopped when it is called again.
    """
    films = prunable_films(context, pruning, results_stay=results_stay)
    for path in films.paths:
        path.unlink(missing_ok=True)
    for day in {path.parent for path in films.paths}:
        with suppress(OSError):  # other films are in it
            day.rmdir()
    if films.paths:
        with session_scope(context.engine) as session:
            retention.note_pruning(session, {"films": len(films.paths)}, before=pruning.before, by=by)
    return films


def _inbox(context: Context) -> Inbox:
    return Inbox(context.receive_folder, free_bytes=0)
