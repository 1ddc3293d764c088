"""Studies sent again: corrections are taken over, damage is replaced, and the earlier version stays on record."""

import os
from pathlib import Path

import pytest
import typer
from sqlalchemy import select, update

from db import lookup
from db.base import database_now
from db.models import Instance, InstanceVersion, RejectedFile, Study, StudyPriority
from db.session import read_scope, session_scope
from db.totals import read_totals
from db.worklist import worklist
from tests.support.crew import environment_of
from tests.support.dicom_files import make_film, save, texture
from tests.support.values import present
from worker.cli import night
from worker.context import Context
from worker.explain import explain_file
from worker.intake.receive import Received, receive
from worker.intake.redecide import redecide
from worker.intake.view_rules import outdated
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer
from worker.setting_groups import ViewWords


def score(context: Context, *paths: Path) -> Received:
    received = receive(context, paths)
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    return received


def film_of(context: Context) -> Instance:
    with read_scope(context.engine) as session:
        assert read_totals(session).balance
        return session.scalars(select(Instance)).one()


def versions(context: Context) -> list[tuple[str | None, ...]]:
    """Cause, state and reason of what was held before, oldest first."""
    with read_scope(context.engine) as session:
        rows = session.execute(
            select(InstanceVersion.cause, InstanceVersion.state, InstanceVersion.reason).order_by(InstanceVersion.id)
        )
        return [tuple(row) for row in rows]


def damaged(path: Path) -> None:
    """Cut a film off in its pixels."""
    path.write_bytes(path.read_bytes()[:-4000])


