"""`nightread pull`: which days, at which pace, and what the command refuses and says."""

import json
import threading
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import update

from db import pulls
from db.models import PullWatermark, UnpulledStudy
from db.session import read_scope, session_scope
from tests.support.contexts import MakeContext, with_settings
from tests.support.dicom_files import make_film
from worker.cli.app import app
from worker.context import Context
from worker.dicom_network import pull as module
from worker.dicom_network.keeper import Keeper
from worker.dicom_network.pull import InboxFull, Pace, Pulled, Wish, planned, pull_each
from worker.dicom_network.pull_archive import FilmFailed, Offer
from worker.doctor import examine_role
from worker.monitoring.prometheus import PullMetrics
from worker.peers import PeerAway
from worker.queue.app import next_by, schedule
from worker.retention import Pruning, prune
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


class FakeArchive:
    """One frontal film in each study, offered on its day; a study with a reason fails by it."""

    def __init__(self, studies: dict[str, date]) -> None:
        self.day_of, self.fails, self.breaks_off, self.asked = studies, dict[str, str](), set[str](), list[str]()

    def studies(self, day: date, modality: str) -> list[str]:
        return [study for study, its_day in self.day_of.items() if its_day == day and modality == "DX"]

    def offers(self, study: str, _modalities: object) -> list[Offer]:
        self.asked.append(study)
        if study in self.breaks_off:
            raise PeerAway("peer pacs breaks off")
        header = Dataset()
        header.Modality, header.ViewPosition, header.BodyPartExamined = "DX", "PA", "CHEST"
        return [Offer(study, f"{study}.1", f"{study}.1.1", header, whole=False)]

    def fetch(self, offer: Offer, into: Path) -> bool:
        if reason := self.fails.get(offer.study_instance_uid):
            raise FilmFailed(reason)
        make_film(into, StudyInstanceUID=offer.study_instance_uid, SOPInstanceUID=offer.sop_instance_uid)
        return True


TODAY = datetime.now(UTC).date()
OLD, NEW, HOSTILE = "1.2.3", "1.2.4", "../../x"


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> FakeArchive:
    """An archive with a study of ten days ago and one of today."""
    fake = FakeArchive({OLD: TODAY - 10 * module.DAY, NEW: TODAY})
    monkeypatch.setattr(module, "archive_of", lambda *_: nullcontext(fake))
    return fake


def pulled(
    context: Context, *, first: date | None = None, last: date | None = None, metrics: PullMetrics | None = None
) -> Pulled:
    wish = Wish(first, last)
    run = planned(context, PEER, wish)
    pull_each(context, [run], wish, pace=Pace.of("", "", time_zone="UTC"), metrics=metrics)
    return run


def not_fetched(context: Context) -> dict[str, tuple[str, int]]:
    """What is noted: reason and count by study."""
    with read_scope(context.engine) as session:
        return {
            str(row["study_instance_uid"]): (str(row["reason"]), int(str(row["failures"])))
            for row in pulls.unpulled(session, ["pacs"])
        }


