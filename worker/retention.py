"""Retention: delete what is older than a site may keep it (`nightread prune`)."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine

from db import pulls, retention
from db.retention import Prunable
from db.session import read_scope, session_scope
from worker.context import Context

STUDIES_PER_TRANSACTION = 500  # so that the workers never wait for long
OF_A_STUDY = re.compile(r"(\d{1,18})-[0-9a-f]{64}\.png")  # a picture's file: the study's id, and a digest


@dataclass(frozen=True)
class Pruning:
    """The rows to delete: finished studies received and settled before `before` (aware); of the reviewed and the unread
    ones only where the flag says so."""

    before: datetime
    reviewed: bool = False
    unread: bool = False


def prunable(engine: Engine, pruning: Pruning) -> Prunable:
    """Count what `prune` would delete."""
    with read_scope(engine) as session:
        return retention.prunable(session, **vars(pruning))


def prune(engine: Engine, pruning: Pruning, *, by: str) -> Prunable:
    """Delete it, and write to the audit who did; returns what went.

    Interrupted, it has deleted a part and goes on where it stopped when it is called again.
    """
    found = prunable(engine, pruning)
    while _prune_some(engine, pruning):
        pass
    with session_scope(engine) as session:
        retention.prune_rejected_files(session, before=pruning.before)
        pulls.forget_unpulled(session, before=pruning.before)
        retention.note_pruning(session, vars(found), before=pruning.before, by=by)
    return found


def prunable_pictures(context: Context, pruning: Pruning) -> list[Path]:
    """Pictures that the web page keeps of studies that go or have gone, older pictures, and morning pages of runs that
    ended before that day. It makes again what is asked for."""
    before, found = pruning.before.timestamp(), [path for path in context.pictures_folder.glob("*") if path.is_file()]
    studies = {path: int(match[1]) for path in found if (match := OF_A_STUDY.fullmatch(path.name))}
    with read_scope(context.engine) as session:
        staying = retention.staying(session, sorted(set(studies.values())), **vars(pruning))
    gone = {path for path, study in studies.items() if study not in staying}
    return sorted(path for path in found if path in gone or path.stat().st_mtime < before)


def prune_pictures(context: Context, pruning: Pruning, *, by: str) -> list[Path]:
    """Remove them, and write to the audit who did; returns what went."""
    pictures = prunable_pictures(context, pruning)
    for path in pictures:
        path.unlink(missing_ok=True)
    if pictures:
        with session_scope(context.engine) as session:
            retention.note_pruning(session, {"pictures": len(pictures)}, before=pruning.before, by=by)
    return pictures


def _prune_some(engine: Engine, pruning: Pruning) -> int:
    with session_scope(engine) as session:
        return retention.prune_studies(session, limit=STUDIES_PER_TRANSACTION, **vars(pruning))
