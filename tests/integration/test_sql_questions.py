"""docs/reference/sql.md, asked on SQLite and on PostgreSQL of a small database whose answers are known."""

import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, inspect, update
from sqlalchemy.orm import Session

from db.models import (
    FINDING_COLUMNS,
    Checkpoint,
    Delivery,
    Drift,
    FilmScore,
    Instance,
    PolicyFindingRow,
    PolicyRow,
    Review,
    Run,
    RunRank,
    Study,
    StudyPriority,
)
from db.reference import keep_reference
from db.session import session_scope
from tests.support.reading_keys import standing
from training.findings import FINDINGS
from worker.ranking.priority import BLIND, DEFAULT_POLICY, NOT_SCORED, top_findings

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "sql.md").read_text(encoding="utf-8")
QUESTIONS = {
    int(number): statement.strip().rstrip(";")
    for number, statement in re.findall(r"^### (\d+)\. .*?```sql\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
}
MARK_READ, UNREAD = re.findall(r"```sql\n(UPDATE .*?);\n```", PAGE, re.DOTALL)

EVENING = datetime(2026, 11, 20, 23, tzinfo=UTC)
LEVELS = [level / 100 for level in range(101)]
CHECKPOINT_THRESHOLD, PNEUMOTHORAX_THRESHOLD = 0.5, 0.3


def add_study(
    session: Session,
    name: str,
    *,
    received_at: datetime,
    probabilities: dict[str, float] | None = None,
    read_after_minutes: float | None = None,
    state: str = "scored",
    reason: str | None = None,
    view: str | None = "PA",
    **values: Any,
) -> int:
    """A study of one film; `probabilities` None: no model scored it."""
    row = None if probabilities is None else dict.fromkeys(FINDINGS, 0.0) | probabilities
    thresholds = {finding: PNEUMOTHORAX_THRESHOLD if finding == "Pneumothorax" else 0.5 for finding in FINDINGS}
    place = standing(row, DEFAULT_POLICY, thresholds)
    study = Study(
        study_instance_uid=f"2.25.{int.from_bytes(name.encode(), 'big')}",
        accession_number=name,
        received_at=received_at,
        settled_at=None if state == "waiting" else received_at + timedelta(minutes=2),
        state=state,
        reason=reason,
        **values,
    )
    session.add(study)
    session.flush()
    top = None if row is None else FINDINGS[top_findings([list(row.values())], DEFAULT_POLICY, thresholds)[0]]
    session.add(
        StudyPriority(
            study_id=study.id,
            stat=study.stat,
            received_at=received_at,
            category=place.category,
            category_a=place.category == "A",
            urgency=place.urgency,
            flag=place.flag,
            top_finding=top,
            top_probability=row[top] if row and top else None,
            checkpoint_id=1 if row else None,
            policy_id=1,
            ranked_at=received_at,
            read_at=None if read_after_minutes is None else received_at + timedelta(minutes=read_after_minutes),
        )
    )
    film = add_instance(session, study, "1", view=view, state=state, reason=reason)
    if row:
        scores = dict(zip(FINDING_COLUMNS, (row[finding] for finding in FINDINGS), strict=True))
        session.add(FilmScore(instance_id=film.id, checkpoint_id=1, scored_at=received_at, **scores))
    return study.id


def add_instance(session: Session, study: Study, number: str, **values: Any) -> Instance:
    instance = Instance(
        study_id=study.id,
        sop_instance_uid=f"{study.study_instance_uid}.{number}",
        path="/films/1.dcm",
        modality="DX",
        received_at=study.received_at,
        **values,
    )
    session.add(instance)
    session.flush()
    return instance


def add_policy_and_checkpoint(session: Session) -> None:
    cuts = {finding: {"flag_10": CHECKPOINT_THRESHOLD} for finding in FINDINGS}
    session.add(
        Checkpoint(
            id=1,
            digest="c" * 64,
            path="/models/one.safetensors",
            network="densenet121",
            state="champion",
            state_changed_at=EVENING,
            state_changed_by="test",
            header={"thresholds": cuts},
            registered_at=EVENING,
        )
    )
    session.flush()
    # The films of the reference spread evenly over 0 to 1 for every finding.
    keep_reference(session, 1, {"levels": LEVELS, "probabilities": dict.fromkeys(FINDINGS, LEVELS)})
    wait = round(DEFAULT_POLICY.max_wait_minutes)
    policy = {"max_wait_minutes": wait, "category_a_share": 0.1, "created_at": EVENING, "created_by": "test"}
    session.add(PolicyRow(id=1, version=1, active=True, **policy))
    session.flush()
    for row in DEFAULT_POLICY.findings:
        values = asdict(row)
        if row.finding == "Pneumothorax":
            values["threshold"] = PNEUMOTHORAX_THRESHOLD
        session.add(PolicyFindingRow(policy_id=1, **values))


def add_deliveries(session: Session, study_id: int) -> None:
    """A report that an archive keeps, and a message that waits for its RIS."""
    result: dict[str, Any] = {"study_id": study_id, "checkpoint_id": 1, "policy_id": 1, "revision": 1}
    result |= {"published_at": EVENING, "queued_at": EVENING}
    for kind, destination, state, reason in (
        ("sr", "pacs", "confirmed", None),
        ("oru", "ris", "waiting", "destination_away"),
    ):
        row = {"kind": kind, "destination": destination, "state": state, "reason": reason}
        session.add(Delivery(**result, **row, object_uid=f"2.25.{kind}", attempts=1))


def fill(session: Session) -> None:
    """A night of four scored studies that were read, one skipped, one quarantined; and three studies of this moment."""
    add_policy_and_checkpoint(session)

    def at(minutes: float) -> datetime:
        return EVENING + timedelta(minutes=minutes)

    a1 = add_study(session, "A1", received_at=at(0), probabilities={"Pneumothorax": 0.9}, read_after_minutes=20)
    a2 = add_study(session, "A2", received_at=at(30), probabilities={"Pneumothorax": 0.35}, read_after_minutes=40)
    a3 = add_study(session, "A3", received_at=at(120), probabilities={"Effusion": 0.2}, read_after_minutes=480)
    a4 = add_study(session, "A4", received_at=at(180), probabilities={"Hernia": 0.1}, read_after_minutes=360, view="AP")
    lateral: dict[str, Any] = {"view": None, "state": "skipped", "reason": "lateral_view"}
    add_instance(session, session.get_one(Study, a1), "2", **lateral)
    add_study(session, "S1", received_at=at(240), **lateral)
    add_study(session, "Q1", received_at=at(270), state="quarantined", reason="truncated", attempts=3)

    now = datetime.now(UTC)
    n1, n2 = {"Pneumothorax": 0.8, "Edema": 0.1}, {"Effusion": 0.7, "Mass": 0.5}
    add_study(session, "N1", received_at=now, probabilities=n1)
    add_deliveries(session, add_study(session, "N2", received_at=now, probabilities=n2))
    add_study(session, "N3", received_at=now, state="waiting", stat=True)

    for day, measure, subject, value, level in (
        ("2026-10-31", "psi", "Hernia", 0.9, "act"),
        ("2026-11-18", "psi", "Effusion", 0.01, "quiet"),
        ("2026-11-19", "psi", "Effusion", 0.4, "act"),
        ("2026-11-19", "ks", "Mass", 0.15, "warn"),
        ("2026-11-19", "shares", "view", 0.0, "quiet"),
        ("2026-11-20", "psi", "Effusion", 0.2, "warn"),
    ):
        figure = {"day": day, "measure": measure, "subject": subject, "value": value, "level": level}
        session.add(Drift(**figure, reference=0.04, films=250, checkpoint_id=1, computed_at=EVENING))

    session.add(Run(id=1, kind="night", started_at=EVENING, settings={}, checkpoint_id=1, policy_id=1))
    session.flush()
    for rank, study_id in enumerate((a1, a2, a3, a4), start=1):
        session.add(RunRank(run_id=1, study_id=study_id, priority_rank=rank, category="D", urgency=0.0, overdue=False))
    for study_id, finding, verdict, reader in (
        (a1, "Pneumothorax", "present", "kim"),
        (a2, "Pneumothorax", "absent", "kim"),
        (a2, "Pneumothorax", "present", "lee"),
        (a3, "Effusion", "present", "kim"),
        (a4, "Effusion", "absent", "kim"),
        (a4, "Mass", "not_assessed", "kim"),
    ):
        session.add(Review(study_id=study_id, finding=finding, verdict=verdict, reader=reader, reviewed_at=at(600)))


Rows = list[dict[str, Any]]


def only(rows: Rows, **where: Any) -> dict[str, Any]:
    (row,) = (row for row in rows if all(row[name] == value for name, value in where.items()))
    return row


def names(rows: Rows) -> list[str]:
    return [row["accession_number"] for row in rows]


def next_ten(rows: Rows) -> None:
    # STAT, then the two that waited longer than twelve hours, then category A, then the most urgent
    assert names(rows) == ["N3", "S1", "Q1", "N1", "N2"]
    n1 = rows[3]
    assert (n1["top_finding"], n1["top_lift"], n1["top_share"]) == (
        "Pneumothorax",
        pytest.approx(1.6),
        pytest.approx(0.2),
    )
    assert rows[0]["top_lift"] is rows[0]["top_share"] is None
    assert [row["priority_rank"] for row in rows] == [1, 2, 3, 4, 5]


def place_of_one(rows: Rows) -> None:
    (row,) = rows
    assert (row["priority_rank"], row["category"], row["top_finding"]) == (5, "B", "Effusion")
    assert row["category_because"] == "Effusion"
    assert 0 <= row["waited_minutes"] < 5


def parts_of_one(rows: Rows) -> None:
    assert [row["finding"] for row in rows[:2]] == ["Effusion", "Mass"]
    assert len(rows) == len(FINDINGS)
    assert sum(row["contribution"] for row in rows) == pytest.approx(0.7 * 0.4 + 0.5 * 0.06)
    assert (rows[0]["lift"], rows[0]["share"]) == (pytest.approx(1.4), pytest.approx(0.3))
    assert [bool(row["counts"]) for row in rows[:3]] == [True, True, False]
    assert only(rows, finding="Pneumothorax")["threshold"] == PNEUMOTHORAX_THRESHOLD
    assert only(rows, finding="Edema")["threshold"] == CHECKPOINT_THRESHOLD


def pneumothorax_since_midnight(rows: Rows) -> None:
    assert names(rows) == ["N1"]
    assert rows[0]["pneumothorax"] == pytest.approx(0.8)


def unread_by_category(rows: Rows) -> None:
    assert [(row["category"], row["unread"], row["overdue"]) for row in rows] == [("A", 1, 0), ("B", 4, 2)]


def waited_too_long(rows: Rows) -> None:
    assert names(rows) == ["S1", "Q1"]


def not_vouched_for(rows: Rows) -> None:
    assert [(row["accession_number"], row["state"], row["reason"]) for row in rows] == [
        ("N3", "waiting", None),
        ("S1", "skipped", "lateral_view"),
        ("Q1", "quarantined", "truncated"),
    ]
    assert {row["flag"] for row in rows} == {NOT_SCORED}


def the_totals(rows: Rows) -> None:
    night = only(rows, night="2026-11-20")
    assert (night["received"], night["scored"], night["skipped"], night["quarantined"]) == (6, 4, 1, 1)
    for row in rows:
        assert row["received"] == row["scored"] + row["skipped"] + row["quarantined"] + row["waiting"]
    assert sum(row["waiting"] for row in rows) == 1


def skips_by_reason(rows: Rows) -> None:
    (row,) = rows
    assert (row["reason"], bool(row["in_scope"]), row["instances"], row["studies"]) == ("lateral_view", True, 2, 2)


def quarantine(rows: Rows) -> None:
    assert [(row["accession_number"], row["reason"], row["attempts"]) for row in rows] == [("Q1", "truncated", 3)]


def median_waits(rows: Rows) -> None:
    medians = {row["category"]: (row["studies"], row["median_minutes"]) for row in rows}
    assert medians == {"A": (2, pytest.approx(30)), "D": (2, pytest.approx(420))}


def answer_times(rows: Rows) -> None:
    night = only(rows, night="2026-11-20")
    assert night["scored"] == 4
    assert (night["mean_minutes"], night["longest_minutes"]) == (pytest.approx(2), pytest.approx(2))


def studies_by_hour(rows: Rows) -> None:
    assert sum(row["studies"] for row in rows) == 9
    assert only(rows, hour=23)["studies"] >= 2  # A1 and A2; the three of this moment may have come at 23 h too
    assert sum(row["studies_per_night"] for row in rows) == pytest.approx(9 / 2)


def kinds_of_film(rows: Rows) -> None:
    assert only(rows, view="PA")["scored"] == 5
    assert only(rows, view="AP") == {"modality": "DX", "view": "AP", "instances": 1, "scored": 1}
    assert only(rows, view=None)["scored"] == 0


def false_alarms(rows: Rows) -> None:
    assert [(row["accession_number"], row["finding"], row["reader"]) for row in rows] == [("A2", "Pneumothorax", "kim")]


def misses(rows: Rows) -> None:
    (row,) = rows
    assert (row["accession_number"], row["finding"], row["threshold"]) == ("A3", "Effusion", CHECKPOINT_THRESHOLD)
    assert row["probability"] == pytest.approx(0.2)


def agreement(rows: Rows) -> None:
    assert [row["finding"] for row in rows] == ["Effusion", "Pneumothorax"]
    effusion, pneumothorax = rows
    assert (effusion["missed"], effusion["rightly_silent"], effusion["agreement_percent"]) == (1, 1, 50)
    assert (pneumothorax["found"], pneumothorax["false_alarms"]) == (2, 1)
    assert float(pneumothorax["agreement_percent"]) == pytest.approx(100 * 2 / 3)


def contradictions(rows: Rows) -> None:
    (row,) = rows
    assert (row["accession_number"], row["reader"], row["other_reader"]) == ("A2", "kim", "lee")


def order_kept(rows: Rows) -> None:
    assert [(row["accession_number"], row["read_as"]) for row in rows] == [("A1", 1), ("A2", 2), ("A3", 4), ("A4", 3)]


def drift(rows: Rows) -> None:
    night = only(rows, night="2026-11-20")
    assert night["scored"] == 4
    assert night["mean_pneumothorax"] == pytest.approx((0.9 + 0.35) / 4)
    assert float(night["category_a_percent"]) == 50


def blind_beside_ranked(rows: Rows) -> None:
    found = {(row["confirmed_as"], row["listed"]): (row["studies"], row["median_minutes"]) for row in rows}
    assert found.pop(("pneumothorax", "ranked")) == (2, pytest.approx(30))
    assert found.pop(("other", "ranked")) == (2, pytest.approx(420))
    assert found in (
        {},
        {("pneumothorax", "blind"): (3, pytest.approx(300)), ("other", "blind"): (2, pytest.approx(150))},
    )


def days_that_drifted(rows: Rows) -> None:
    assert [(row["measure"], row["subject"]) for row in rows] == [("psi", "Effusion"), ("ks", "Mass")]
    effusion, mass = rows
    assert (effusion["days_judged"], effusion["days_that_warn"], effusion["days_to_act"]) == (3, 1, 1)
    assert (effusion["last_alarm"], effusion["farthest"]) == ("2026-11-20", pytest.approx(0.4))
    assert (mass["days_that_warn"], mass["days_to_act"], mass["last_alarm"]) == (1, 0, "2026-11-19")


def rules_in_force(rows: Rows) -> None:
    assert [row["finding"] for row in rows][:3] == ["Pneumothorax", "Effusion", "Consolidation"]
    assert len(rows) == len(FINDINGS)
    pneumothorax, effusion = rows[:2]
    assert (pneumothorax["threshold"], effusion["threshold"]) == (PNEUMOTHORAX_THRESHOLD, CHECKPOINT_THRESHOLD)
    assert (pneumothorax["flagged_share"], effusion["flagged_share"]) == (pytest.approx(0.7), pytest.approx(0.5))
    assert effusion["usual_probability"] == pytest.approx(0.5)


def sent_of_a_study(rows: Rows) -> None:
    assert [(row["kind"], row["destination"], row["state"]) for row in rows] == [
        ("oru", "ris", "waiting"), ("sr", "pacs", "confirmed")]  # fmt: skip


def stuck_results(rows: Rows) -> None:
    (row,) = rows
    assert (row["destination"], row["kind"], row["reason"], row["results"]) == ("ris", "oru", "destination_away", 1)


ANSWERS = {
    1: next_ten,
    2: place_of_one,
    3: parts_of_one,
    4: pneumothorax_since_midnight,
    5: unread_by_category,
    6: waited_too_long,
    7: not_vouched_for,
    8: the_totals,
    9: skips_by_reason,
    10: quarantine,
    11: median_waits,
    12: answer_times,
    13: studies_by_hour,
    14: kinds_of_film,
    15: false_alarms,
    16: misses,
    17: agreement,
    18: contradictions,
    19: order_kept,
    20: drift,
    21: blind_beside_ranked,
    22: days_that_drifted,
    23: rules_in_force,
    24: sent_of_a_study,
    25: stuck_results,
}


@pytest.fixture
def connection(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection, in the time zone of UTC, to a filled database."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with session_scope(engine) as session:
        fill(session)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TIME ZONE 'UTC'")
        yield connection
    monkeypatch.undo()
    time.tzset()


def test_the_pages_questions_are_numbered_in_their_order():
    assert re.findall(r"^### (\d+)\.", PAGE, re.MULTILINE) == [str(number) for number in range(1, len(QUESTIONS) + 1)]


def test_every_question_of_the_page_has_an_answer_here():
    assert len(QUESTIONS) >= 20
    assert sorted(QUESTIONS) == sorted(ANSWERS) == list(range(1, len(QUESTIONS) + 1))


def test_blind_studies_are_timed_beside_ranked_ones(engine: Engine):
    with session_scope(engine) as session:
        fill(session)
        for i, (minutes, confirmed) in enumerate(((200, True), (300, True), (900, True), (100, False), (200, False))):
            blind = add_study(session, f"B{i}", received_at=EVENING, probabilities={}, read_after_minutes=minutes)
            session.execute(update(StudyPriority).where(StudyPriority.study_id == blind).values(flag=BLIND))
            if confirmed:
                verdict = {"finding": "Pneumothorax", "verdict": "present", "reader": "kim", "reviewed_at": EVENING}
                session.add(Review(study_id=blind, **verdict))
        add_study(session, "STAT", received_at=EVENING, probabilities={}, read_after_minutes=1, stat=True)
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.exec_driver_sql(QUESTIONS[21]).mappings()]
    assert len(rows) == 4
    blind_beside_ranked(rows)


def test_every_question_gets_its_answer(connection: Connection, subtests: pytest.Subtests):
    for number, statement in QUESTIONS.items():
        with subtests.test(f"question {number}"):
            rows = [dict(row) for row in connection.exec_driver_sql(statement).mappings()]
            ANSWERS[number](rows)


def test_every_question_asks_views_only_so_a_reader_may_ask_it(engine: Engine):
    views = set(inspect(engine).get_view_names())
    for number, statement in QUESTIONS.items():
        own = set(re.findall(r"(?:WITH|,)\s+(\w+) AS \(", statement))
        asked = set(re.findall(r"(?:FROM|JOIN)\s+(\w+)", statement))
        assert asked - own <= views, f"question {number}"


def test_no_view_shows_a_patient_or_a_path(engine: Engine):
    inspector = inspect(engine)
    shown = {column["name"] for view in inspector.get_view_names() for column in inspector.get_columns(view)}
    assert not shown & {"patient_key", "patient_sex", "patient_age_years", "path", "detail", "evidence"}


def test_one_statement_takes_a_study_off_the_list_and_another_brings_it_back(connection: Connection):
    uid = connection.exec_driver_sql(
        "SELECT study_instance_uid FROM worklist WHERE accession_number = 'N1'"
    ).scalar_one()
    before = names([dict(row) for row in connection.exec_driver_sql(QUESTIONS[1]).mappings()])
    assert connection.exec_driver_sql(MARK_READ.replace("2.25.11", uid)).rowcount == 1
    during = names([dict(row) for row in connection.exec_driver_sql(QUESTIONS[1]).mappings()])
    connection.exec_driver_sql(UNREAD.replace("2.25.11", uid))
    after = names([dict(row) for row in connection.exec_driver_sql(QUESTIONS[1]).mappings()])
    assert during == [name for name in before if name != "N1"]
    assert after == before
