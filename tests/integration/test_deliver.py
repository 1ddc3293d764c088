"""Results on their way: publishing, the outbox, and archives that come and go."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from threading import Event
from typing import Any

import highdicom.sr
import pydicom
import pytest
from prometheus_client import CollectorRegistry
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import OperationalError
from structlog.testing import CapturingLogger
from typer.testing import CliRunner

from db import deliveries, ledger
from db.base import database_now
from db.delivery_content import content_of
from db.models import Audit, Checkpoint, Delivery, Instance, Study, StudyPriority
from db.session import read_scope, session_scope
from tests.benchmarks.archive_rows import Archive
from tests.support.dicom_files import make_film
from tests.support.orthanc import AE_TITLE, DICOM_PORT, Orthanc
from tests.support.scored import score_at_once
from tests.support.sender import Sender
from tests.support.values import present
from training.findings import FINDINGS
from worker.cli.app import app
from worker.context import Context
from worker.delivery import outbox
from worker.delivery.errors import DestinationAway, OutOfDate, Refused
from worker.delivery.send import MAKERS
from worker.dicom_network.commitment import commitment_request, note_report
from worker.dicom_network.storage_scp import Receiver, listening
from worker.doctor import examine_role
from worker.intake.receive import receive
from worker.monitoring.prometheus import LedgerCollector, ReceiveMetrics
from worker.queue.app import DELIVER, make_app
from worker.queue.deliverer import register
from worker.retention import Pruning, prunable
from worker.setting_peers import Peer

ARCHIVE = Peer(name="archive", ae_title=AE_TITLE, host="127.0.0.1", port=DICOM_PORT)


def delivering(context: Context, *peers: Peer, **deliver: Any) -> Context:
    """The context with these peers, to which reports go at once, unless `deliver` says otherwise."""
    wanted = {"sr": tuple(peer.name for peer in peers), "quiet_seconds": 0} | deliver
    return Context(context.settings.changed(peers=peers, deliver=wanted))


def film(context: Context, study: str | None = None, **attributes: Any) -> Dataset:
    """A new film, registered; of its own study unless `study` names one."""
    path = context.state_folder / f"{generate_uid()}.dcm"
    made = make_film(path, StudyInstanceUID=study or generate_uid(), **attributes)
    receive(context, [path])
    return made


def scored_film(context: Context, study: str | None = None, **attributes: Any) -> Dataset:
    made = film(context, study, **attributes)
    score_at_once(context)
    return made


def scored_films(context: Context, count: int) -> None:
    """New films, each of its own study, scored together."""
    for _ in range(count):
        film(context)
    score_at_once(context)


def rows(context: Context) -> list[Delivery]:
    """The outbox, the oldest first."""
    with read_scope(context.engine) as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.id)))


def states(context: Context) -> list[str]:
    return [row.state for row in rows(context)]


def earlier(context: Context, **times: timedelta) -> None:
    """Move moments of every row back: received, published, queued or settled."""
    columns = {
        "received": (Instance, "received_at"),
        "settled": (Study, "settled_at"),
        "published": (Delivery, "published_at"),
        "queued": (Delivery, "queued_at"),
    }
    with session_scope(context.engine) as session:
        for name, span in times.items():
            table, column = columns[name]
            for row in session.scalars(select(table)):
                setattr(row, column, getattr(row, column) - span)


def due_now(context: Context) -> None:
    """End every pause."""
    with session_scope(context.engine) as session:
        session.execute(update(Delivery).values(not_before=None))


@dataclass
class Sent:
    """What was sent, in place of sending it; `fails` raises for a destination."""

    kinds: list[str] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None

    def __call__(self, _context: Context, claimed: deliveries.Claimed) -> None:
        self.before()
        if error := self.fails.get(claimed.destination):
            raise error
        self.kinds.append(f"{claimed.kind} {claimed.destination}")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    found = Sent()
    monkeypatch.setattr(outbox, "send", found)
    return found


# ------------------------------------------------------------------------------------------------------ publishing


def test_a_study_is_published_when_it_was_scored_and_has_been_quiet(context: Context) -> None:
    context = delivering(context, ARCHIVE, quiet_seconds=30)
    film(context)
    assert outbox.publish(context) == 0, "not scored yet"
    score_at_once(context)
    assert outbox.publish(context) == 0, "not quiet yet"
    earlier(context, received=timedelta(seconds=31))
    assert outbox.publish(context) == 1
    assert outbox.publish(context) == 0, "once"
    (row,) = rows(context)
    assert (row.kind, row.destination, row.state, row.revision) == ("sr", "archive", "waiting", 1)


def test_a_study_that_is_never_quiet_is_published_after_the_longest_time(embedded: Context) -> None:
    context = delivering(embedded, ARCHIVE, quiet_seconds=30, longest_minutes=15)
    first = scored_film(context)
    earlier(context, received=timedelta(minutes=14))
    scored_film(context, first.StudyInstanceUID)
    assert outbox.publish(context) == 0
    earlier(context, received=timedelta(minutes=1, seconds=1))
    scored_film(context, first.StudyInstanceUID)
    assert outbox.publish(context) == 1
    scored_film(context, first.StudyInstanceUID)
    assert outbox.publish(context) == 0, "the time begins anew with the first film after it"


def test_the_longest_time_of_a_study_does_not_begin_anew_when_another_one_is_published(context: Context) -> None:
    context = delivering(context, ARCHIVE, quiet_seconds=30, longest_minutes=15)
    scored_film(context)
    earlier(context, received=timedelta(seconds=31))
    busy = scored_film(context)
    assert outbox.publish(context) == 1, "the one that is quiet"
    earlier(context, received=timedelta(minutes=16))
    scored_film(context, busy.StudyInstanceUID)
    assert outbox.publish(context) == 1, "the one that is never quiet"


def test_two_films_ten_seconds_apart_make_one_report_and_a_late_one_a_successor(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE, quiet_seconds=30)
    first = scored_film(context)
    earlier(context, received=timedelta(seconds=10))
    assert outbox.publish(context) == 0
    scored_film(context, first.StudyInstanceUID)
    earlier(context, received=timedelta(seconds=31))
    assert outbox.publish(context) == 1
    assert outbox.deliver_due(context) == 1
    earlier(context, received=timedelta(seconds=29), published=timedelta(seconds=29))
    film(context, first.StudyInstanceUID)
    assert outbox.publish(context) == 0, "it waits to be scored"
    score_at_once(context)
    earlier(context, received=timedelta(seconds=31), published=timedelta(seconds=31))
    assert outbox.publish(context) == 1
    assert outbox.deliver_due(context) == 1
    assert [(row.revision, row.state) for row in rows(context)] == [(2, "sent"), (3, "sent")]
    assert len({row.object_uid for row in rows(context)}) == 2


def test_what_is_out_of_date_before_it_was_sent_is_not_sent(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE)
    first = scored_film(context)
    outbox.publish(context)
    scored_film(context, first.StudyInstanceUID)
    outbox.publish(context)
    assert states(context) == ["superseded", "waiting"]
    assert outbox.deliver_due(context) == 1


def test_a_study_that_is_requeued_is_published_again(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE)
    first = scored_film(context)
    scored_film(context, first.StudyInstanceUID)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        present(session.scalars(select(Instance)).first()).state = "quarantined"
        assert ledger.requeue(session) == [1]
    assert outbox.publish(context) == 0
    score_at_once(context)
    assert outbox.publish(context) == 1
    assert outbox.deliver_due(context) == 1
    assert states(context) == ["superseded", "sent"]


def test_a_result_that_is_the_last_word_again_after_it_was_superseded_is_sent(context: Context, sent: Sent) -> None:
    context = delivering(context, ARCHIVE)
    scored_film(context)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        session.execute(update(Delivery).values(state="superseded"))  # as by a promotion that was rolled back
    assert outbox.publish(context) == 1
    assert outbox.publish(context) == 0
    assert outbox.deliver_due(context) == 1
    assert states(context) == ["superseded", "sent"]
    assert outbox.publish(context) == 0


def ranked_by(context: Context, checkpoint_id: int) -> None:
    """Let another checkpoint say the last word on every study, as `rescore --live` does."""
    with session_scope(context.engine) as session:
        session.execute(update(StudyPriority).values(checkpoint_id=checkpoint_id))


def two_checkpoints(context: Context) -> tuple[int, int]:
    """The ids of the champion and of another checkpoint like it."""
    first = context.live().checkpoint_id
    with session_scope(context.engine) as session:
        columns = {key: value for key, value in vars(session.get_one(Checkpoint, first)).items() if key[0] != "_"}
        session.add(Checkpoint(**columns | {"id": first + 1, "digest": "0d" * 32, "state": "retired"}))
    return first, first + 1


def test_a_result_that_returns_after_another_was_sent_is_sent_as_its_successor(context: Context, sent: Sent) -> None:
    """Archives take the object that came last for the newest, so the first one must not be left to speak again."""
    context = delivering(context, ARCHIVE)
    scored_film(context)
    first, _ = two_checkpoints(context)
    for checkpoint in (first, first + 1, first, first + 1):
        ranked_by(context, checkpoint)
        assert outbox.publish(context) == 1
        assert outbox.publish(context) == 0, "once"
        assert outbox.deliver_due(context) == 1
    assert [(row.checkpoint_id - first, row.revision, row.state) for row in rows(context)] == [
        (0, 1, "sent"), (1, 1, "sent"), (0, 2, "sent"), (1, 2, "sent")]  # fmt: skip
    assert len({row.object_uid for row in rows(context)}) == 4
    with session_scope(context.engine) as session:
        session.execute(update(Delivery).where(Delivery.id == rows(context)[-1].id).values(state="waiting"))
        claimed = present(deliveries.claim(session, worker="w", lease_minutes=1))
        before = present(present(content_of(session, claimed.id)).predecessor)
        assert before.object_uid == rows(context)[2].object_uid


def a_second_result_waits(context: Context) -> tuple[int, int]:
    """Send the first checkpoint's result of a study and publish the second's; the ids of both."""
    scored_film(context)
    first, second = two_checkpoints(context)
    outbox.publish(context)
    outbox.deliver_due(context)
    ranked_by(context, second)
    outbox.publish(context)
    return first, second


def its_answer_is_lost(context: Context, sent: Sent) -> None:
    sent.fails["archive"] = DestinationAway()
    outbox.deliver_due(context)


def its_worker_dies(context: Context, _sent: Sent) -> None:
    with session_scope(context.engine) as session:
        assert deliveries.claim(session, worker="dead", lease_minutes=10) is not None
    lease_over(context)


def another_result_frees_it(context: Context, sent: Sent) -> None:
    """One that goes out makes what waited for its destination due."""
    its_answer_is_lost(context, sent)
    with session_scope(context.engine) as session:
        session.execute(update(Delivery).where(Delivery.state == "waiting").values(not_before=None, reason=None))


def rolled_back(context: Context, sent: Sent, *, checkpoint_id: int) -> None:
    """A checkpoint is the champion again, and what still waits is claimed before anything is published."""
    ranked_by(context, checkpoint_id)
    due_now(context)
    sent.fails["archive"] = OutOfDate()
    assert outbox.deliver_due(context) == 0
    sent.fails.clear()


@pytest.mark.parametrize(("happens", "max_refusals"), [
    (its_answer_is_lost, 9), (its_worker_dies, 9), (its_worker_dies, 1), (another_result_frees_it, 9),
])  # fmt: skip
def test_a_result_that_returns_after_another_may_have_arrived_is_sent_as_its_successor(
    embedded: Context, sent: Sent, happens: Callable[[Context, Sent], None], max_refusals: int
) -> None:
    context = delivering(embedded, ARCHIVE, max_refusals=max_refusals)
    first, second = a_second_result_waits(context)
    happens(context, sent)
    rolled_back(context, sent, checkpoint_id=first)
    assert outbox.publish(context) == 1
    assert outbox.publish(context) == 0, "once"
    assert outbox.deliver_due(context) == 1
    assert [(row.checkpoint_id, row.revision, row.state) for row in rows(context)] == [
        (first, 1, "sent"), (second, 1, "superseded"), (first, 2, "sent")]  # fmt: skip


@pytest.mark.parametrize("reason", [Refused("object_refused"), DestinationAway()])
def test_a_successor_names_what_may_be_there_and_not_what_was_refused(
    embedded: Context, sent: Sent, reason: Exception
) -> None:
    context = delivering(embedded, ARCHIVE)
    made = scored_film(context)
    outbox.publish(context)
    sent.fails["archive"] = reason
    outbox.deliver_due(context)
    scored_film(context, made.StudyInstanceUID)
    outbox.publish(context)
    tried, new = rows(context)
    assert (tried.state, tried.attempts) == ("superseded", 1)
    with read_scope(context.engine) as session:
        before = present(content_of(session, new.id)).predecessor
    assert (before and before.object_uid) == (None if isinstance(reason, Refused) else tried.object_uid)


def test_a_result_that_returns_before_another_was_sent_needs_no_successor(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE)
    first, _ = a_second_result_waits(context)
    rolled_back(context, sent, checkpoint_id=first)
    assert outbox.publish(context) == 0
    assert [(row.state, row.attempts) for row in rows(context)] == [("sent", 1), ("superseded", 0)]


def waiting_at_a_gate(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> Any:
    """A process that is slow between its look at the outbox and its lock on a study: it waits for lock 1 there."""
    if statement.endswith("FOR UPDATE OF study SKIP LOCKED"):
        statement = statement.replace("study.state = ", "pg_advisory_xact_lock(1) IS NOT NULL AND study.state = ")
    return statement, parameters


@contextmanager
def publishing_slowly(context: Context) -> Iterator[Future[int]]:
    """A process that publishes and, while the block runs, is between its look and its lock."""
    slow = Context(context.settings)
    event.listen(slow.engine, "before_cursor_execute", waiting_at_a_gate, retval=True)
    with ThreadPoolExecutor(1) as pool:
        with context.engine.begin() as gate:
            gate.execute(text("SELECT pg_advisory_xact_lock(1)"))
            publishing = pool.submit(outbox.publish, slow)
            stopped = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            wait_until(lambda: gate.scalar(stopped) == 1)
            yield publishing
        publishing.result(timeout=60)
    slow.engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_processes_that_publish_at_once_make_a_result_once(context: Context) -> None:
    context = delivering(context, ARCHIVE)
    scored_film(context)
    with publishing_slowly(context) as second:
        assert outbox.publish(context) == 1
    assert second.result() == 0, "what it saw at first is out of date"
    assert [(row.state, row.revision) for row in rows(context)] == [("waiting", 1)]
    assert outbox.publish(context) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_result_that_changes_while_it_is_looked_at_is_published_as_it_is_then(context: Context) -> None:
    """PostgreSQL shows the locked row as it is, and the rows of other tables as they were before."""
    context = delivering(context, ARCHIVE)
    scored_film(context)
    _, second = two_checkpoints(context)
    with publishing_slowly(context), session_scope(context.engine) as session:
        session.execute(update(Study).values(revision=2))
        session.execute(update(StudyPriority).values(checkpoint_id=second))
    assert [(row.checkpoint_id, row.revision) for row in rows(context)] == [(second, 2)]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_look_for_what_is_to_be_published_never_reads_the_outbox_whole(context: Context) -> None:
    Archive(settled=6000, unread=0, waiting=0).add_settled(context.engine)
    asked: list[tuple[str, Any]] = []

    @event.listens_for(context.engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked.append((f"EXPLAIN {statement}", parameters))

    with read_scope(context.engine) as session:
        assert not deliveries.any_unpublished(session, max_age_hours=24)
    with session_scope(context.engine) as session:
        assert not deliveries.publishable(session, quiet_seconds=30, longest_minutes=15, max_age_hours=24, limit=100)
    with context.engine.connect() as connection:
        explains = [each for each in asked if "FROM study" in each[0]]
        plans = [row[0] for each in explains for row in connection.exec_driver_sql(*each)]
    assert len(explains) == 2
    assert not [step for step in plans if "Seq Scan on delivery" in step or "hashed SubPlan" in step]


def test_turning_it_on_sends_no_history(embedded: Context) -> None:
    context = delivering(embedded, ARCHIVE, max_age_hours=24)
    scored_film(context)
    earlier(context, settled=timedelta(hours=25))
    scored_film(context)
    assert outbox.publish(context) == 1


def test_a_blind_study_sends_nothing_that_tells_its_score(context: Context, sent: Sent) -> None:
    context = Context(delivering(context, ARCHIVE).settings.changed(blind_share=0.999999))
    scored_film(context)
    assert outbox.publish(context) == 1
    assert outbox.publish(context) == 0
    assert outbox.deliver_due(context) == 0
    assert [(row.state, row.reason) for row in rows(context)] == [("skipped", "blind")]


def test_a_study_of_two_patients_sends_nothing(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE)
    first = film(context, PatientID="PHANTOM-1")
    film(context, first.StudyInstanceUID, PatientID="PHANTOM-2")
    score_at_once(context)
    assert outbox.publish(context) == 1
    assert outbox.deliver_due(context) == 0
    assert [(row.state, row.reason) for row in rows(context)] == [("skipped", "two_patients")]


# --------------------------------------------------------------------------------------------------------- sending


def test_every_kind_and_destination_has_its_row_and_is_sent_once(context: Context, sent: Sent) -> None:
    other = ARCHIVE.model_copy(update={"name": "other"})
    context = delivering(context, ARCHIVE, other, sc=("archive",))
    scored_film(context)
    outbox.publish(context)
    assert outbox.deliver_due(context) == 3
    assert outbox.deliver_due(context) == 0
    assert sorted(sent.kinds) == ["sc archive", "sr archive", "sr other"]


def test_a_destination_that_is_away_holds_up_no_other_and_is_tried_once_a_pass(context: Context, sent: Sent) -> None:
    other = ARCHIVE.model_copy(update={"name": "other"})
    context = delivering(context, ARCHIVE, other)
    scored_films(context, 3)
    outbox.publish(context)
    sent.fails["archive"] = DestinationAway()
    assert outbox.deliver_due(context) == 3
    waiting = [row for row in rows(context) if row.destination == "archive"]
    assert sorted(row.attempts for row in waiting) == [0, 0, 1]
    assert {row.reason for row in waiting} == {"destination_away"}
    assert outbox.deliver_due(context) == 0, "all of them pause"
    sent.fails.clear()
    due_now(context)
    assert outbox.deliver_due(context) == 3
    assert states(context) == ["sent"] * 6


def test_one_that_goes_out_frees_what_waited_for_its_destination(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE)
    scored_films(context, 3)
    outbox.publish(context)
    sent.fails["archive"] = DestinationAway()
    outbox.deliver_due(context)
    sent.fails.clear()
    with session_scope(context.engine) as session:
        present(session.scalars(select(Delivery).order_by(Delivery.id)).first()).not_before = None
    assert outbox.deliver_due(context) == 3


def test_a_result_that_is_refused_too_often_is_given_up_and_can_be_asked_for_again(
    context: Context, sent: Sent
) -> None:
    context = delivering(context, ARCHIVE, max_refusals=3)
    scored_film(context)
    outbox.publish(context)
    sent.fails["archive"] = Refused("object_refused")
    for _ in range(3):
        assert states(context) == ["waiting"]
        outbox.deliver_due(context)
        due_now(context)
    assert [(row.state, row.reason, row.attempts) for row in rows(context)] == [("failed", "object_refused", 3)]
    sent.fails.clear()
    with session_scope(context.engine) as session:
        assert deliveries.retry(session, None, by="test") == 1
    assert outbox.deliver_due(context) == 1


def test_a_result_that_was_given_up_ends_with_a_newer_one(context: Context, sent: Sent) -> None:
    context = delivering(context, ARCHIVE, max_refusals=1)
    first = scored_film(context)
    outbox.publish(context)
    sent.fails["archive"] = Refused("object_refused")
    outbox.deliver_due(context)
    assert states(context) == ["failed"]
    sent.fails.clear()
    scored_film(context, first.StudyInstanceUID)
    outbox.publish(context)
    assert outbox.deliver_due(context) == 1
    assert states(context) == ["superseded", "sent"]
    with read_scope(context.engine) as session:
        assert deliveries.counts(session) == {("sr", "superseded"): 1, ("sr", "sent"): 1}, "as doctor reads them"


def test_a_result_that_is_given_up_after_a_newer_one_was_published_ends_with_it(context: Context, sent: Sent) -> None:
    context = delivering(context, ARCHIVE, max_refusals=1)
    first = scored_film(context)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        assert deliveries.claim(session, worker="another", lease_minutes=5) is not None
    scored_film(context, first.StudyInstanceUID)
    outbox.publish(context)
    assert states(context) == ["sending", "waiting"]
    lease_over(context)
    outbox.deliver_due(context)
    assert states(context) == ["superseded", "sent"], "nobody can ask again for what a newer result replaced"


def test_what_was_tried_may_be_there_when_it_is_asked_for_again(context: Context, sent: Sent) -> None:
    context = delivering(context, ARCHIVE)
    scored_film(context)
    outbox.publish(context)
    sent.fails["archive"] = DestinationAway()
    outbox.deliver_due(context)
    with session_scope(context.engine) as session:
        assert deliveries.retry(session, None, by="admin") == 1
    assert [(row.state, row.attempts, row.refusals) for row in rows(context)] == [("waiting", 1, 0)]


def test_a_first_refusal_after_a_long_absence_is_no_reason_to_give_up(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE, max_refusals=2)
    scored_film(context)
    outbox.publish(context)
    for error in (DestinationAway(), DestinationAway(), DestinationAway(), Refused("bundle_refused")):
        sent.fails["archive"] = error
        outbox.deliver_due(context)
        due_now(context)
    assert [(row.state, row.attempts, row.refusals) for row in rows(context)] == [("waiting", 4, 1)]
    outbox.deliver_due(context)
    assert [(row.state, row.reason) for row in rows(context)] == [("failed", "bundle_refused")]


def test_an_archive_that_keeps_nothing_is_not_sent_to_without_end(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE, max_refusals=2)
    scored_film(context)
    outbox.publish(context)
    outbox.deliver_due(context)
    uid = rows(context)[0].object_uid
    report = commitment_request(Comprehensive3DSRStorage, uid, peer="archive")
    report.FailedSOPSequence = report.pop("ReferencedSOPSequence").value
    note_report(context, report)
    assert [(row.state, row.reason) for row in rows(context)] == [("waiting", "commitment_failed")]
    assert outbox.deliver_due(context) == 0, "after a pause"
    due_now(context)
    assert outbox.deliver_due(context) == 1
    note_report(context, report)
    assert [(row.state, row.reason) for row in rows(context)] == [("failed", "commitment_failed")]


def test_an_archive_that_confirms_at_once_frees_what_waited_for_it_too(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE)
    scored_films(context, 2)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        claimed = present(deliveries.claim(session, worker="w", lease_minutes=1))
        later = database_now(session) + timedelta(minutes=30)
        waiting = update(Delivery).where(Delivery.state == "waiting")
        session.execute(waiting.values(not_before=later, reason=deliveries.AWAY))
        deliveries.confirm(session, session.get_one(Delivery, claimed.id))
    with session_scope(context.engine) as session:
        deliveries.settle(session, claimed, "sent", worker="w")
    assert states(context) == ["confirmed", "waiting"]
    assert outbox.deliver_due(context) == 1


def test_a_result_is_given_up_after_days_and_not_before(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE, max_refusals=1, give_up_hours=24)
    scored_film(context)
    outbox.publish(context)
    sent.fails["archive"] = DestinationAway()
    outbox.deliver_due(context)
    due_now(context)
    outbox.deliver_due(context)
    assert states(context) == ["waiting"]
    earlier(context, queued=timedelta(hours=25))
    due_now(context)
    outbox.deliver_due(context)
    assert states(context) == ["failed"]


def test_an_unexpected_error_costs_one_result_and_its_words_stay_out_of_the_log(
    embedded: Context, sent: Sent, capfd: pytest.CaptureFixture[str]
) -> None:
    other = ARCHIVE.model_copy(update={"name": "other"})
    context = delivering(embedded, ARCHIVE, other)
    scored_film(context)
    outbox.publish(context)
    sent.fails["archive"] = ValueError("Kanarienvogel^Hansi")
    assert outbox.deliver_due(context) == 1
    assert {row.destination: row.reason for row in rows(context)} == {"archive": "delivery_raised", "other": None}
    assert "Kanarienvogel" not in "".join(capfd.readouterr())


def test_pauses_grow_to_an_hour_and_no_further() -> None:
    assert 8 <= outbox.pause_seconds(1) <= 10
    longest = [max(outbox.pause_seconds(attempts) for _ in range(50)) for attempts in (1, 4, 8, 100)]
    assert longest == sorted(longest)
    assert longest[-1] <= 3600


def test_the_stop_switch_acts_between_two_sends(context: Context, sent: Sent) -> None:
    context = delivering(context, ARCHIVE)
    scored_films(context, 3)
    outbox.publish(context)

    def pause() -> None:
        with session_scope(context.engine) as session:
            deliveries.set_paused(session, True, by="test")

    sent.before = pause
    assert outbox.deliver_due(context) == 1
    assert outbox.deliver_due(context) == 0
    with session_scope(context.engine) as session:
        session.execute(text("UPDATE site SET deliveries_paused = false"))  # as docs/reference/sql.md says it
    sent.before = lambda: None
    assert outbox.deliver_due(context) == 2
    with read_scope(context.engine) as session:
        assert session.scalars(select(Audit.action).where(Audit.action == "pause_deliveries")).all()


def test_a_worker_that_died_while_it_sent_delays_a_delivery_and_loses_none(context: Context, sent: Sent) -> None:
    context = delivering(context, ARCHIVE)
    scored_film(context)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        assert deliveries.claim(session, worker="dead", lease_minutes=10) is not None
    assert outbox.deliver_due(context) == 0
    with session_scope(context.engine) as session:
        session.execute(update(Delivery).values(lease_expires_at=database_now(session) - timedelta(seconds=1)))
    assert outbox.deliver_due(context) == 1
    assert states(context) == ["sent"]


def lease_over(context: Context) -> None:
    """End every lease: its worker is gone."""
    with session_scope(context.engine) as session:
        session.execute(update(Delivery).values(lease_expires_at=database_now(session) - timedelta(seconds=1)))


def test_a_result_that_ends_every_worker_is_given_up(
    context: Context, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = delivering(context, ARCHIVE, max_refusals=3)
    scored_film(context)
    outbox.publish(context)

    def die() -> None:
        raise KeyboardInterrupt

    sent.before = die
    for lost in range(3):
        assert [(row.state, row.refusals) for row in rows(context)] == [
            ("waiting" if not lost else "sending", max(0, lost - 1))
        ]
        with pytest.raises(KeyboardInterrupt):
            outbox.deliver_due(context)
        lease_over(context)
    monkeypatch.setattr(outbox, "log", CapturingLogger())
    assert outbox.deliver_due(context) == 0
    left = [call.kwargs["state"] for call in outbox.log.calls if call.args == ("delivery_left",)]
    assert left == ["failed"], "a line of the log says which was given up"
    assert [(row.state, row.reason, row.attempts) for row in rows(context)] == [("failed", "delivery_left", 3)]
    with read_scope(context.engine) as session:
        assert [row["reason"] for row in deliveries.listed(session, limit=10)] == ["delivery_left"]


def test_a_lease_of_this_process_that_it_could_not_end_ends_with_its_next_pass(context: Context, sent: Sent) -> None:
    """The database went away after the result was sent."""
    context = delivering(context, ARCHIVE)
    scored_film(context)
    outbox.publish(context)

    def go_away() -> None:
        raise OperationalError("settle", {}, Exception())

    sent.before = go_away
    with pytest.raises(OperationalError):
        outbox.deliver_due(context)
    assert states(context) == ["sending"]
    sent.before = lambda: None
    assert outbox.deliver_due(context) == 1
    assert [(row.state, row.refusals) for row in rows(context)] == [("sent", 1)]


def test_a_newer_result_waits_until_an_older_one_is_no_longer_on_its_way(context: Context, sent: Sent) -> None:
    other = ARCHIVE.model_copy(update={"name": "other"})
    context = delivering(context, ARCHIVE, other)
    first = scored_film(context)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        slow = present(deliveries.claim(session, worker="slow", lease_minutes=10))
    scored_film(context, first.StudyInstanceUID)
    outbox.publish(context)
    scored_film(context)
    outbox.publish(context)
    assert outbox.deliver_due(context) == 3
    assert sorted(sent.kinds) == ["sr archive", "sr other", "sr other"], "another study's, and the other destination's"
    with session_scope(context.engine) as session:
        deliveries.settle(session, slow, "sent", worker="slow")
    assert outbox.deliver_due(context) == 1


def test_a_worker_that_lost_its_lease_writes_nothing(embedded: Context) -> None:
    context = delivering(embedded, ARCHIVE)
    scored_film(context)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        first = present(deliveries.claim(session, worker="slow", lease_minutes=10))
        session.execute(update(Delivery).values(held_by="quick"))
    with session_scope(context.engine) as session:
        deliveries.settle(session, first, "failed", worker="slow")
    assert states(context) == ["sending"]


def test_prune_keeps_a_study_until_its_result_is_out(context: Context, sent: Sent) -> None:
    context = delivering(context, ARCHIVE)
    scored_film(context)
    outbox.publish(context)
    with session_scope(context.engine) as session:
        session.execute(update(StudyPriority).values(read_at=database_now(session)))
    pruning = Pruning(datetime.now(UTC) + timedelta(days=1))
    assert prunable(context.engine, pruning).studies == 0
    outbox.deliver_due(context)
    assert prunable(context.engine, pruning).studies == 1


def test_the_delivery_task_publishes_and_sends(embedded: Context, sent: Sent) -> None:
    context = Context(delivering(embedded, ARCHIVE).settings.changed(broker_url="redis://127.0.0.1:1/0"))
    scored_film(context)
    celery = make_app(context.settings)
    register(celery, context, stopping=Event())
    celery.tasks[DELIVER]()
    assert states(context) == ["sent"]
    entry = celery.conf.beat_schedule["deliver"]
    assert (entry["task"], entry["options"]["queue"]) == (DELIVER, "delivery")
    assert "deliver" not in make_app(context.settings.changed(deliver={"sr": ()})).conf.beat_schedule


def test_an_embedded_score_waits_until_its_studies_are_quiet_and_sends(embedded: Context, sent: Sent) -> None:
    context = delivering(embedded, ARCHIVE, quiet_seconds=0.5)
    scored_film(context)
    assert outbox.finish(context) == 1
    assert outbox.finish(context) == 0, "nothing is left to wait for"


def test_the_health_counts_deliveries_by_kind_and_state_and_the_age_of_the_oldest(context: Context) -> None:
    context = delivering(context, ARCHIVE, oru=("archive",))
    context = Context(context.settings.changed(peers=(ARCHIVE.model_copy(update={"mllp": "mllp://h:1"}),)))
    scored_film(context)
    outbox.publish(context)
    earlier(context, published=timedelta(minutes=5))
    registry = CollectorRegistry()
    registry.register(LedgerCollector(context.engine))
    assert registry.get_sample_value("nightread_deliveries", {"kind": "oru", "state": "waiting"}) == 1
    assert registry.get_sample_value("nightread_oldest_delivery_seconds") == pytest.approx(300, abs=60)


def test_the_command_lists_retries_and_stops(embedded: Context, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    context = delivering(embedded, ARCHIVE, max_refusals=1)
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", context.settings.database_url)
    made = scored_film(context)
    outbox.publish(context)
    sent.fails["archive"] = Refused("object_refused")
    outbox.deliver_due(context)

    def deliver(*words: str) -> str:
        found = CliRunner().invoke(app, ["deliver", *words])
        assert found.exit_code == 0, found.output
        return found.output

    (listed,) = json.loads(deliver("--list", "--json"))
    assert (listed["state"], listed["reason"], listed["study_instance_uid"]) == (
        "failed", "object_refused", made.StudyInstanceUID)  # fmt: skip
    assert "1 delivery due now" in deliver("--retry", str(listed["id"]))
    assert states(context) == ["waiting"]
    deliver("--pause")
    sent.fails.clear()
    assert outbox.deliver_due(context) == 0
    assert "are stopped" in deliver("--list")
    deliver("--resume")
    assert outbox.deliver_due(context) == 1
    assert json.loads(deliver("--list", "--json")) == []
    assert len(json.loads(deliver("--list", "--all", "--json"))) == 1
    with read_scope(context.engine) as session:
        assert [row["state"] for row in deliveries.of_study(session, 1)] == ["sent"]


def test_a_result_that_was_being_made_when_everything_was_stopped_is_not_sent(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = delivering(context, ARCHIVE)
    scored_films(context, 2)
    outbox.publish(context)
    given: list[Peer] = []

    def make(making: Context, _result: Any, peer: Peer) -> Callable[[], object]:
        with session_scope(making.engine) as session:
            deliveries.set_paused(session, True, by="test")
        return lambda: given.append(peer)

    monkeypatch.setitem(MAKERS, "sr", make)
    assert outbox.deliver_due(context) == 0
    assert given == []
    assert [(row.state, row.attempts, row.held_by) for row in rows(context)] == [("waiting", 0, None)] * 2


# -------------------------------------------------------------------------------------------------------- archives


@dataclass
class Node:
    """A storage node in this process, which promises to keep what it got."""

    status: int = 0x0000
    syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    got: list[Dataset] = field(default_factory=list)
    asked: list[Dataset] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[Peer]:
        entity = AE(ae_title="NODE")
        entity.add_supported_context(Verification)
        entity.add_supported_context(Comprehensive3DSRStorage, list(self.syntaxes))
        entity.add_supported_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._asked)]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        try:
            yield Peer(name="node", ae_title="NODE", host="127.0.0.1", port=server.server_address[1])
        finally:
            server.shutdown()

    def _store(self, event: evt.Event) -> int:
        self.got.append(event.dataset)
        return self.status

    def _asked(self, event: evt.Event) -> tuple[int, None]:
        self.asked.append(event.action_information)
        return 0x0000, None


def test_a_report_is_stored_in_the_films_study_and_sending_it_again_changes_nothing(embedded: Context) -> None:
    node = Node()
    with node.listening() as peer:
        context = delivering(embedded, peer)
        made = scored_film(context, PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100")
        outbox.publish(context)
        assert outbox.deliver_due(context) == 1
        with session_scope(context.engine) as session:
            session.execute(update(Delivery).values(state="waiting"))
        assert outbox.deliver_due(context) == 1
    first, second = node.got
    assert first.to_json_dict() == second.to_json_dict()
    assert (first.StudyInstanceUID, first.PatientID) == (made.StudyInstanceUID, made.PatientID)
    assert str(first.PatientName) == "Müller^Jürgen"
    content: Any = highdicom.sr.Comprehensive3DSR.from_dataset(first).content
    said = {group.tracking_identifier: group.get_measurements()[0].value
            for group in content.get_image_measurement_groups()}  # fmt: skip
    with read_scope(context.engine) as session:
        rows_of_sql = session.execute(text("SELECT * FROM study_findings")).mappings().one()
        urgency = session.scalar(select(StudyPriority.urgency))
    in_sql = {name: rows_of_sql[name.lower()] for name in FINDINGS} | {"Reading priority": urgency}
    assert said == pytest.approx(in_sql, abs=1e-3)


def test_an_archive_that_knows_the_default_transfer_syntax_alone_gets_its_report(embedded: Context) -> None:
    node = Node(syntaxes=(ImplicitVRLittleEndian,))
    with node.listening() as peer:
        context = delivering(embedded, peer)
        scored_film(context, PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100")
        outbox.publish(context)
        assert outbox.deliver_due(context) == 1
    (report,) = node.got
    assert str(report.PatientName) == "Müller^Jürgen"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"


@pytest.mark.parametrize(("status", "state", "reason"), [
    (0xB000, "sent", None), (0x0107, "sent", None), (0x0111, "sent", None),
    (0xA700, "waiting", "destination_away"), (0xC001, "waiting", "object_refused"),
])  # fmt: skip
def test_an_archives_status_decides_what_follows(embedded: Context, status: int, state: str, reason: str) -> None:
    node = Node(status=status)
    with node.listening() as peer:
        context = delivering(embedded, peer)
        scored_film(context)
        outbox.publish(context)
        outbox.deliver_due(context)
    assert [(row.state, row.reason) for row in rows(context)] == [(state, reason)]


def test_doctor_says_which_destination_does_not_answer_and_what_was_given_up(embedded: Context) -> None:
    node = Node()
    with node.listening() as peer:
        context = delivering(embedded, peer)
        (result,) = examine_role(context, "delivery")
        assert (result.ok, result.text) == (True, "every destination answers")
        scored_film(context)
        outbox.publish(context)
        with session_scope(context.engine) as session:
            session.execute(update(Delivery).values(state="failed"))
        (result,) = examine_role(context, "delivery")
        assert result.text.startswith("1 results were given up")
    (result,) = examine_role(context, "delivery")
    assert (result.ok, result.text.startswith("no answer from node")) == (False, True)


def test_a_film_that_is_gone_keeps_its_result_back(embedded: Context) -> None:
    with Node().listening() as peer:
        context = delivering(embedded, peer)
        scored_film(context)
        outbox.publish(context)
        for path in context.state_folder.glob("*.dcm"):
            path.unlink()
        outbox.deliver_due(context)
    assert [(row.state, row.reason) for row in rows(context)] == [("waiting", "file_unavailable")]


@contextmanager
def receiving(context: Context) -> Iterator[None]:
    """Our receiver at the port that the archive knows."""
    context = Context(context.settings.changed(receive={"port": 11112, "free_mb": 1}))
    with listening(Receiver.of(context, metrics=ReceiveMetrics())):
        yield


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def test_an_orthanc_that_is_away_and_back_holds_each_report_once_and_confirms_it(
    embedded: Context, archive: Orthanc
) -> None:
    context = delivering(embedded, ARCHIVE)
    scored_films(context, 3)
    outbox.publish(context)
    archive.stop(at_once=True)
    with archive.namespace.entered(), receiving(context):
        assert outbox.deliver_due(context) == 0
        assert {row.reason for row in rows(context)} == {"destination_away"}
        archive.start()
        due_now(context)
        assert outbox.deliver_due(context) == 3
        wait_until(lambda: states(context) == ["confirmed"] * 3)
        with session_scope(context.engine) as session:
            session.execute(update(Delivery).values(state="waiting"))
        assert outbox.deliver_due(context) == 3, "sent again"
    reports = archive.instances(SOPClassUID=Comprehensive3DSRStorage)
    assert sorted(each["MainDicomTags"]["SOPInstanceUID"] for each in reports) == sorted(
        row.object_uid for row in rows(context)
    )


def test_an_orthanc_gets_a_successor_that_names_its_predecessor(embedded: Context, archive: Orthanc) -> None:
    context = delivering(embedded, ARCHIVE)
    first = scored_film(context)
    with archive.namespace.entered():
        outbox.publish(context)
        outbox.deliver_due(context)
        scored_film(context, first.StudyInstanceUID)
        outbox.publish(context)
        outbox.deliver_due(context)
    before, after = rows(context)
    assert (before.state, after.state) == ("sent", "sent")
    (found,) = archive.instances(SOPInstanceUID=after.object_uid)
    report = pydicom.dcmread(BytesIO(archive.file(found["ID"])))
    (study,) = report.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.object_uid
    assert len(archive.instances(SOPClassUID=Comprehensive3DSRStorage)) == 2


def test_films_of_an_association_each_make_one_report_and_a_late_one_a_successor_in_an_orthanc(
    embedded: Context, archive: Orthanc
) -> None:
    """As a modality sends them: two films ten seconds apart, and one a minute after the report of both."""
    context = delivering(embedded, ARCHIVE, quiet_seconds=30)
    study = generate_uid()

    def arrives() -> None:
        path = context.state_folder / f"{generate_uid()}.dcm"
        made = make_film(path, StudyInstanceUID=study)
        sender = Sender([path], port=11112)
        sender.start()
        sender.join(timeout=60)
        assert sender.acknowledged == [made.SOPInstanceUID]
        score_at_once(context)
        assert outbox.publish(context) == 0, "another film may follow"

    def passes(seconds: float) -> None:
        earlier(context, received=timedelta(seconds=seconds), published=timedelta(seconds=seconds))

    with archive.namespace.entered(), receiving(context):
        arrives()
        passes(10)
        arrives()
        passes(31)
        assert (outbox.publish(context), outbox.deliver_due(context)) == (1, 1)
        passes(60)
        arrives()
        passes(31)
        assert (outbox.publish(context), outbox.deliver_due(context)) == (1, 1)
        wait_until(lambda: states(context) == ["confirmed"] * 2)
    assert [row.revision for row in rows(context)] == [2, 3]
    reports = [
        pydicom.dcmread(BytesIO(archive.file(found["ID"])))
        for found in archive.instances(SOPClassUID=Comprehensive3DSRStorage)
    ]
    assert sorted("PredecessorDocumentsSequence" in report for report in reports) == [False, True]
    assert len(archive.instances(StudyInstanceUID=study)) == 2