def test_a_film_that_cannot_be_fetched_is_noted_and_tried_again_and_holds_no_day_back(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context = make_context()
    archive.fails[OLD] = "http_404"
    run = pulled(context, first=TODAY - 12 * module.DAY)
    assert (run.error, run.fetched, run.watermark) == (None, 1, TODAY)
    assert not_fetched(context) == {OLD: ("http_404", 1)}
    archive.fails[OLD] = "http_410"
    assert dict(pulled(context).failed) == {"http_410": 1}, "its day is over, and it is tried all the same"
    assert not_fetched(context) == {OLD: ("http_410", 1)}
    archive.fails.clear()
    run = pulled(context)
    assert (run.fetched, dict(run.failed), not_fetched(context)) == (1, {}, {})


def test_after_two_weeks_only_a_person_tries_a_film_again_and_it_stays_listed(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context = make_context()
    archive.fails[OLD] = "http_404"
    pulled(context, first=TODAY - 12 * module.DAY)
    with session_scope(context.engine) as session:
        session.execute(update(UnpulledStudy).values(first_failed_at=datetime.now(UTC) - 15 * module.DAY))
    archive.asked.clear()
    pulled(context)
    assert OLD not in archive.asked
    assert OLD in not_fetched(context)
    archive.fails.clear()
    assert pulled(context, first=archive.day_of[OLD], last=archive.day_of[OLD]).fetched == 1
    assert not_fetched(context) == {}


def test_illegal_uids_of_a_day_are_noted_together_and_what_the_archive_takes_back_is_not(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context = make_context()
    archive.day_of |= {HOSTILE: TODAY, "also \0 illegal": TODAY}
    archive.fails[NEW] = "http_404"
    assert pulled(context).watermark == TODAY
    assert not_fetched(context) == {"": ("study_uid_illegal", 2), NEW: ("http_404", 1)}
    archive.day_of = {}
    assert pulled(context).error is None
    assert not_fetched(context) == {}


def test_a_study_on_which_the_archive_breaks_off_fails_alone(make_context: MakeContext, archive: FakeArchive) -> None:
    context = make_context()
    archive.breaks_off.add(OLD)
    run = pulled(context, first=archive.day_of[OLD])
    assert (run.error, run.fetched, run.watermark) == (None, 1, TODAY)
    assert not_fetched(context) == {OLD: ("archive_broke_off", 1)}


def test_two_new_studies_in_a_row_on_which_the_archive_breaks_off_end_the_run_and_no_later_one(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context, day = make_context(), archive.day_of[OLD]
    archive.day_of["1.2.5"] = day
    archive.breaks_off |= {OLD, "1.2.5"}
    run = pulled(context, first=day)
    assert (type(run.error), run.fetched, dict(run.failed)) == (PeerAway, 0, {"archive_broke_off": 2})
    assert not_fetched(context) == {OLD: ("archive_broke_off", 1), "1.2.5": ("archive_broke_off", 1)}
    run = pulled(context, first=day)
    assert (run.error, run.fetched, run.watermark) == (None, 1, TODAY)
    archive.day_of |= {"1.2.6": day, "1.2.7": day}
    archive.breaks_off |= {"1.2.6", "1.2.7"}
    assert isinstance(pulled(context, first=day).error, PeerAway), "two that no run had noted: it may be the archive"


def test_a_single_study_that_is_refused_is_listed_and_an_archive_that_refuses_all_ends_the_run(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context = make_context()
    archive.fails = {OLD: "http_401", NEW: "http_403"}
    run = pulled(context, first=archive.day_of[OLD])
    assert isinstance(run.error, WrongSettings)
    assert str(run.error) == ("peer pacs lists studies and refuses each of them (http_401, http_403): "
                              "let its user, or token, fetch films")  # fmt: skip
    assert not_fetched(context) == {OLD: ("http_401", 1), NEW: ("http_403", 1)}
    del archive.fails[NEW]
    run = pulled(context)
    assert (run.error, run.fetched, dict(run.failed)) == (None, 1, {"http_401": 1})
    run = pulled(context)
    assert (run.error, run.known, dict(run.failed)) == (None, 1, {"http_401": 1}), "it let us have others"


def test_an_archive_that_breaks_off_at_the_only_study_ends_the_run_with_its_sentence(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context = make_context()
    del archive.day_of[OLD]
    archive.breaks_off.add(NEW)
    for _ in range(2):
        assert str(pulled(context).error) == "peer pacs breaks off"
        assert not_fetched(context) == {NEW: ("archive_broke_off", 1)}


def test_a_dry_run_notes_no_study_on_which_the_archive_breaks_off(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context, wish = make_context(), Wish(archive.day_of[OLD], dry_run=True)
    archive.breaks_off.add(OLD)
    run = planned(context, PEER, wish)
    pull_each(context, [run], wish, pace=Pace.of("", "", time_zone="UTC"))
    assert (dict(run.failed), run.wanted, not_fetched(context)) == ({"archive_broke_off": 1}, 1, {})


def test_studies_that_are_tried_again_end_no_run_where_the_archive_breaks_off_at_each(
    make_context: MakeContext, archive: FakeArchive
) -> None:
    context, others = make_context(), ("1.2.5", "1.2.6")
    archive.day_of |= dict.fromkeys(others, archive.day_of[OLD])
    archive.fails = dict.fromkeys((OLD, *others), "http_404")
    pulled(context, first=archive.day_of[OLD])
    archive.fails.clear()
    archive.breaks_off |= set(others)
    run = pulled(context)
    assert (run.error, run.fetched, dict(run.failed)) == (None, 1, {"archive_broke_off": 2})
    assert not_fetched(context) == dict.fromkeys(others, ("archive_broke_off", 1))


def test_a_study_that_is_tried_again_stays_noted_while_the_archive_lists_no_film_of_it(
    make_context: MakeContext, archive: FakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()
    archive.fails[OLD] = "http_404"
    pulled(context, first=archive.day_of[OLD])
    archive.fails.clear()
    with monkeypatch.context() as patched:
        patched.setattr(archive, "offers", lambda *_: [])
        assert pulled(context).error is None
    assert not_fetched(context) == {OLD: ("http_404", 1)}
    assert pulled(context).fetched == 1
    assert not_fetched(context) == {}


def test_a_run_for_which_there_is_no_room_is_counted_as_ended_early_for_its_archive(
    make_context: MakeContext, archive: FakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, metrics = make_context(), PullMetrics()
    value = partial(metrics.registry.get_sample_value, "nightread_pulls_total")
    with monkeypatch.context() as patched:
        patched.setattr("worker.dicom_network.inbox.Inbox.is_full", lambda _: True)
        with pytest.raises(InboxFull):
            pulled(context, metrics=metrics)
    assert value({"peer": "pacs", "outcome": "ended_early"}) == 1
    pulled(context, metrics=metrics)
    assert value({"peer": "pacs", "outcome": "whole"}) == 1


def test_pruning_forgets_what_could_not_be_fetched(make_context: MakeContext, archive: FakeArchive) -> None:
    context = make_context()
    archive.fails[NEW] = "http_404"
    pulled(context)
    prune(context.engine, Pruning(datetime.now(UTC) - module.DAY), by="test")
    assert NEW in not_fetched(context)
    prune(context.engine, Pruning(datetime.now(UTC) + module.DAY), by="test")
    assert not_fetched(context) == {}


def test_the_doctor_calls_pulls_late_that_do_not_come_to_their_end_and_no_others(
    make_context: MakeContext, archive: FakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(peers=(PEER,), pull={"peers": ("pacs",)})
    monkeypatch.setattr("worker.doctor._peer_answers", lambda *_: "answers")

    def judged(*, days: int = 0) -> tuple[bool, str]:
        """The health check, some days after the last pull that went on."""
        if days:
            moment = datetime.now(UTC) - days * module.DAY
            with session_scope(context.engine) as session:
                session.execute(update(PullWatermark).values(updated_at=moment))
        (found,) = examine_role(context, "puller")
        return found.ok, found.text

    assert judged() == (True, "pacs: nothing pulled yet")
    with monkeypatch.context() as patched:
        patched.setattr(archive, "studies", away)
        pulled(context)
    assert judged() == (True, "pacs: nothing pulled yet")
    late = "no pull came to its end lately from pacs (nothing pulled yet): see the log of the pulling worker"
    assert judged(days=3) == (False, late), "the first pull is still to come to its end"
    archive.fails[NEW] = "http_404"
    pulled(context)
    sentence = f"pacs: up to {TODAY}; 1 study could not be fetched: `nightread pull --failed`"
    assert judged() == (True, sentence)
    assert not judged(days=3)[0]
    pulled(context)
    assert judged() == (True, sentence), "it came to its end, though its last day was there before"


def test_a_pull_is_late_by_the_schedule() -> None:
    friday = datetime(2026, 11, 27, 23, 50, tzinfo=ZoneInfo("Europe/Berlin"))
    due = next_by("*/15 22-23 * * 1-5", friday, zone="Europe/Berlin")
    assert due.replace(second=0, microsecond=0) == friday + timedelta(days=2, hours=22, minutes=10)


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


def test_what_could_not_be_fetched_is_listed_and_nothing_is_pulled(
    site: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("pacs", "--failed") == 0
    assert "Every study could be fetched." in capsys.readouterr().out
    with session_scope(Context(Settings()).engine) as session:
        pulls.note_day(session, "pacs", DAY, {OLD: Counter(http_404=2)})
    assert ended("pacs", "--failed", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["day"], row["study_instance_uid"], row["reason"], row["failures"]) == ("2026-03-07", OLD, "http_404", 2)
    assert ended("pacs", "--failed") == 0
    assert f"2026-03-07\t{OLD}" in capsys.readouterr().out
