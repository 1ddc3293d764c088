"""`nightread prune`: forget what is older than a site may keep it."""

from datetime import datetime

from db import retention
from db.retention import Prunable
from db.session import read_scope, session_scope
from worker.context import Context, actor

STUDIES_PER_TRANSACTION = 500  # so that the workers never wait for long


def prune(context: Context, *, before: datetime, reviewed: bool = False, dry_run: bool = False) -> Prunable:
    """Delete what was received and settled before `before` (aware); returns what went, or with `dry_run` would go.

    Interrupted, it has deleted a part and goes on where it stopped when it is called again.
    """
    with read_scope(context.engine) as session:
        found = retention.prunable(session, before=before, reviewed=reviewed)
    if dry_run:
        return found
    while _prune_some(context, before, reviewed):
        pass
    with session_scope(context.engine) as session:
        retention.prune_rejected_files(session, before=before)
        retention.note_pruning(session, found, before=before, by=actor())
    return found


def _prune_some(context: Context, before: datetime, reviewed: bool) -> int:
    with session_scope(context.engine) as session:
        return retention.prune_studies(session, before=before, limit=STUDIES_PER_TRANSACTION, reviewed=reviewed)
