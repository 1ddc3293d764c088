"""The whole story in one process, on both databases: from files to ranks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from pydicom.uid import generate_uid
from sqlalchemy import select, text
from sqlalchemy.exc import DataError, OperationalError

from db import arrivals, ledger
from db.models import FilmScore, Instance, RejectedFile, Run, RunRank, Study
from db.session import read_scope, session_scope
from db.totals import read_totals
from db.worklist import worklist
from tests.support.contexts import with_settings
from tests.support.dicom_files import make_film, save, texture
from worker.context import Context
from worker.intake.receive import receive
from worker.scoring.decoder_pool import DecodersGone
from worker.scoring.inference import DeviceGone
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer


def score(context: Context, folder: Path, *, should_stop: Callable[[], bool] = lambda: False, **kwargs):
    receive(context, [folder])
    with open_scorer(context, should_stop=should_stop) as scorer:
        return score_waiting(scorer, kind="score", **kwargs)


def one(context: Context, statement):
    with read_scope(context.engine) as session:
        return session.execute(statement).one()


def state_of(context: Context, uid: str):
    return tuple(one(context, select(Study.state, Study.reason).where(Study.study_instance_uid == uid)))


def test_films_become_ranked_studies(context, tmp_path):
    films = [make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12) for i in range(6)]
    tally = score(context, tmp_path)
    assert (tally.studies, tally.scored, tally.films) == (6, 6, 6)
    with read_scope(context.engine) as session:
        rows = worklist(session)
        assert [row["priority_rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert {row["study_instance_uid"] for row in rows} == {film.StudyInstanceUID for film in films}
        assert [dict(row) for row in worklist(session, limit=50)] == [dict(row) for row in rows]
        urgencies = [row["urgency"] for row in rows if row["category"] != "A"]
        assert urgencies == sorted(urgencies, reverse=True)
        assert read_totals(session).balance


def test_a_second_run_finds_nothing_to_do_and_changes_nothing(context, tmp_path):
    make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    before = one(context, select(FilmScore.id, FilmScore.pneumothorax, FilmScore.scored_at))
    tally = score(context, tmp_path)
    assert tally.studies == 0
    assert one(context, select(FilmScore.id, FilmScore.pneumothorax, FilmScore.scored_at)) == before


def test_a_film_scores_the_same_alone_and_in_company(context, tmp_path):
    make_film(tmp_path / "0.dcm", pixels=texture(seed=0), bits=12)
    score(context, tmp_path)
    alone = one(context, select(FilmScore.hernia, FilmScore.mass))
    for i in range(1, 8):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    receive(context, [tmp_path])
    with session_scope(context.engine) as session:
        session.execute(text("UPDATE study SET state = 'waiting'"))
    score(context, tmp_path)
    with read_scope(context.engine) as session:
        assert session.execute(select(FilmScore.hernia, FilmScore.mass).order_by(FilmScore.id)).first() == alone


def test_a_lateral_is_skipped_with_its_reason_and_never_read(context, tmp_path):
    lateral = make_film(tmp_path / "a.dcm", view_position="LL")
    receive(context, [tmp_path])
    (tmp_path / "a.dcm").unlink()
    tally = score(context, tmp_path)
    assert tally.studies == 0
    assert state_of(context, lateral.StudyInstanceUID) == ("skipped", "lateral_view")


def test_a_broken_film_costs_neither_its_neighbours_nor_its_study(context, tmp_path):
    good = make_film(tmp_path / "good.dcm")
    pair = make_film(tmp_path / "pair-1.dcm")
    make_film(tmp_path / "pair-2.dcm", StudyInstanceUID=pair.StudyInstanceUID, PixelData=b"\0\0")
    broken = make_film(tmp_path / "broken.dcm", PixelData=b"\0\0")
    tally = score(context, tmp_path)
    assert (tally.scored, tally.quarantined) == (2, 1)
    assert state_of(context, good.StudyInstanceUID) == ("scored", None)
    assert state_of(context, pair.StudyInstanceUID)[0] == "scored"
    assert state_of(context, broken.StudyInstanceUID)[0] == "quarantined"
    with read_scope(context.engine) as session:
        flags = {row["study_instance_uid"]: row["flag"] for row in worklist(session)}
    assert flags == {
        good.StudyInstanceUID: None,
        pair.StudyInstanceUID: "partly_scored",
        broken.StudyInstanceUID: "not_scored",
    }


def test_two_films_with_the_same_pixels_in_a_study_count_once(context, tmp_path):
    first = make_film(tmp_path / "1.dcm")
    make_film(tmp_path / "2.dcm", StudyInstanceUID=first.StudyInstanceUID)
    assert score(context, tmp_path).films == 1
    with read_scope(context.engine) as session:
        assert session.scalar(select(Instance.reason).where(Instance.state == "skipped")) == "duplicate_pixels"


def test_a_film_that_cannot_be_reached_waits_and_is_scored_when_it_is_back(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    receive(context, [tmp_path])
    (tmp_path / "a.dcm").rename(tmp_path / "away")
    with open_scorer(context) as scorer:
        assert score_waiting(scorer, kind="score").put_off == 1
        assert state_of(context, film.StudyInstanceUID) == ("waiting", "file_unavailable")
        (tmp_path / "away").rename(tmp_path / "a.dcm")
        with session_scope(context.engine) as session:
            session.execute(text("UPDATE study SET not_before = NULL"))
        assert score_waiting(scorer, kind="score").scored == 1
    assert state_of(context, film.StudyInstanceUID) == ("scored", None)


def test_a_film_away_for_longer_than_the_limit_is_quarantined(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    context = with_settings(context, unavailable_hours=0.0)
    receive(context, [tmp_path])
    (tmp_path / "a.dcm").unlink()
    with open_scorer(context) as scorer:
        assert score_waiting(scorer, kind="score").quarantined == 1
    assert state_of(context, film.StudyInstanceUID) == ("quarantined", "file_unavailable")


def test_a_file_replaced_by_another_instance_is_quarantined(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    receive(context, [tmp_path])
    make_film(tmp_path / "a.dcm")
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    assert state_of(context, film.StudyInstanceUID) == ("quarantined", "file_replaced")


def test_a_uid_with_other_pixels_is_rejected_and_the_first_is_kept(context, tmp_path):
    uids: dict[str, Any] = {"SOPInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    make_film(tmp_path / "1.dcm", **uids)
    make_film(tmp_path / "2.dcm", pixels=texture(seed=9), bits=12, **uids)
    (tmp_path / "3.dcm").write_bytes((tmp_path / "1.dcm").read_bytes())
    received = receive(context, [tmp_path])
    assert (received.new_instances, received.known, received.rejected) == (1, 1, 1)
    assert one(context, select(RejectedFile.reason))[0] == "uid_taken"


def test_a_uid_whose_first_file_became_a_link_or_a_pipe_is_no_copy(context, tmp_path):
    first = make_film(tmp_path / "a.dcm")
    receive(context, [tmp_path])
    for replace in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (tmp_path / "a.dcm").unlink()
        replace(tmp_path / "a.dcm")
        first.save_as(tmp_path / "b.dcm")
        receive(context, [tmp_path / "b.dcm"])
        assert one(context, select(RejectedFile.reason))[0] == "uid_taken"


def test_a_link_in_the_place_of_a_registered_film_is_not_followed(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    receive(context, [tmp_path])
    other = tmp_path / "elsewhere"
    make_film(other, SOPInstanceUID=film.SOPInstanceUID)
    (tmp_path / "a.dcm").unlink()
    (tmp_path / "a.dcm").symlink_to(other)
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    assert state_of(context, film.StudyInstanceUID) == ("quarantined", "file_replaced")


def test_what_is_no_dicom_is_rejected_with_a_reason_and_forgotten_when_it_is_mended(context, tmp_path):
    (tmp_path / "a.dcm").write_text("not DICOM")
    (tmp_path / "b.dcm").touch()
    assert receive(context, [tmp_path]).rejected == 2
    make_film(tmp_path / "a.dcm")
    assert receive(context, [tmp_path]).new_instances == 1
    with read_scope(context.engine) as session:
        assert len(session.scalars(select(RejectedFile)).all()) == 1


def test_a_stop_gives_back_what_is_in_flight(context, tmp_path):
    for i in range(12):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    settled: list[int] = []
    tally = score(context, tmp_path, on_settled=settled.append, should_stop=lambda: bool(settled))
    with read_scope(context.engine) as session:
        totals = read_totals(session)
    assert 0 < totals.scored == tally.scored < 12
    assert totals.claimed == 0
    assert totals.balance
    assert score(context, tmp_path).scored == 12 - tally.scored


def test_a_run_records_what_it_did_and_the_ranks_at_its_end(context, tmp_path):
    for i in range(3):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    score(context, tmp_path)
    assert tuple(one(context, select(Run.kind, Run.scored, Run.films))) == ("score", 3, 3)
    with read_scope(context.engine) as session:
        ranks = session.execute(select(RunRank.priority_rank).order_by(RunRank.priority_rank)).scalars().all()
    assert ranks == [1, 2, 3]


def test_a_study_that_the_network_fails_on_is_found_and_quarantined_alone(context, tmp_path):
    for i in range(4):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    receive(context, [tmp_path])
    with open_scorer(context) as scorer:
        whole = scorer.classifier.predict
        poison: list[np.ndarray] = []

        def predict(inputs):
            poison[:] = poison or [inputs[0].copy()]
            if any((network_input == poison[0]).all() for network_input in inputs):
                raise RuntimeError("shape mismatch")
            return whole(inputs)

        scorer.classifier.predict = predict  # type: ignore[method-assign]
        tally = score_waiting(scorer, kind="score")
    assert (tally.scored, tally.quarantined) == (3, 1)


def test_a_device_that_fails_blames_no_film(context, tmp_path):
    for i in range(4):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    receive(context, [tmp_path])
    with open_scorer(context) as scorer:

        def predict(inputs):
            raise RuntimeError("CUDA error: unspecified launch failure")

        scorer.classifier.predict = predict  # type: ignore[method-assign]
        with pytest.raises(DeviceGone):
            score_waiting(scorer, kind="score")
    with read_scope(context.engine) as session:
        assert session.execute(select(Study.state, Study.attempts).distinct()).all() == [("waiting", 0)]


def test_studies_are_given_back_when_the_decoders_are_gone(context, tmp_path, monkeypatch):
    for i in range(4):
        make_film(tmp_path / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    receive(context, [tmp_path])
    with open_scorer(context) as scorer:

        def submit(*_):
            raise DecodersGone("none is left")

        monkeypatch.setattr(scorer.decoders, "submit", submit)
        with pytest.raises(DecodersGone):
            score_waiting(scorer, kind="score")
    with read_scope(context.engine) as session:
        assert session.execute(select(Study.state, Study.attempts).distinct()).all() == [("waiting", 0)]


def test_stat_from_the_header_is_read_first(context, tmp_path):
    make_film(tmp_path / "a.dcm")
    stat = make_film(tmp_path / "b.dcm", RequestedProcedurePriority="STAT")
    score(context, tmp_path)
    with read_scope(context.engine) as session:
        assert worklist(session)[0]["study_instance_uid"] == stat.StudyInstanceUID


def test_a_mended_film_that_is_sent_again_is_read_again(context, tmp_path):
    pair = make_film(tmp_path / "1.dcm")
    broken = make_film(tmp_path / "2.dcm", StudyInstanceUID=pair.StudyInstanceUID, PixelData=b"\0\0")
    score(context, tmp_path)
    uids = {"StudyInstanceUID": pair.StudyInstanceUID, "SOPInstanceUID": broken.SOPInstanceUID}
    make_film(tmp_path / "2.dcm", pixels=texture(seed=5), bits=12, **uids)
    assert score(context, tmp_path).films == 2
    with read_scope(context.engine) as session:
        assert [row["flag"] for row in worklist(session)] == [None]


def test_requeue_takes_a_study_of_which_one_film_failed(context, tmp_path):
    pair = make_film(tmp_path / "1.dcm")
    make_film(tmp_path / "2.dcm", StudyInstanceUID=pair.StudyInstanceUID, PixelData=b"\0\0")
    score(context, tmp_path)
    with session_scope(context.engine) as session:
        assert len(ledger.requeue(session)) == 1


def test_the_same_uid_in_another_study_is_rejected_even_when_the_first_file_is_gone(context, tmp_path):
    first = make_film(tmp_path / "1.dcm")
    receive(context, [tmp_path])
    (tmp_path / "1.dcm").unlink()
    make_film(tmp_path / "2.dcm", SOPInstanceUID=first.SOPInstanceUID, pixels=texture(seed=3), bits=12)
    assert receive(context, [tmp_path]).rejected == 1
    assert one(context, select(Instance.path))[0].endswith("1.dcm")


def test_a_file_that_moved_is_found_where_it_is_now(context, tmp_path):
    film = make_film(tmp_path / "1.dcm")
    receive(context, [tmp_path])
    (tmp_path / "1.dcm").rename(tmp_path / "2.dcm")
    assert receive(context, [tmp_path]).known == 1
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    assert state_of(context, film.StudyInstanceUID) == ("scored", None)


def test_a_name_that_is_not_utf8_costs_only_its_file(context, tmp_path):
    make_film(tmp_path / "good.dcm")
    film = make_film()
    save(film, os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.dcm"))
    received = receive(context, [tmp_path])
    assert (received.new_instances, received.rejected) == (1, 1)
    assert one(context, select(RejectedFile.reason))[0] == "file_name_unusable"


def test_a_number_too_large_for_its_attribute_costs_nothing(context, tmp_path):
    make_film(tmp_path / "a.dcm", SeriesDescription="x")
    film = make_film()
    film.add_new("Rows", "UL", 4294967295)
    save(film, tmp_path / "b.dcm")
    assert receive(context, [tmp_path]).new_instances == 2


def test_what_is_no_regular_file_leaves_a_trace(context, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert receive(context, [tmp_path]).rejected == 4


def test_a_header_that_is_cut_off_before_its_uids_is_told_from_one_without_them(context, tmp_path):
    make_film(tmp_path / "cut.dcm")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:600])
    make_film(tmp_path / "without.dcm", StudyInstanceUID=None)
    receive(context, [tmp_path])
    with read_scope(context.engine) as session:
        reasons = session.scalars(select(RejectedFile.reason).order_by(RejectedFile.path)).all()
    assert reasons == ["truncated", "study_uid_missing"]


def test_stat_that_comes_when_the_same_film_is_sent_again_counts(context, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    receive(context, [tmp_path])
    film.RequestedProcedurePriority = "STAT"
    save(film, tmp_path / "a.dcm")
    receive(context, [tmp_path])
    assert one(context, select(Study.stat))[0] is True


def test_a_study_that_says_scored_without_a_scored_film_upsets_the_totals(context, tmp_path):
    make_film(tmp_path / "a.dcm")
    score(context, tmp_path)
    with session_scope(context.engine) as session:
        assert read_totals(session).balance
        session.execute(text("UPDATE instance SET state = 'waiting'"))
    with read_scope(context.engine) as session:
        assert not read_totals(session).balance


def test_a_database_that_goes_away_does_not_end_an_intake_and_counts_nothing_twice(context, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        make_film(tmp_path / f"{name}.dcm", AccessionNumber=name)
    register, away = arrivals.register, ["b", "c"]

    def restarting(session, arrival, **kwargs):
        if away and arrival.study["accession_number"] == away[0]:
            away.pop(0)
            raise OperationalError("INSERT", {}, psycopg.errors.AdminShutdown("terminating connection"))
        return register(session, arrival, **kwargs)

    monkeypatch.setattr(arrivals, "register", restarting)
    received = receive(context, [tmp_path])
    assert (received.files, received.new_instances, received.rejected, len(received.studies)) == (3, 3, 0, 3)


def test_a_file_refused_while_the_database_goes_away_is_counted_once(context, tmp_path, monkeypatch):
    first = make_film(tmp_path / "a.dcm")
    receive(context, [tmp_path])
    make_film(tmp_path / "b.dcm", StudyInstanceUID=first.StudyInstanceUID, SOPInstanceUID=first.SOPInstanceUID)
    reject, away = arrivals.reject, [True]

    def restarting(session, **kwargs):
        reject(session, **kwargs)
        if away:
            away.pop()
            raise OperationalError("INSERT", {}, psycopg.errors.AdminShutdown("terminating connection"))

    monkeypatch.setattr(arrivals, "reject", restarting)
    received = receive(context, [tmp_path / "b.dcm"])
    assert (received.files, received.known, received.rejected) == (1, 0, 1)
    assert one(context, select(RejectedFile.reason))[0] == "uid_taken"


def test_a_header_that_the_database_refuses_costs_only_its_file(context, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        make_film(tmp_path / f"{name}.dcm", AccessionNumber=name)
    register = arrivals.register

    def refusing(session, arrival, **kwargs):
        if arrival.study["accession_number"] == "b":
            raise DataError("INSERT", {}, ValueError("out of range"))
        return register(session, arrival, **kwargs)

    monkeypatch.setattr(arrivals, "register", refusing)
    received = receive(context, [tmp_path])
    assert (received.files, received.new_instances, received.rejected) == (3, 2, 1)
    assert one(context, select(RejectedFile.reason))[0] == "header_not_storable"
