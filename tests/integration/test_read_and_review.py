"""Studies are marked read and unread, and reviews are kept, by names, by CSV and from the command line."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import Engine, select
from typer.testing import CliRunner

from db import reading, worklist
from db.base import database_now
from db.models import Audit, Review, Study, StudyPriority
from db.reading import Answer, Opinion, Reading
from db.session import read_scope, session_scope
from tests.support.values import present
from worker.cli import read

EVENING = datetime(2026, 11, 20, 22, 30, tzinfo=UTC)


@pytest.fixture
def filled(engine: Engine) -> Engine:
    """Five studies on the list, the less urgent the later; ORDER-1 names two of them; and one that was never on it."""
    with session_scope(engine) as session:
        now = database_now(session) - timedelta(hours=1)
        for number, accession in enumerate(("A-1", "A-2", "ORDER-1", "ORDER-1", None, "CT-1"), start=1):
            study = Study(
                id=number,
                study_instance_uid=f"2.25.{number}",
                accession_number=accession,
                received_at=now,
                state="scored",
            )
            session.add(study)
            session.flush()
            place: dict[str, Any] = {"category": "C", "category_a": False, "urgency": 1 / number, "ranked_at": now}
            if accession != "CT-1":
                session.add(StudyPriority(study_id=number, received_at=now, **place))
    return engine


def unread_uids(engine: Engine) -> list[str]:
    with read_scope(engine) as session:
        return [row["study_instance_uid"] for row in worklist.worklist(session)]


def place(engine: Engine, study_id: int) -> StudyPriority:
    with read_scope(engine) as session:
        return session.get_one(StudyPriority, study_id)


def mark(engine: Engine, *readings: Reading, **options: bool) -> list[Answer]:
    with session_scope(engine) as session:
        return reading.mark_read(session, readings, **options)


def test_a_study_that_was_read_leaves_the_list_and_keeps_who_and_when(filled: Engine):
    answers = mark(filled, Reading("2.25.2", EVENING, "kim"), Reading("A-1"))
    assert answers == [Answer(1), Answer(1)]
    assert unread_uids(filled) == ["2.25.3", "2.25.4", "2.25.5"]
    assert (place(filled, 2).read_at, place(filled, 2).read_by) == (EVENING, "kim")
    assert abs(datetime.now(UTC) - present(place(filled, 1).read_at)) < timedelta(minutes=1)


def test_the_first_reading_stands(filled: Engine):
    assert mark(filled, Reading("A-1", EVENING, "kim"), Reading("2.25.1", EVENING, "lee")) == [Answer(1), Answer(0)]
    assert mark(filled, Reading("A-1", EVENING + timedelta(hours=1), "lee")) == [Answer(0)]
    assert (place(filled, 1).read_at, place(filled, 1).read_by) == (EVENING, "kim")


def test_what_cannot_be_marked_is_answered_with_its_reason_and_the_others_are_kept(filled: Engine):
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    readings = [Reading("2.25.999"), Reading("CT-1"), Reading("A-1", tomorrow), Reading("ORDER-1"), Reading("A-2")]
    answers = mark(filled, *readings)
    assert [answer.refused for answer in answers[:3]] == [reading.UNKNOWN, reading.NOT_LISTED, reading.FUTURE]
    assert answers[3].refused is not None
    assert "2 studies share this accession number" in answers[3].refused
    assert answers[4] == Answer(1)
    assert unread_uids(filled) == ["2.25.1", "2.25.3", "2.25.4", "2.25.5"]


def test_an_accession_number_may_mean_the_whole_order(filled: Engine):
    assert mark(filled, Reading("ORDER-1"), whole_order=True) == [Answer(2)]
    assert unread_uids(filled) == ["2.25.1", "2.25.2", "2.25.5"]


def test_a_uid_comes_before_an_accession_number_that_reads_like_it(filled: Engine):
    with session_scope(filled) as session:
        session.get_one(Study, 5).accession_number = "2.25.1"
    assert mark(filled, Reading("2.25.1")) == [Answer(1)]
    assert "2.25.5" in unread_uids(filled)


def test_unreading_brings_a_study_back_to_its_place_and_is_audited(filled: Engine):
    before = unread_uids(filled)
    mark(filled, Reading("A-2", EVENING, "kim"))
    with session_scope(filled) as session:
        answers = reading.mark_unread(session, ["A-2", "2.25.2", "A-1", "nobody"], by="ada")
    assert answers == [Answer(1), Answer(0), Answer(0), Answer(0, reading.UNKNOWN)]
    assert unread_uids(filled) == before
    assert (place(filled, 2).read_at, place(filled, 2).read_by) == (None, None)
    with read_scope(filled) as session:
        entry = session.scalars(select(Audit)).one()
    assert (entry.actor, entry.detail) == ("ada", {"study_ids": [2]})


def opinions(engine: Engine) -> dict[tuple[int, str, str], str]:
    with read_scope(engine) as session:
        return {(row.study_id, row.finding, row.reader): row.verdict for row in session.scalars(select(Review))}


def say(engine: Engine, *opinions: Opinion) -> list[Answer]:
    with session_scope(engine) as session:
        return reading.record_opinions(session, opinions)


def test_opinions_are_kept_once_per_study_finding_and_reader(filled: Engine):
    given = [Opinion("A-1", "Mass", "present", "kim", EVENING), Opinion("A-1", "Mass", "absent", "lee", EVENING)]
    assert say(filled, *given) == [Answer(1), Answer(1)]
    assert say(filled, *given) == [Answer(0), Answer(0)]
    assert opinions(filled) == {(1, "Mass", "kim"): "present", (1, "Mass", "lee"): "absent"}


def test_a_later_opinion_replaces_an_earlier_one_and_not_the_reverse(filled: Engine):
    later = Opinion("A-1", "Mass", "absent", "kim", EVENING + timedelta(hours=1))
    assert say(filled, Opinion("A-1", "Mass", "present", "kim", EVENING), later) == [Answer(1), Answer(1)]
    assert say(filled, Opinion("A-1", "Mass", "present", "kim", EVENING)) == [Answer(0)]
    assert opinions(filled) == {(1, "Mass", "kim"): "absent"}


def test_an_opinion_of_a_shared_accession_number_is_refused(filled: Engine):
    (answer,) = say(filled, Opinion("ORDER-1", "Mass", "present", "kim"))
    assert answer.refused is not None
    assert "name the Study Instance UID" in answer.refused


# -------------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def command(filled: Engine, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", filled.url.render_as_string(hide_password=False))
    return read.app


def invoke(command: typer.Typer, *words: str, code: int) -> Any:
    result = CliRunner().invoke(command, [*words, "--json"] if code < 2 else words)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code < 2 else " ".join(result.stderr.split())


def test_a_ris_file_marks_what_it_can_and_reports_each_line_that_it_cannot(
    command: typer.Typer, filled: Engine, tmp_path: Path
):
    table = tmp_path / "ris.csv"
    table.write_text(
        "Accession_Number;read_at;read_by\n"
        "A-1;2026-11-20T23:30:00;kim\n"
        "\n"
        "A-2;2026-11-20 22:30:00+00:00;\n"
        "A-3;2026-11-20T23:30:00;kim\n"
        ";2026-11-20T23:30:00;kim\n"
        "ORDER-1;gestern;kim\n"
        "ORDER-1;2026-11-20T23:30:00;kim;oops\n",
        encoding="utf-8-sig",
    )
    words = ("--csv", str(table), "--time-zone", "Europe/Berlin", "--reader", "RIS")
    answer = invoke(command, "read", *words, code=1)
    assert (answer["changed"], answer["unchanged"]) == (2, 0)
    assert [(problem["line"], problem["reason"].split(":")[0]) for problem in answer["left_out"]] == [
        (5, reading.UNKNOWN),
        (6, "no study"),
        (7, "the time is not ISO 8601, as 2026-11-20T23"),
        (8, "it has more fields than the header"),
    ]
    assert (place(filled, 1).read_at, place(filled, 1).read_by) == (EVENING, "kim")
    assert (place(filled, 2).read_at, place(filled, 2).read_by) == (EVENING, "RIS")
    again = invoke(command, "read", *words, code=1)
    assert (again["changed"], again["unchanged"]) == (0, 2)


def test_reviews_come_as_one_finding_per_line_or_as_a_column_per_finding(
    command: typer.Typer, filled: Engine, tmp_path: Path
):
    long, wide = tmp_path / "long.csv", tmp_path / "wide.csv"
    long.write_text(
        "study_instance_uid,finding,verdict,reader,reviewed_at\n"
        "2.25.1,pneumothorax,Present,kim,2026-11-20T22:30:00Z\n"
        "2.25.1,Cough,present,kim,2026-11-20T22:30:00Z\n"
        "2.25.2,Mass,perhaps,kim,2026-11-20T22:30:00Z\n"
    )
    answer = invoke(command, "review", "--csv", str(long), code=1)
    assert [problem["line"] for problem in answer["left_out"]] == [3, 4]
    wide.write_text("study_instance_uid,Pleural_Thickening,effusion,hernia\n2.25.2,1,0,\n2.25.3,not assessed,,\n")
    assert invoke(command, "review", "--csv", str(wide), "--reader", "lee", code=0)["changed"] == 3
    assert invoke(command, "review", "--csv", str(wide), "--reader", "lee", code=0)["left_out"] == []
    assert opinions(filled) == {
        (1, "Pneumothorax", "kim"): "present",
        (2, "Pleural_Thickening", "lee"): "present",
        (2, "Effusion", "lee"): "absent",
        (3, "Pleural_Thickening", "lee"): "not_assessed",
    }


def test_a_cell_that_no_csv_may_hold_costs_its_own_line(command: typer.Typer, filled: Engine, tmp_path: Path):
    table = tmp_path / "ris.csv"
    table.write_text(
        "accession_number,read_at,read_by\n"
        "A-1,2026-11-20T23:30:00Z,kim\n"
        'A-2,2026-11-20T23:30:00Z,"kim"x\n'
        "A-2,0001-01-01T00:00:00+14:00,kim\n"
        "A-2,2026-11-20T23:30:00Z,k\0m\n"
        f"A-2,2026-11-20T23:30:00Z,{'k' * 65}\n"
    )
    answer = invoke(command, "read", "--csv", str(table), code=1)
    assert answer["changed"] == 2
    assert [problem["line"] for problem in answer["left_out"]] == [3, 4, 5]
    assert invoke(command, "read", "2.25.5", "--reader", "k" * 65, code=0)["changed"] == 1


def test_a_column_per_finding_may_be_written_in_words_and_is_never_lost(
    command: typer.Typer, filled: Engine, tmp_path: Path
):
    table = tmp_path / "wide.csv"
    table.write_text("accession_number,reader,pneumothorax,Pleural Thickening,Modality\nA-1,kim,1,1,DX\n")
    assert invoke(command, "review", "--csv", str(table), code=0)["changed"] == 2
    table.write_text("accession_number,reader,pneumothorax,efusion\nA-1,kim,1,1\n")
    assert "is it effusion?" in invoke(command, "review", "--csv", str(table), code=2)


def test_one_study_is_read_brought_back_and_reviewed_by_hand(command: typer.Typer, filled: Engine):
    assert invoke(command, "read", "A-1", "--reader", "kim", code=0)["changed"] == 1
    assert "2.25.1" not in unread_uids(filled)
    assert invoke(command, "unread", "A-1", code=0)["changed"] == 1
    assert unread_uids(filled)[0] == "2.25.1"
    words = ("--reader", "kim", "--present", "Pneumothorax", "--absent", "effusion", "--not-assessed", "Hernia")
    assert invoke(command, "review", "A-1", *words, code=0)["changed"] == 3
    assert opinions(filled)[1, "Effusion", "kim"] == "absent"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("read",), "name studies, or give --csv FILE"),
        (("read", "A-1", "--at", "2026-11-20T22:30:00"), "the time has no zone"),
        (("read", "A-1", "--time-zone", "Mars/Olympus"), "no time zone is called"),
        (("review", "A-1", "--reader", "kim"), "at least one of --present"),
        (("review", "A-1", "--reader", "kim", "--present", "Cough"), "no finding is called 'Cough'"),
        (("review", "A-1", "--reader", "kim", "--present", "Mass", "--absent", "mass"), "Mass is named twice"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(command: typer.Typer, words: tuple[str, ...], complaint: str):
    assert complaint in invoke(command, *words, code=2)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no column study_instance_uid or accession_number"),
        (b"patient,read_at\n1,2\n", "no column study_instance_uid or accession_number"),
        (b"accession_number,accession_number\n1,2\n", "two columns of the same name"),
        ("accession_number\nMüller\n".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused_whole(
    command: typer.Typer, filled: Engine, tmp_path: Path, content: bytes, complaint: str
):
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    assert complaint in invoke(command, "read", "--csv", str(table), code=2)
    assert len(unread_uids(filled)) == 5


def test_any_number_of_names_is_answered(filled: Engine):
    names = [f"N{number}" for number in range(40_000)] + ["A-1"]  # two parameters each: more than a driver takes
    answers = mark(filled, *map(Reading, names))
    assert (len(answers), answers[0].refused, answers[-1].changed) == (40_001, reading.UNKNOWN, 1)
    with session_scope(filled) as session:
        assert reading.mark_unread(session, names, by="test")[-1].changed == 1
