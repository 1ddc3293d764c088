"""`nightread pull`: which days, at which pace, and what the command refuses and says."""

import json
import threading
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from db import pulls
from db.session import session_scope
from tests.support.contexts import MakeContext, with_settings
from worker.cli.app import app
from worker.dicom_network import pull as module
from worker.dicom_network.keeper import Keeper
from worker.dicom_network.pull import Pace, Pulled, Wish, planned, pull_each
from worker.peers import PeerAway
from worker.queue.app import schedule
from worker.setting_peers import Peer
from worker.settings import Settings, WrongSettings

PEER = Peer(name="pacs", dicomweb="http://127.0.0.1:9")
DAY = date(2026, 3, 7)


def test_a_run_begins_some_days_before_the_watermark_which_only_rises(make_context: MakeContext) -> None:
    context = make_context(time_zone="Pacific/Kiritimati", pull={"days": 3})
    today = datetime.now(ZoneInfo("Pacific/Kiritimati")).date()
    assert (planned(context, PEER, Wish()).first, planned(context, PEER, Wish()).last) == (
        today - 3 * module.DAY,
        today,
    )
    for day in (DAY, DAY - module.DAY):
        with session_scope(context.engine) as session:
            pulls.raise_watermark(session, "pacs", day)
    run = planned(context, PEER, Wish())
    assert (run.first, run.last, run.watermark) == (date(2026, 3, 4), today, DAY)
    run = planned(context, PEER, Wish(first=DAY, last=DAY))
    assert (run.first, run.last) == (DAY, DAY)


def test_beat_sends_a_message_to_the_pulling_queue_where_a_schedule_is_set() -> None:
    assert "pull" not in schedule(Settings())
    entry = schedule(Settings(pull={"schedule": "0 22 * * *"}))["pull"]
    assert (entry["task"], entry["options"]["queue"]) == ("nightread.pull", "pulling")


def test_films_are_fetched_at_a_rate_and_a_stop_ends_the_wait() -> None:
    stopping, pace = threading.Event(), Pace.of("", "600/s", time_zone="UTC")
    assert all(pace.wait_for_film(stopping) for _ in range(3))
    slow = Pace.of("", "1/h", time_zone="UTC")
    assert slow.wait_for_film(stopping), "the first one at once"
    threading.Timer(0.05, stopping.set).start()
    assert not slow.wait_for_film(stopping)


def test_outside_its_window_a_pull_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = iter([30.0, 0.0])
    monkeypatch.setattr(Pace, "_seconds_closed", lambda _self: next(closed))
    waited: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return False

    assert Pace.of("22:00-06:00", "", time_zone="UTC").wait_for_window(Clock())
    assert waited == [30.0]


def test_roots_that_leave_out_the_folder_of_received_films_are_refused_before_anything_is_fetched(
    make_context: MakeContext,
) -> None:
    context = make_context(roots=("/dicom",))
    with pytest.raises(WrongSettings, match="NIGHTREAD_ROOTS leaves out the folder of received films"):
        Keeper.of(context)
    Keeper.of(with_settings(context, roots=("/dicom", str(context.state_folder))))


def test_a_study_without_a_legal_uid_is_counted_and_not_asked_for(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dicom_network.pull_web.WebArchive.studies", lambda *_: ["../../x"])
    run = Pulled(PEER, DAY, DAY)
    pull_each(make_context(), [run], Wish(DAY, DAY), pace=Pace.of("", "", time_zone="UTC"))
    assert (run.error, dict(run.failed)) == (None, {"study_uid_illegal": 1})


def test_a_peer_that_is_away_ends_its_run_with_what_was_done(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dicom_network.pull_web.WebArchive.studies", away)
    context = make_context()
    run = Pulled(PEER, DAY, DAY)
    pull_each(context, [run], Wish(DAY, DAY), pace=Pace.of("", "", time_zone="UTC"))
    assert isinstance(run.error, PeerAway)
    shown = json.loads(json.dumps(run.as_json()))
    assert (shown["peer"], shown["first"], shown["error"], shown["fetched"]) == ("pacs", "2026-03-07", "away", 0)


def away(*_: object) -> list[str]:
    raise PeerAway("away")


@pytest.fixture
def site(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A site that names one peer, for the command line."""
    settings = make_context().settings
    (tmp_path / "peers.toml").write_text('[pacs]\ndicomweb = "http://127.0.0.1:9"\n')
    monkeypatch.setenv("NIGHTREAD_PEERS", str(tmp_path / "peers.toml"))
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("NIGHTREAD_STATE_FOLDER", str(settings.state_folder))


def ended(*words: str) -> int:
    """The exit code of `nightread pull`."""
    from worker.terminal.refusals import refusals

    with pytest.raises(SystemExit) as end, refusals():
        raise SystemExit(app(["pull", *words], standalone_mode=False))
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "name a peer of NIGHTREAD_PEERS"),
        (("ris",), "no peer has the name 'ris'"),
        (("pacs", "--rate", "fast"), "no rate"),
        (("pacs", "--between", "night"), "no window"),
        (("pacs", "--from", "2026-02-02", "--to", "2026-02-01"), "--from is later"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(
    words: tuple[str, ...], sentence: str, site: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(*words) == 2
    assert sentence in capsys.readouterr().err


def test_a_pull_ends_with_exit_code_3_where_an_archive_is_away_1_where_a_film_failed_and_0_where_all_is_well(
    site: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worker.dicom_network.pull_web.WebArchive.studies", away)
    assert ended("pacs", "--json") == 3
    output = capsys.readouterr()
    assert json.loads(output.out)[0]["error"] == "away"
    assert "away" in output.err

    def counted(failed: int):
        def pull_one(_context: object, run: Pulled, *_: object, **__: object) -> None:
            run.fetched, run.offered = 3, 3 + failed
            run.failed.update({"http_404": failed} if failed else {})

        return pull_one

    monkeypatch.setattr(module, "_pull", counted(failed=1))
    assert ended("pacs") == 1
    assert "3 fetched, 0 known, 0 left out, 1 failed (1 http 404)" in capsys.readouterr().out
    monkeypatch.setattr(module, "_pull", counted(failed=0))
    assert ended("pacs", "--from", "2026-01-01", "--to", "2026-01-02") == 0
