"""The ledger's promises, on SQLite and on PostgreSQL: nothing lost, nothing twice, the totals balance."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from db import arrivals, ledger, morning, policies, registry, results, runs
from db.arrivals import Arrival, Placement, Registered
from db.base import database_now
from db.ledger import Outcome
from db.models import FINDING_COLUMNS, FilmScore, Instance, Run, RunRank, Study, StudyPriority, TotalChange
from db.results import FilmResult, PriorityResult
from db.session import read_scope, session_scope
from db.totals import Totals, add_up, kept_totals, read_totals, recount
from tests.support.side_by_side import at_once
from tests.support.values import present
from training.findings import FINDINGS

UNSCORED = Placement("B", 0.4, "not_scored", None)


def arrival(study: int, *, instance: int = 1, view: str | None = "PA", reason: str | None = None, **study_values):
    instance_values = {
        "sop_instance_uid": f"2.25.{study}.{instance}",
        "path": f"/films/{study}-{instance}.dcm",
        "view": view,
        "state": "waiting" if view else "skipped",
        "reason": reason,
        "in_scope": reason != "body_part_not_chest",
    }
    return Arrival({"study_instance_uid": f"2.25.{study}", "stat": False, **study_values}, instance_values)


def receive(engine: Engine, *sent: Arrival) -> list[Registered]:
    with session_scope(engine) as session:
        return [arrivals.register(session, each, placement=UNSCORED) for each in sent]


def claim(engine: Engine, *, worker="w1", studies=10, lease_minutes=1.0, **kwargs) -> list[ledger.ClaimedStudy]:
    with session_scope(engine) as session:
        return ledger.claim(session, worker=worker, studies=studies, lease_minutes=lease_minutes, **kwargs)


def settle(engine: Engine, *outcomes: Outcome, worker="w1") -> list[Outcome]:
    with session_scope(engine) as session:
        return ledger.settle(session, outcomes, worker=worker, run_id=None)


def totals(engine: Engine) -> Totals:
    with read_scope(engine) as session:
        found = read_totals(session)
        assert kept_totals(session) == found
        return found


def state_of(engine: Engine, study: int) -> str | None:
    with read_scope(engine) as session:
        return session.scalar(select(Study.state).where(Study.study_instance_uid == f"2.25.{study}"))


def expire_leases(engine: Engine) -> None:
    with session_scope(engine) as session:
        past = datetime.now(UTC) - timedelta(hours=1)
        session.execute(update(Study).where(Study.state == "claimed").values(lease_expires_at=past))


def test_the_columns_of_film_score_are_the_vocabulary_in_its_order():
    assert tuple(name.lower() for name in FINDINGS) == FINDING_COLUMNS
    scores = [c.name for c in FilmScore.__table__.columns if c.name in FINDING_COLUMNS]
    assert tuple(scores) == FINDING_COLUMNS


def test_a_study_sent_twice_is_registered_once(engine):
    first, second = receive(engine, arrival(1), arrival(1))
    assert (first.outcome, second.outcome) == ("new", "known")
    assert totals(engine).received == 1


def test_a_study_without_films_is_skipped_with_its_reason_and_keeps_its_place_on_the_list(engine):
    receive(engine, arrival(1, view=None, reason="lateral_view"))
    with read_scope(engine) as session:
        assert session.execute(select(Study.state, Study.reason)).one() == ("skipped", "lateral_view")
        assert session.execute(text("SELECT category, flag FROM worklist")).one() == ("B", "not_scored")


def test_a_study_out_of_scope_is_skipped_and_is_not_on_the_list(engine):
    receive(engine, arrival(1, view=None, reason="body_part_not_chest"))
    assert state_of(engine, 1) == "skipped"
    with read_scope(engine) as session:
        assert session.execute(text("SELECT count(*) FROM worklist")).scalar() == 0


def test_a_film_reopens_a_study_that_was_skipped(engine):
    receive(engine, arrival(1, view=None, reason="lateral_view"), arrival(1, instance=2))
    assert state_of(engine, 1) == "waiting"


def test_a_late_film_reopens_a_scored_study_and_a_late_lateral_does_not(engine):
    receive(engine, arrival(1))
    settle(engine, Outcome(claim(engine)[0], "scored"))
    receive(engine, arrival(1, instance=2, view=None, reason="lateral_view"))
    assert state_of(engine, 1) == "scored"
    receive(engine, arrival(1, instance=3))
    assert state_of(engine, 1) == "waiting"
    assert {film.path for film in claim(engine)[0].films} == {"/films/1-1.dcm", "/films/1-3.dcm"}


def test_a_late_film_brings_a_study_that_was_read_back_to_the_list(engine):
    receive(engine, arrival(1))
    with session_scope(engine) as session:
        session.execute(update(StudyPriority).values(read_at=datetime.now(UTC), read_by="reader"))
    receive(engine, arrival(1, instance=2, view=None, reason="lateral_view"))
    with read_scope(engine) as session:
        assert session.scalar(text("SELECT count(*) FROM worklist")) == 0
    receive(engine, arrival(1, instance=3))
    with read_scope(engine) as session:
        assert session.scalar(text("SELECT count(*) FROM worklist")) == 1


def test_a_film_that_comes_while_its_study_is_claimed_makes_it_wait_again(engine):
    receive(engine, arrival(1))
    held = claim(engine)[0]
    receive(engine, arrival(1, instance=2))
    assert state_of(engine, 1) == "claimed"
    settle(engine, Outcome(held, "scored"))
    assert state_of(engine, 1) == "waiting"


def test_a_study_that_got_a_film_while_it_was_claimed_waits_as_if_it_had_not_been_settled(engine):
    receive(engine, arrival(1))
    [held] = claim(engine)
    receive(engine, arrival(1, instance=2))
    settle(engine, Outcome(held, "quarantined", "truncated", "cut off"))
    with read_scope(engine) as session:
        columns = Study.state, Study.reason, Study.detail, Study.settled_at
        assert session.execute(select(*columns)).one() == ("waiting", None, None, None)


def test_a_lease_from_before_the_clock_stepped_back_is_not_waited_for(engine):
    receive(engine, arrival(1))
    claim(engine)
    with session_scope(engine) as session:
        ahead = datetime.now(UTC) + timedelta(hours=1)
        session.execute(update(Study).values(lease_expires_at=ahead))
        ledger.shorten_leases(session, lease_minutes=1)
    with read_scope(engine) as session:
        until = present(session.scalars(select(Study.lease_expires_at)).one())
    assert until < datetime.now(UTC) + timedelta(minutes=2)


def test_a_pause_and_a_message_from_before_the_clock_stepped_back_are_not_waited_for(engine):
    receive(engine, arrival(1))
    with session_scope(engine) as session:
        ahead = datetime.now(UTC) + timedelta(hours=1)
        session.execute(update(Study).values(not_before=ahead, notified_at=ahead))
        assert len(ledger.studies_to_notify(session, renotify_minutes=1, limit=10)) == 1
    assert len(claim(engine)) == 1


def test_seventy_thousand_studies_are_requeued(engine):
    with session_scope(engine) as session:
        now, same = database_now(session), {"stat": False, "revision": 1, "attempts": 0, "suspect": False}
        rows = [{"study_instance_uid": f"2.25.{n}", "state": "quarantined", "received_at": now} for n in range(70_000)]
        session.execute(insert(Study), [row | same for row in rows])
    with session_scope(engine) as session:
        assert len(ledger.requeue(session)) == 70_000


def test_a_uid_taken_by_another_file_is_told_with_the_path_that_holds_it(engine):
    other = arrival(1)
    other.instance["path"] = "/films/other.dcm"
    assert receive(engine, arrival(1), other)[1].outcome == "taken"
    stolen = arrival(2)
    stolen.instance["sop_instance_uid"] = "2.25.1.1"
    assert receive(engine, stolen)[0].path == "/films/1-1.dcm"
    assert totals(engine).received == 1, "the study that lent its name to nothing is gone"


def test_stat_studies_are_claimed_first_then_the_oldest(engine):
    receive(engine, arrival(1), arrival(2), arrival(3, stat=True))
    order = [claim(engine, studies=1)[0].study_id for _ in range(3)]
    with read_scope(engine) as session:
        uids = [session.get_one(Study, i).study_instance_uid for i in order]
    assert uids == ["2.25.3", "2.25.1", "2.25.2"]


def test_stat_that_comes_with_a_later_instance_counts(engine):
    receive(engine, arrival(1), arrival(1, instance=2, view=None, reason="lateral_view", stat=True))
    with read_scope(engine) as session:
        assert session.scalar(select(StudyPriority.stat)) is True


def test_the_named_study_is_claimed_with_the_most_pressing_ones(engine):
    registered = receive(engine, arrival(1), arrival(2), arrival(3))
    claimed = claim(engine, studies=2, first=registered[2].study_id)
    assert [study.study_id for study in claimed] == [registered[2].study_id, registered[0].study_id]


def test_two_workers_never_hold_the_same_study(engine):
    receive(engine, *(arrival(i) for i in range(1, 61)))
    taken: list[int] = []

    def work(name: str) -> None:
        while claimed := claim(engine, worker=name, studies=4):
            taken.extend(study.study_id for study in claimed)

    at_once(*(partial(work, f"w{i}") for i in range(4)))
    assert len(taken) == 60 == len(set(taken))


def test_a_lease_that_ran_out_makes_a_suspect_that_is_claimed_alone(engine):
    receive(engine, arrival(1), arrival(2), arrival(3))
    assert len(claim(engine, studies=2)) == 2
    expire_leases(engine)
    with session_scope(engine) as session:
        assert ledger.release_expired(session, max_attempts=3) == (2, [])
    assert claim(engine, alone=False) == [], "others are in flight, so a suspect at the head is left alone"
    for _ in range(2):
        claimed = claim(engine)
        assert len(claimed) == 1
        assert claimed[0].suspect
        settle(engine, Outcome(claimed[0], "scored"))
    assert [study.suspect for study in claim(engine)] == [False]


def test_a_study_that_kills_its_worker_every_time_is_quarantined(engine):
    receive(engine, arrival(1))
    for _ in range(3):
        assert len(claim(engine)) == 1
        expire_leases(engine)
        with session_scope(engine) as session:
            ledger.release_expired(session, max_attempts=3)
    with read_scope(engine) as session:
        assert session.execute(select(Study.state, Study.reason)).one() == ("quarantined", "worker_lost")
        assert session.execute(select(Instance.state, Instance.reason)).one() == ("quarantined", "worker_lost")
    assert totals(engine).balance


def test_a_worker_whose_lease_ran_out_cannot_settle_what_another_holds(engine):
    receive(engine, arrival(1))
    late = claim(engine, worker="slow")[0]
    expire_leases(engine)
    with session_scope(engine) as session:
        ledger.release_expired(session, max_attempts=3)
    current = claim(engine, worker="quick")[0]
    assert settle(engine, Outcome(late, "quarantined"), worker="slow") == []
    assert len(settle(engine, Outcome(current, "scored"), worker="quick")) == 1
    assert state_of(engine, 1) == "scored"


def test_a_renewed_lease_does_not_run_out(engine):
    receive(engine, arrival(1))
    held = claim(engine)
    expire_leases(engine)
    with session_scope(engine) as session:
        ledger.renew(session, held, worker="w1", lease_minutes=1)
        assert ledger.release_expired(session, max_attempts=3) == (0, [])


def test_released_studies_wait_again_without_an_attempt_counted(engine):
    receive(engine, arrival(1))
    held = claim(engine)
    with session_scope(engine) as session:
        assert ledger.release(session, held, worker="w1") == 1
    assert claim(engine)[0].attempts == 1


def test_a_study_put_off_waits_with_its_reason_and_is_not_claimed_at_once(engine):
    receive(engine, arrival(1))
    held = claim(engine)[0]
    with session_scope(engine) as session:
        ledger.put_off(session, held, worker="w1", reason="file_unavailable", detail="the file cannot be read")
    assert claim(engine) == []
    assert totals(engine).reasons["waiting studies"] == {"file_unavailable": 1}
    with session_scope(engine) as session:
        past = datetime.now(UTC) - timedelta(hours=2)
        session.execute(update(Study).values(not_before=past, unavailable_since=past))
    again = claim(engine)[0]
    assert again.attempts == 1
    assert again.unavailable_hours == pytest.approx(2, abs=0.1)


def test_waiting_studies_are_notified_once_and_again_only_later(engine):
    receive(engine, arrival(1), arrival(2))
    with session_scope(engine) as session:
        assert len(ledger.studies_to_notify(session, renotify_minutes=2, limit=10)) == 2
    with session_scope(engine) as session:
        assert ledger.studies_to_notify(session, renotify_minutes=2, limit=10) == []
        assert len(ledger.studies_to_notify(session, renotify_minutes=-1, limit=10)) == 2


def test_requeue_sends_the_quarantined_back_with_their_films(engine):
    receive(engine, arrival(1), arrival(2))
    for study in claim(engine):
        settle(engine, Outcome(study, "quarantined", "truncated"))
    with session_scope(engine) as session:
        session.execute(update(Instance).values(state="quarantined", reason="truncated"))
    with session_scope(engine) as session:
        assert len(ledger.requeue(session, study_instance_uid="2.25.1")) == 1
        assert ledger.requeue(session, reason="no_such_reason") == []
    assert [len(study.films) for study in claim(engine)] == [1]


def test_the_totals_balance_whatever_happened(engine):
    receive(engine, *(arrival(i) for i in range(1, 6)), arrival(6, view=None, reason="lateral_view"))
    held = claim(engine, studies=4)
    settle(engine, Outcome(held[0], "scored"), Outcome(held[1], "quarantined", "truncated"))
    with session_scope(engine) as session:
        for study, state in ((held[0], "scored"), (held[1], "quarantined")):
            session.execute(update(Instance).where(Instance.study_id == study.study_id).values(state=state))
        arrivals.reject(session, path="/x", path_digest="0" * 64, reason="not_dicom", detail="not DICOM")
    found = totals(engine)
    assert (found.received, found.scored, found.skipped, found.quarantined, found.waiting) == (6, 1, 1, 1, 3)
    assert found.claimed == 2
    assert found.balance
    assert found.rejected_files == 1


def a_checkpoint(engine: Engine) -> int:
    with session_scope(engine) as session:
        return registry.register(
            session, digest="d" * 64, path="/c", network="mobilenet", header={}, reference={}, by="test"
        ).id


def a_policy(engine: Engine) -> int:
    with session_scope(engine) as session:
        row = policies.add(session, findings=[], max_wait_minutes=720, category_a_share=0.1, by="test", note="")
        policies.activate(session, row, by="test")
        return row.id


def test_results_written_twice_are_the_same_rows(engine):
    receive(engine, arrival(1))
    checkpoint, policy = a_checkpoint(engine), a_policy(engine)
    film = FilmResult(1, "scored", pixel_digest="e" * 64, probabilities=tuple(i / 100 for i in range(11)))
    place = PriorityResult(1, "A", 0.7, None, "Pneumothorax", 0.7, checkpoint)
    for _ in range(2):
        with session_scope(engine) as session:
            results.record_films(session, [film], checkpoint_id=checkpoint, run_id=None)
            results.record_priorities(session, [place], policy_id=policy)
    with read_scope(engine) as session:
        assert session.scalar(select(func.count()).select_from(FilmScore)) == 1
        rows = session.execute(text("SELECT finding, probability FROM finding_score")).all()
        assert {name: round(p, 4) for name, p in rows} == {name: i / 100 for i, name in enumerate(FINDINGS)}
        assert round(session.execute(text("SELECT hernia FROM study_findings")).scalar_one(), 4) == 0.1
        found = session.execute(
            text("SELECT priority_rank, category, top_finding, checkpoint_digest FROM worklist")
        ).one()
        assert tuple(found) == (1, "A", "Pneumothorax", "d" * 64)


def test_a_run_counts_what_it_settled_and_keeps_the_ranks(engine):
    receive(engine, arrival(1), arrival(2))
    checkpoint, policy = a_checkpoint(engine), a_policy(engine)
    with session_scope(engine) as session:
        names: dict[str, Any] = {"kind": "night", "checkpoint_id": checkpoint, "policy_id": policy, "shared": True}
        run = runs.open_run(session, settings={}, **names)
        assert runs.open_run(session, settings={}, **names) == run
    for study in claim(engine):
        with session_scope(engine) as session:
            ledger.settle(session, [Outcome(study, "scored")], worker="w1", run_id=run)
    with session_scope(engine) as session:
        assert runs.close_idle(session, idle_minutes=0) == [run]
    with read_scope(engine) as session:
        assert session.get_one(Run, run).scored == 2
        assert [rank.priority_rank for rank in session.scalars(select(RunRank).order_by(RunRank.priority_rank))] == [
            1,
            2,
        ]


def test_a_run_keeps_the_head_of_the_list_and_what_it_settled(engine, monkeypatch):
    monkeypatch.setattr(runs, "HEAD", 2)
    receive(engine, *(arrival(number) for number in range(1, 8)))
    checkpoint, policy = a_checkpoint(engine), a_policy(engine)
    with session_scope(engine) as session:
        run = runs.open_run(
            session, kind="score", checkpoint_id=checkpoint, policy_id=policy, settings={}, shared=False
        )
        session.execute(update(Study).where(Study.study_instance_uid == "2.25.5").values(run_id=run))
        runs.close(session, run)
    with read_scope(engine) as session:
        kept = session.execute(text("SELECT priority_rank, study_instance_uid FROM run_order ORDER BY 1")).all()
        assert [tuple(row) for row in kept] == [(1, "2.25.1"), (2, "2.25.2"), (5, "2.25.5")]
        (counts,) = morning.counts(session, session.get_one(Run, run))
        assert (counts.category, counts.studies, counts.flagged, counts.read) == ("B", 7, 7, 0)
        assert [row["priority_rank"] for row in morning.ranked(session, session.get_one(Run, run), top=5)] == [1, 2]


def test_the_counts_of_a_run_are_those_of_its_end_and_what_was_read_since(engine):
    receive(engine, arrival(1, stat=True), arrival(2))
    checkpoint, policy = a_checkpoint(engine), a_policy(engine)
    with session_scope(engine) as session:
        run = runs.open_run(
            session, kind="score", checkpoint_id=checkpoint, policy_id=policy, settings={}, shared=False
        )
        (going_on,) = morning.counts(session, session.get_one(Run, run))
        runs.close(session, run)
    with session_scope(engine) as session:
        session.execute(
            update(StudyPriority).where(StudyPriority.stat).values(read_at=datetime(2099, 1, 1, tzinfo=UTC))
        )
    receive(engine, arrival(3))
    with read_scope(engine) as session:
        (counts,) = morning.counts(session, session.get_one(Run, run))
        assert (counts.studies, counts.stat, counts.read) == (2, 1, 1)
        assert going_on == replace(counts, read=0)


def test_the_totals_that_are_kept_follow_every_change(engine):
    receive(engine, *(arrival(i) for i in range(1, 8)), arrival(8, view=None, reason="lateral_view"))
    totals(engine)
    held = claim(engine, studies=5)
    totals(engine)
    settle(engine, Outcome(held[0], "scored"), Outcome(held[1], "quarantined", "truncated", "cut off"))
    with session_scope(engine) as session:
        states = {held[0].study_id: ("scored", None), held[1].study_id: ("quarantined", "truncated")}
        for study_id, (state, reason) in states.items():
            films = update(Instance).where(Instance.study_id == study_id)
            session.execute(films.values(state=state, reason=reason))
        for reason in ("not_dicom", "empty_file"):  # the second takes the place of the first
            arrivals.reject(session, path="/x", path_digest="0" * 64, reason=reason, detail="no film")
    assert totals(engine).reasons["rejected files"] == {"empty_file": 1}
    with session_scope(engine) as session:
        ledger.requeue(session)
        arrivals.forget_rejections(session, ["0" * 64])
    assert totals(engine).quarantined == 0
    with session_scope(engine) as session:
        session.execute(delete(Study).where(Study.state == "scored"))  # its film goes by its foreign key
    found = totals(engine)
    assert (found.received, found.films, found.rejected_files) == (7, 0, 0)
    with Session(engine) as session:
        session.execute(delete(Study))
        session.rollback()
    assert totals(engine).received == 7, "what is rolled back was not counted"


def test_totals_are_added_up_and_mended_without_a_change_of_the_sums(engine):
    for number in range(1, 30):
        receive(engine, arrival(number))
    with session_scope(engine) as session:
        add_up(session, most=5)
        assert session.scalar(select(func.count()).select_from(TotalChange)) == 2
    assert totals(engine).received == 29
    with session_scope(engine) as session:
        assert recount(session) == 0
        session.execute(update(TotalChange).where(TotalChange.counted == "study").values(change=3))
        assert recount(session) == 1
    assert totals(engine).waiting == 29


def test_totals_stay_right_while_writers_and_additions_meet(engine):
    receive(engine, *(arrival(i) for i in range(1, 41)))

    def work(name: str) -> None:
        while held := claim(engine, worker=name, studies=3):
            settle(engine, *(Outcome(study, "skipped", "no_film") for study in held), worker=name)
            with session_scope(engine) as session:
                add_up(session, most=0)
                recount(session)

    at_once(*(partial(work, f"w{i}") for i in range(4)))
    with read_scope(engine) as session:
        assert kept_totals(session).skipped == read_totals(session).skipped == 40
