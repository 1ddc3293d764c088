"""Skipped instances, decided again by the settings of today."""

from collections.abc import Sequence
from pathlib import Path

from db import lookup
from db.session import read_scope
from worker.context import Context
from worker.intake.receive import FILES_PER_TRANSACTION, Received, receive
from worker.reasons import VIEW_SENTENCES, ViewReason


def redecide(context: Context, *, reason: ViewReason | None = None) -> Received:
    """Read again the headers of instances that the view filter skipped (all, or for one reason), and decide anew.

    The stored evidence names what decided and not all that spoke, so it does not suffice. A file that is gone is
    rejected as such, and its instance stays as it is.
    """
    reasons = [*VIEW_SENTENCES] if reason is None else [reason]
    received, last = Received(), 0
    while some := _next(context, reasons, last):
        received.add(receive(context, [Path(path) for _, path in some]))
        last = some[-1][0]
    return received


def _next(context: Context, reasons: Sequence[ViewReason], after: int) -> list[tuple[int, str]]:
    with read_scope(context.engine) as session:
        return lookup.skipped_paths(session, reasons, after=after, limit=FILES_PER_TRANSACTION)
