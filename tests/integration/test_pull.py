"""Pulling from an Orthanc, by DICOMweb and by DICOM: frontal films, each once, whatever breaks meanwhile."""

import os
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1
from sqlalchemy import delete, select, update

from db import pulls
from db.models import Instance, PullWatermark, Study
from db.session import read_scope, session_scope
from tests.support.crew import environment_of, wait_until
from tests.support.dicom_files import data_set_digest, make_film
from tests.support.orthanc import AE_TITLE, DICOM_PORT, PASSWORD, USER, Orthanc
from tests.support.values import present
from worker.context import Context
from worker.dicom_network.pull import DAY, Pace, Pulled, Wish, planned, pull_each
from worker.dicom_network.pull_archive import FilmFailed, Offer
from worker.dicom_network.pull_web import WebArchive
from worker.dicom_network.storage_scp import Receiver, listening
from worker.doctor import examine, examine_role
from worker.monitoring.prometheus import PullMetrics, ReceiveMetrics
from worker.peers import PeerAway
from worker.queue.puller import pull_by_settings
from worker.setting_peers import Peer
from worker.settings import WrongSettings

NIGHT = date(2026, 1, 1)  # of make_film's films
ONE_NIGHT = Wish(NIGHT, NIGHT)
NO_PACE = {"between": "", "rate": "", "time_zone": "UTC"}


def films(folder: Path, studies: int, *, day: date = NIGHT) -> list[Path]:
    """Studies with one frontal and one lateral film each, which say so in their headers."""
    paths = []
    for number in range(studies):
        study = f"1.2.826.0.1.3680043.8.498.{day:%Y%m%d}.{number + 1}"
        for view in ("PA", "LL"):
            paths.append(folder / f"{day:%d}-{number}-{view}.dcm")
            date_of: dict[str, Any] = {"StudyDate": f"{day:%Y%m%d}", "PatientName": "Kanarienvogel^Hansi"}
            make_film(paths[-1], view_position=view, StudyInstanceUID=study, **date_of)
    return paths


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "orthanc-password"
    file.write_text(PASSWORD)
    return file


@pytest.fixture
def web(archive: Orthanc, password_file: Path) -> Peer:
    """The archive by DICOMweb."""
    return Peer(name="pacs", dicomweb=archive.dicomweb, user=USER, password_file=password_file)


@pytest.fixture
def dimse(archive: Orthanc) -> Peer:
    """The archive by C-FIND and C-GET."""
    return Peer(name="pacs", ae_title=AE_TITLE, host="127.0.0.1", port=DICOM_PORT)


def pulled(context: Context, archive: Orthanc, peer: Peer, wish: Wish = ONE_NIGHT) -> Pulled:
    """One run."""
    with archive.namespace.entered():
        run = planned(context, peer, wish)
        pull_each(context, [run], wish, pace=Pace.of(**NO_PACE))
    return run


def kept(context: Context) -> list[Path]:
    """The whole films in the inbox."""
    return sorted(context.receive_folder.glob("2*/*"))


def registered(context: Context) -> set[str | None]:
    with read_scope(context.engine) as session:
        return set(session.scalars(select(Instance.view)))


def test_frontal_films_are_pulled_once_by_dicomweb_and_no_lateral(
    embedded: Context, archive: Orthanc, web: Peer, tmp_path: Path
) -> None:
    paths = films(tmp_path, 50)
    archive.upload(paths)
    counted = pulled(embedded, archive, web, Wish(NIGHT, NIGHT, dry_run=True))
    assert (counted.studies, counted.offered, counted.wanted, kept(embedded)) == (50, 100, 50, [])
    first = pulled(embedded, archive, web)
    assert (first.error, first.fetched, first.known, dict(first.left_out)) == (None, 50, 0, {"lateral_view": 50})
    frontal = [path for path in paths if "PA" in path.name]
    assert sorted(map(data_set_digest, kept(embedded))) == sorted(map(data_set_digest, frontal))
    assert registered(embedded) == {"PA"}
    second = pulled(embedded, archive, web)
    assert (second.fetched, second.known, second.offered) == (0, 50, 100)
    assert len(kept(embedded)) == 50