def test_a_good_copy_replaces_a_film_in_quarantine_whenever_it_comes(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    damaged(tmp_path / "a.dcm")
    score(context, tmp_path)
    assert film_of(context).state == "quarantined"
    save(film, tmp_path / "b.dcm")
    assert score(context, tmp_path / "b.dcm").changed == 1
    found = film_of(context)
    assert (found.state, Path(found.path).name) == ("scored", "b.dcm")
    assert versions(context) == [("copy_sent", "quarantined", "truncated")]


def test_a_good_copy_in_the_same_intake_is_tried_when_the_first_cannot_be_read(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    save(film, tmp_path / "b.dcm")
    damaged(tmp_path / "a.dcm")
    score(context, tmp_path)
    found = film_of(context)
    assert (found.state, Path(found.path).name) == ("scored", "b.dcm")
    assert versions(context) == [("copy_tried", "quarantined", "truncated")]
    with read_scope(context.engine) as session:
        assert session.scalars(select(RejectedFile.reason)).all() == []
    score(context, tmp_path)  # the damaged one is still there, and changes nothing
    assert (film_of(context).state, Path(film_of(context).path).name) == ("scored", "b.dcm")


def test_score_says_that_a_rejected_copy_is_no_longer_among_the_rejected(embedded, tmp_path, monkeypatch, capsys):
    film = make_film(tmp_path / "a.dcm")
    save(film, tmp_path / "b.dcm")
    damaged(tmp_path / "a.dcm")
    for name, value in environment_of(embedded.settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(typer.Exit):
        night.score([tmp_path])
    printed = capsys.readouterr().out
    assert "1 rejected. 1 rejected copy took the place of a film that failed." in printed
    assert "files rejected at intake\t0" in printed


def test_of_two_damaged_copies_each_is_tried_once_a_time(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    save(film, tmp_path / "b.dcm")
    damaged(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes((tmp_path / "b.dcm").read_bytes()[:-2000])
    score(context, tmp_path)
    assert film_of(context).state == "quarantined"
    assert len(versions(context)) == 1


def test_a_file_that_now_names_another_study_is_refused_and_recorded(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    film.StudyInstanceUID = "1.2.3.99"
    save(film, tmp_path / "a.dcm")
    received = score(context, tmp_path)
    assert (received.known, received.rejected) == (0, 1)
    assert film_of(context).state == "scored"
    with read_scope(context.engine) as session:
        assert session.scalars(select(RejectedFile.reason)).all() == ["uid_taken"]
        assert session.scalars(select(Study.study_instance_uid)).all() != ["1.2.3.99"]


def test_films_sent_again_under_another_study_cost_no_film_that_comes_with_them(context, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    films = [make_film(first / f"{number}.dcm", StudyInstanceUID="2.25.1") for number in range(2)]
    receive(context, [first])
    for number, film in enumerate(films):
        film.StudyInstanceUID = "2.25.2"
        save(film, second / f"{number}.dcm")
    make_film(second / "9.dcm", StudyInstanceUID="2.25.2")
    received = receive(context, [second])
    assert (received.new_instances, received.rejected) == (1, 2)
    with read_scope(context.engine) as session:
        assert session.scalars(select(RejectedFile.reason)).all() == ["uid_taken"] * 2
        assert session.scalars(select(Study.study_instance_uid).order_by(Study.id)).all() == ["2.25.1", "2.25.2"]


def test_other_pixels_at_the_same_path_are_scored_and_the_study_is_unread_again(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    before = film_of(context)
    film.PixelData = texture(seed=1).tobytes()
    save(film, tmp_path / "a.dcm")
    received = score(context, tmp_path)
    assert (received.changed, received.known) == (1, 0)
    after = film_of(context)
    assert after.state == "scored"
    assert after.pixel_digest != before.pixel_digest
    assert versions(context) == [("file_changed", "scored", None)]


def test_a_file_that_was_only_touched_is_known(context, tmp_path):
    make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    os.utime(tmp_path / "a.dcm", (1, 1))
    received = score(context, tmp_path)
    assert (received.changed, received.known) == (0, 1)
    assert versions(context) == []


def test_a_file_whose_times_stand_still_is_not_read_again(context, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.intake.receive.SETTLED_AFTER_SECONDS", 0)
    make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    monkeypatch.setattr("worker.intake.receive.digest_at", lambda _: pytest.fail("the file was read"))
    assert receive(context, [tmp_path]).known == 1


@pytest.mark.parametrize(
    ("mended", "reason", "listed"),
    [({"ViewPosition": "LL"}, "lateral_view", 1), ({"BodyPartExamined": "HAND"}, "body_part_not_chest", 0)],
)
def test_a_film_whose_header_is_corrected_is_decided_again(mended, reason, listed, context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    right = {keyword: film[keyword].value for keyword in mended}
    for values, state, why, rows in ((mended, "skipped", reason, listed), (right, "scored", None, 1)):
        for keyword, value in values.items():
            setattr(film, keyword, value)
        save(film, tmp_path / "a.dcm")
        assert score(context, tmp_path).changed == 1
        found = film_of(context)
        assert (found.state, found.reason) == (state, why)
        with read_scope(context.engine) as session:
            assert session.scalars(select(Study.state)).one() == state
            shown = worklist(session)
            assert [row["flag"] for row in shown] == ["not_scored" if state == "skipped" else None] * rows
    assert versions(context) == [("header_changed", "scored", None), ("header_changed", "skipped", reason)]


def test_a_corrected_accession_number_of_a_study_of_one_film_is_taken_over(context, tmp_path):
    film = make_film(tmp_path / "a.dcm", AccessionNumber="WRONG")
    score(context, tmp_path)
    film.AccessionNumber = "RIGHT"
    save(film, tmp_path / "a.dcm")
    score(context, tmp_path)
    with read_scope(context.engine) as session:
        assert session.scalars(select(Study.accession_number)).one() == "RIGHT"


def test_a_file_that_moved_and_changed_is_decided_again(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    (tmp_path / "a.dcm").unlink()
    film.ViewPosition = "LL"
    save(film, tmp_path / "b.dcm")
    score(context, tmp_path)
    assert film_of(context).reason == "lateral_view"


# ------------------------------------------------------------------------------------------------------ two patients


def two_patients(folder: Path) -> str:
    film = make_film(folder / "a.dcm", PatientID="P1")
    make_film(folder / "b.dcm", PatientID="P2", StudyInstanceUID=film.StudyInstanceUID, pixels=texture(seed=1), bits=12)
    return str(film.StudyInstanceUID)


def test_a_second_patient_under_one_study_uid_is_kept_apart_and_flagged(context, tmp_path):
    uid = two_patients(tmp_path)
    score(context, tmp_path)
    with read_scope(context.engine) as session:
        study = present(lookup.study_named(session, uid))
        assert [(i.state, i.reason) for i in lookup.instances_of(session, study)] == [
            ("scored", None),
            ("skipped", "other_patient"),
        ]
        row = worklist(session)[0]
        assert row["flag"] == "two_patients"
        assert row["category"] <= "B"
        assert read_totals(session).reasons["skipped instances"] == {"other_patient": 1}


def test_a_second_patient_that_comes_later_brings_a_read_study_back_to_the_list(context, tmp_path):
    uid = two_patients(tmp_path)
    score(context, tmp_path / "a.dcm")
    with session_scope(context.engine) as session:
        session.execute(update(StudyPriority).values(read_at=database_now(session), read_by="kim"))
    score(context, tmp_path / "b.dcm")
    with read_scope(context.engine) as session:
        row = worklist(session)[0]
        assert (row["study_instance_uid"], row["flag"]) == (uid, "two_patients")


def test_a_patient_without_an_id_is_no_second_patient(context, tmp_path):
    film = make_film(tmp_path / "a.dcm", PatientID=None)
    make_film(tmp_path / "b.dcm", StudyInstanceUID=film.StudyInstanceUID, pixels=texture(seed=1), bits=12)
    score(context, tmp_path)
    with read_scope(context.engine) as session:
        assert [row["flag"] for row in worklist(session)] == [None]


def test_a_corrected_patient_id_of_a_study_of_one_film_is_taken_over_and_flags_nothing(context, tmp_path):
    film = make_film(tmp_path / "a.dcm", PatientID="WRONG")
    score(context, tmp_path)
    with read_scope(context.engine) as session:
        before = session.scalars(select(Study.patient_key)).one()
    film.PatientID = "RIGHT"
    save(film, tmp_path / "a.dcm")
    score(context, tmp_path)
    with read_scope(context.engine) as session:
        assert session.scalars(select(Study.patient_key)).one() != before
        assert [row["flag"] for row in worklist(session)] == [None]


# ------------------------------------------------------------------------------------------------- decided again


def test_what_a_setting_now_allows_is_decided_again_by_one_command(context, tmp_path):
    film = make_film(tmp_path / "a.dcm", Modality="OT")
    assert receive(context, [tmp_path]).new_instances == 1
    assert film_of(context).reason == "modality_not_accepted"
    wider = Context(context.settings.model_copy(update={"modalities": ("DX", "OT")}))
    assert [outdated(each.engine, each.settings) for each in (context, wider)] == [0, 1]
    assert redecide(wider).changed == 1
    assert film_of(wider).state == "waiting"
    assert outdated(wider.engine, wider.settings) == 0
    told = explain_file(context, tmp_path / "a.dcm")
    assert ("setting", "NIGHTREAD_MODALITIES=CR,DX,DR,OT would keep it") in told.facts
    assert told.structured["ledger"]["state"] == "waiting"
    assert told.structured["file"]["sop_instance_uid"] == film.SOPInstanceUID


def test_a_sites_new_word_is_a_changed_setting_and_decides_again(context, tmp_path):
    make_film(tmp_path / "a.dcm", view_position=None, SeriesDescription="Thorax Standaufnahme")
    assert receive(context, [tmp_path]).new_instances == 1
    assert film_of(context).reason == "view_unknown"
    hints = [text for name, text in explain_file(context, tmp_path / "a.dcm").facts if name == "setting"]
    assert hints == ["NIGHTREAD_VIEW_WORDS can name the words of this site's devices"]
    told = Context(context.settings.changed(view_words=ViewWords(PA=("Standaufnahme",))))
    assert outdated(told.engine, told.settings) == 1
    assert redecide(told).changed == 1
    assert (film_of(told).view, outdated(told.engine, told.settings)) == ("PA", 0)


def test_the_filters_opinion_and_the_ledgers_state_are_told_apart(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    assert dict(explain_file(context, tmp_path / "a.dcm").facts)["ledger"].startswith("not registered")
    damaged(tmp_path / "a.dcm")
    score(context, tmp_path)
    save(film, tmp_path / "b.dcm")
    told = dict(explain_file(context, tmp_path / "a.dcm").facts)
    assert (told["filter"], told["ledger"]) == ("would keep it", "quarantined")
    assert told["path"] == str(tmp_path / "a.dcm")
    assert "truncated" in told["ledger's reason"]
    (tmp_path / "letter").write_text("Dear colleague")
    receive(context, [tmp_path / "letter"])
    told = dict(explain_file(context, tmp_path / "letter").facts)
    assert (told["filter"], told["ledger"]) == ("refused before the filter", "rejected")
