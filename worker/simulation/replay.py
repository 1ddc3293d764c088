"""Replay of a site's own past in another reading order: its arrivals and the moments at which it read."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
from sqlalchemy.orm import Session

from db import history
from training.findings import FINDINGS
from worker.ranking.priority import Standing
from worker.simulation.reading_room import Discipline, Floats, Outcome, SimulationError, Studies, Worklist
from worker.simulation.simulate import Measures, Row, groups_of, measure, report


class HistoryRow(NamedTuple):
    """One study that was read: `findings` that a radiologist confirmed, `normal` if he found every one absent."""

    received_at: datetime
    read_at: datetime
    place: Standing
    stat: bool = False
    findings: frozenset[str] = frozenset()
    normal: bool = False


AS_READ = "as read"


def read_history(session: Session, *, since: datetime) -> list[HistoryRow]:
    """The studies received since then that people have read, with what their reviews confirmed.

    Where readers disagree a finding counts as present.
    """
    confirmed = history.confirmed(session, since=since)
    return [
        HistoryRow(
            row.received_at,
            row.read_at,
            Standing(row.category, row.urgency, row.flag),
            row.stat,
            findings=frozenset(finding for finding, present in confirmed[row.study_id].items() if present),
            normal=set(confirmed[row.study_id]) == set(FINDINGS) and not any(confirmed[row.study_id].values()),
        )
        for row in history.studies_read(session, since=since)
        if row.read_at is not None
    ]


def replay(studies_read: Iterable[HistoryRow], *, disciplines: Sequence[Discipline]) -> list[Row]:
    """Replay other disciplines at the moments at which a site really finished a reading.

    At each of those moments the discipline gives out one study that had arrived, so no reading speed is assumed; only
    that any study could have been the one read. The first discipline of the answer is the history itself.
    """
    rows = sorted(studies_read, key=lambda row: row.received_at)
    if not rows:
        raise SimulationError("the history is empty")
    if any(row.read_at < row.received_at for row in rows):
        raise SimulationError("a study in the history was read before it was received")
    start = rows[0].received_at
    arrived = np.array([(row.received_at - start).total_seconds() / 60 for row in rows])
    read = np.array([(row.read_at - start).total_seconds() / 60 for row in rows])
    studies = _history_studies(rows, arrived)
    everyone = np.ones(len(rows), dtype=bool)
    measures: Measures = {}
    measure(measures, AS_READ, studies, Outcome(read, np.zeros(len(rows))), everyone)
    for discipline in disciplines:
        outcome = Outcome(_reassigned(studies, np.sort(read), discipline), np.zeros(len(rows)))
        measure(measures, discipline.name, studies, outcome, everyone)
    return report(measures)


def _history_studies(rows: Sequence[HistoryRow], arrived: Floats) -> Studies:
    stat = np.array([row.stat for row in rows])
    category = np.array([row.place.category for row in rows])
    normal = np.array([row.normal for row in rows])
    present = np.array([[finding in row.findings for finding in FINDINGS] for row in rows])
    groups = groups_of(stat, category, normal=normal, present=present)
    return Studies(arrived, stat, category, np.array([row.place.urgency for row in rows]), groups)


def _reassigned(studies: Studies, moments: Floats, discipline: Discipline) -> Floats:
    """When each study is reported if the reading that ended at each of `moments` (ascending) is given out anew."""
    worklist = Worklist(studies, discipline)
    reported = np.full(len(moments), np.nan)
    come = 0
    for moment in moments.tolist():
        while come < len(reported) and studies.arrived[come] <= moment:
            worklist.add(come)
            come += 1
        reported[worklist.take(moment)] = moment
    return reported