def test_a_pull_that_was_killed_is_resumed_by_the_next_one(
    embedded: Context, archive: Orthanc, web: Peer, tmp_path: Path
) -> None:
    archive.upload(films(tmp_path, 12))
    peers = tmp_path / "peers.toml"
    peers.write_text(f'[pacs]\ndicomweb = "{web.dicomweb}"\nuser = "{USER}"\npassword_file = "{web.password_file}"\n')
    environment = os.environ | environment_of(embedded.settings) | {"NIGHTREAD_PEERS": str(peers)}
    command = [*archive.namespace.words, sys.executable, "-m", "worker.cli", "pull", "pacs", "--from", "2026-01-01"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        killed = subprocess.Popen(
            [*command, "--to", "2026-01-01", "--rate", "5/s"], env=environment, stdout=output, stderr=output
        )
        wait_until(lambda: len(kept(embedded)) >= 3 or killed.poll() is not None, log=log)
        killed.kill()
        killed.wait()
    before = len(kept(embedded))
    assert 3 <= before < 12
    leftover = min(kept(embedded))
    with session_scope(embedded.engine) as session:  # as if the kill had come between the file and its row
        session.execute(
            delete(Study).where(Study.id.in_(select(Instance.study_id).where(Instance.path == str(leftover))))
        )
    (embedded.receive_folder / "pulling" / "half.dcm").write_bytes(b"DICM")
    run = pulled(embedded, archive, web)
    assert (run.known, run.fetched) == (before, 12 - before)
    assert len(kept(embedded)) == 12


def test_the_watermark_moves_to_the_last_day_what_failed_is_tried_again_and_so_are_the_days_before(
    embedded: Context, archive: Orthanc, web: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = datetime.now(UTC).date()
    yesterday = today - DAY
    archive.upload(films(tmp_path, 1, day=yesterday - DAY) + films(tmp_path, 1, day=yesterday))
    embedded = Context(embedded.settings.changed(pull={"days": 3}))
    fetch = WebArchive.fetch

    def fetch_or_fail(self: WebArchive, offer: Offer, into: Path) -> bool:
        if f"{yesterday:%Y%m%d}" in offer.study_instance_uid:
            raise FilmFailed("http_500")
        return fetch(self, offer, into)

    with monkeypatch.context() as patched:
        patched.setattr(WebArchive, "fetch", fetch_or_fail)
        run = pulled(embedded, archive, web, Wish())
    assert (run.first, run.last, run.fetched, dict(run.failed)) == (today - 3 * DAY, today, 1, {"http_500": 1})
    assert run.watermark == today, "what is missing is noted"
    with read_scope(embedded.engine) as session:
        assert pulls.unpulled_count(session, ["pacs"]) == 1
    run = pulled(embedded, archive, web, Wish())
    assert (run.first, run.watermark, run.fetched, run.known) == (today - 3 * DAY, today, 1, 1)
    with read_scope(embedded.engine) as session:
        assert pulls.unpulled_count(session, ["pacs"]) == 0
    run = pulled(embedded, archive, web, Wish(first=today + 5 * DAY))
    assert run.watermark == today, "no day is passed over"


def test_a_peer_that_is_away_or_refuses_us_ends_its_own_run_only(
    embedded: Context, archive: Orthanc, web: Peer, tmp_path: Path
) -> None:
    archive.upload(films(tmp_path, 1))
    (tmp_path / "wrong").write_text("wrong")
    peers = (
        web.model_copy(update={"name": "away", "dicomweb": "http://127.0.0.1:9/dicom-web"}),
        web.model_copy(update={"name": "locked", "password_file": tmp_path / "wrong"}),
        web.model_copy(update={"name": "lost", "dicomweb": f"{web.dicomweb}/nowhere"}),
        web,
    )
    with archive.namespace.entered():
        runs = [planned(embedded, peer, ONE_NIGHT) for peer in peers]
        pull_each(embedded, runs, ONE_NIGHT, pace=Pace.of(**NO_PACE))
    assert [type(run.error) for run in runs[1:]] == [WrongSettings, WrongSettings, type(None)]
    assert isinstance(runs[0].error, PeerAway)
    assert str(runs[0].error).startswith("peer away does not answer")
    assert "peer locked refuses our credentials (HTTP 401)" in str(runs[1].error)
    assert runs[3].fetched == 1


def test_an_archive_that_goes_away_in_the_middle_costs_nothing_that_was_fetched(
    embedded: Context, archive: Orthanc, web: Peer, tmp_path: Path
) -> None:
    archive.upload(films(tmp_path, 3))
    with archive.namespace.entered():
        run = planned(embedded, web, ONE_NIGHT)
        pull_each(embedded, [run], ONE_NIGHT, pace=Pace.of(**NO_PACE), on_films=lambda: archive.stop(at_once=True))
    assert isinstance(run.error, PeerAway)
    assert run.fetched == len(kept(embedded)) == 1
    archive.start()
    assert pulled(embedded, archive, web).fetched == 2


def test_frontal_films_are_pulled_once_by_c_get_as_they_are_stored_and_no_lateral(
    embedded: Context, archive: Orthanc, dimse: Peer, tmp_path: Path
) -> None:
    paths = films(tmp_path, 50)
    for path, syntax in zip(paths, (JPEG2000Lossless, JPEGLosslessSV1), strict=False):
        make_film(path, transfer_syntax=syntax, view_position="PA", StudyInstanceUID="1.2.3")
    archive.upload(paths)
    first = pulled(embedded, archive, dimse)
    assert (first.error, dict(first.left_out), dict(first.failed)) == (None, {"lateral_view": 49}, {})
    assert first.fetched == 51
    frontal = [path for path in paths if "PA" in path.name or path == paths[1]]
    assert sorted(map(data_set_digest, kept(embedded))) == sorted(map(data_set_digest, frontal))
    second = pulled(embedded, archive, dimse)
    assert (second.fetched, second.known) == (0, 51)


def test_films_are_pulled_by_c_move_to_the_receiver(
    embedded: Context, archive: Orthanc, dimse: Peer, tmp_path: Path
) -> None:
    archive.upload(films(tmp_path, 2))
    peer = dimse.model_copy(update={"retrieve": "move"})
    assert pulled(embedded, archive, peer).failed.total() == 2, "no receiver runs"
    context = Context(embedded.settings.changed(receive={"port": 11112, "free_mb": 1}))
    with archive.namespace.entered(), listening(Receiver.of(context, metrics=ReceiveMetrics())):
        run = pulled(context, archive, peer)
    assert (run.error, run.fetched, dict(run.failed), len(kept(context))) == (None, 2, {}, 2)
    stranger = Context(context.settings.changed(receive={"ae_title": "STRANGER"}))
    archive.upload(films(tmp_path, 3))
    run = pulled(stranger, archive, peer)
    assert "does it know STRANGER as a destination (NIGHTREAD_RECEIVE_AE_TITLE)" in str(run.error)
    assert run.failed["c_move_broke_off"] == 2


def test_the_doctor_says_of_each_peer_whether_it_answers(
    embedded: Context, archive: Orthanc, web: Peer, dimse: Peer
) -> None:
    away = dimse.model_copy(update={"name": "away", "port": 9})
    both = Peer(**(dict(web) | {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": DICOM_PORT}))
    context = Context(embedded.settings.changed(peers=(both, away)))
    with archive.namespace.entered():
        checks = {check.name: check for check in examine(context)}
    assert checks["peer pacs"].text == "answers a C-ECHO and a search by DICOMweb"
    assert not checks["peer away"].ok


def test_the_pulling_worker_s_task_pulls_from_the_peers_of_the_settings_and_counts_what_it_did(
    embedded: Context, archive: Orthanc, web: Peer, dimse: Peer, tmp_path: Path
) -> None:
    archive.upload(films(tmp_path, 2, day=datetime.now(UTC).date()))
    away = dimse.model_copy(update={"name": "away", "port": 9})
    named = {"peers": ("pacs", "away"), "rate": "100/s"}
    context, metrics = Context(embedded.settings.changed(peers=(web, away), pull=named)), PullMetrics()
    with archive.namespace.entered():
        pull_by_settings(context, stopping=Event(), metrics=metrics)
    assert len(kept(context)) == 2
    value = metrics.registry.get_sample_value
    assert value("nightread_pulled_films_total") == 2
    assert value("nightread_pulls_total", {"peer": "pacs", "outcome": "whole"}) == 1
    assert value("nightread_pulls_total", {"peer": "away", "outcome": "ended_early"}) == 1
    assert time.time() - present(value("nightread_last_whole_pull_timestamp_seconds", {"peer": "pacs"})) < 600
    assert value("nightread_last_whole_pull_timestamp_seconds", {"peer": "away"}) is None


def test_the_doctor_of_the_puller_asks_every_archive_and_names_one_that_stands_still(
    embedded: Context, archive: Orthanc, web: Peer
) -> None:
    today = datetime.now(ZoneInfo(embedded.settings.time_zone)).date()
    context = Context(embedded.settings.changed(peers=(web,), pull={"peers": ("pacs",)}))
    with archive.namespace.entered():
        (fresh,) = examine_role(context, "puller")
        assert (fresh.ok, fresh.text) == (True, "pacs: nothing pulled yet")
        for days, ok in ((9, False), (1, True)):
            with session_scope(context.engine) as session:
                pulls.raise_watermark(session, "pacs", today)
                session.execute(update(PullWatermark).values(updated_at=datetime.now(UTC) - timedelta(days=days)))
            (found,) = examine_role(context, "puller")
            assert found.ok == ok
            assert f"up to {today}" in found.text
    (away,) = examine_role(context, "puller")
    assert not away.ok
