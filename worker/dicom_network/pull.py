"""Pull: films that an archive holds and this site does not, fetched day by day (`nightread pull`).

The ledger says what is known, so a run that was killed is resumed by the next one. A watermark per peer says up to
which day every film is here, or its study noted as one that could not be fetched; the days just before it are asked for
again, because studies reach an archive late.
"""

import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog

from db import lookup, pulls
from db.session import read_scope, session_scope
from worker.context import Context
from worker.dicom_network.inbox import PULLING
from worker.dicom_network.keeper import Keeper
from worker.dicom_network.pull_archive import Archive, FilmFailed, MoveBrokenOff, Offer
from worker.dicom_network.pull_dimse import DimseArchive
from worker.dicom_network.pull_web import WebArchive
from worker.errors import Unavailable
from worker.intake.header import is_uid
from worker.intake.view_rules import ViewRules
from worker.monitoring.prometheus import PullMetrics
from worker.pacing import Window, per_minute_of, window_of
from worker.patience import PATIENCE_SECONDS
from worker.peers import PeerAway, web_client
from worker.setting_peers import Peer
from worker.settings import WrongSettings

log = structlog.get_logger()

DAY: Final = timedelta(days=1)
BROKEN_OFF: Final = frozenset({"archive_broke_off", "c_move_broke_off"})
REFUSED: Final = frozenset({"http_401", "http_403"})
TRIED_DAYS: Final = 14  # days in which each run tries a study again of which films could not be fetched


class InboxFull(Unavailable):
    """There is no room for films: less than NIGHTREAD_RECEIVE_FREE_MB is free on the disk of received films."""

    def __init__(self) -> None:
        super().__init__("less than NIGHTREAD_RECEIVE_FREE_MB is free on the disk of received films: make room there")


@dataclass(frozen=True)
class Wish:
    """Days to pull. `first` None: from before the watermark on; `last` None: up to today. `dry_run`: count only."""

    first: date | None = None
    last: date | None = None
    dry_run: bool = False


@dataclass
class Pulled:
    """One peer's run: its days and counts. offered = known + left out + fetched + failed; in a dry run `wanted` stands
    in the place of the last two."""

    peer: Peer
    first: date
    last: date
    error: Exception | None = None  # for which the run ended before its last day
    watermark: date | None = None
    studies: int = 0
    offered: int = 0
    known: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    wanted: int = 0
    fetched: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """The run for programs."""
        days = {name: day and day.isoformat() for name, day in
                (("first", self.first), ("last", self.last), ("watermark", self.watermark))}  # fmt: skip
        counts = {"left_out": dict(self.left_out), "failed": dict(self.failed)}
        return vars(self) | days | counts | {"peer": self.peer.name, "error": self.error and str(self.error)}


class Pace:
    """When the next film may be fetched: within a window of the day, and at a rate."""

    def __init__(self, window: Window | None, films_per_minute: float | None, *, zone: ZoneInfo) -> None:
        self._window, self._zone = window, zone
        self._seconds = 0.0 if films_per_minute is None else 60 / films_per_minute
        self._next = 0.0

    @classmethod
    def of(cls, between: str, rate: str, *, time_zone: str) -> "Pace":
        """The pace that two settings, or options, ask for. Raises PaceError."""
        window, pace = window_of(between) if between else None, per_minute_of(rate) if rate else None
        return cls(window, pace, zone=ZoneInfo(time_zone))

    def wait_for_window(self, stopping: threading.Event) -> bool:
        """Wait until the archive may be asked at all; False where the run is to stop instead."""
        while (closed := self._seconds_closed()) > 0:
            log.info("pull_waits", seconds=round(closed))
            if stopping.wait(closed):
                return False
        return not stopping.is_set()

    def wait_for_film(self, stopping: threading.Event) -> bool:
        """Wait until the next film may be fetched; False where the run is to stop instead."""
        stopped = stopping.wait(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + self._seconds
        return not stopped and self.wait_for_window(stopping)

    def _seconds_closed(self) -> float:
        now = datetime.now(self._zone).replace(tzinfo=None)
        return 0.0 if self._window is None else self._window.seconds_until_open(now)


@contextmanager
def archive_of(context: Context, peer: Peer) -> Iterator[Archive]:
    """The peer as an archive, by DICOMweb where it has it."""
    if peer.dicomweb is None:
        with DimseArchive(peer, context.settings) as archive:
            yield archive
        return
    with web_archive(context, peer) as web:
        yield web


@contextmanager
def web_archive(context: Context, peer: Peer) -> Iterator[WebArchive]:
    """The peer as an archive by DICOMweb."""
    with web_client(peer) as client:
        yield WebArchive(peer, client, most_bytes=context.settings.max_file_mb * 2**20)


def planned(context: Context, peer: Peer, wish: Wish) -> Pulled:
    """The days of a run, by the wish and the watermark; nothing is asked for yet."""
    today = datetime.now(ZoneInfo(context.settings.time_zone)).date()
    with read_scope(context.engine) as session:
        watermark = pulls.watermark(session, peer.name)
    first = wish.first or (watermark or today) - context.settings.pull.days * DAY
    return Pulled(peer, first, wish.last or today, watermark=watermark)


def pull_each(
    context: Context,
    runs: Sequence[Pulled],
    wish: Wish,
    *,
    pace: Pace,
    stopping: threading.Event | None = None,
    on_films: Callable[[], None] = lambda: None,
    metrics: PullMetrics | None = None,
) -> None:
    """Pull what was planned, peer by peer; one that is away, or refuses us, costs the others nothing.

    Raises InboxFull, and SQLAlchemyError while the database is away. The runs hold what was done also then. `on_films`
    is called after every study that brought a film.
    """
    stopping, metrics = stopping or threading.Event(), metrics or PullMetrics()
    for run in runs:
        try:
            _pull(context, run, wish, pace=pace, stopping=stopping, on_films=on_films, metrics=metrics)
            metrics.ended(run.peer.name, whole=not stopping.is_set())
        except (PeerAway, WrongSettings) as error:
            run.error = error
            metrics.ended(run.peer.name, whole=False)
            log.warning("pull_ended_early", peer=run.peer.name, error=type(error).__name__)
        except BaseException:
            metrics.ended(run.peer.name, whole=False)
            raise


def _pull(
    context: Context,
    run: Pulled,
    wish: Wish,
    *,
    pace: Pace,
    stopping: threading.Event,
    on_films: Callable[[], None],
    metrics: PullMetrics,
) -> None:
    keeper = Keeper.of(context, arriving=PULLING)
    with archive_of(context, run.peer) as archive, keeper.inbox.opened():
        if not wish.dry_run and keeper.register_leftovers():
            on_films()
        puller = _Puller(
            context, archive, keeper, run, pace=pace, stopping=stopping, dry_run=wish.dry_run, metrics=metrics
        )
        moves = not wish.dry_run and wish.last is None and _joins(run)
        if moves:
            _begin(context, run)
        day = run.first
        while day <= run.last and not stopping.is_set():
            puller.pull_day(day, moves=moves, on_films=on_films)
            day += DAY
        if moves:
            puller.try_again(on_films=on_films)
        puller.end()
        if moves:
            _end(context, run, stopping)
    log.info("pulled", peer=run.peer.name, studies=run.studies, films=run.fetched, known=run.known,
             left_out=run.left_out.total(), failed=run.failed.total())  # fmt: skip


def _joins(pulled: Pulled) -> bool:
    """Whether no day lies between the watermark and this run's first one."""
    return pulled.watermark is None or pulled.first <= pulled.watermark + DAY


def _begin(context: Context, pulled: Pulled) -> None:
    with session_scope(context.engine) as session:
        pulls.begin(session, pulled.peer.name)


def _end(context: Context, pulled: Pulled, stopping: threading.Event) -> None:
    if not stopping.is_set():
        with session_scope(context.engine) as session:
            pulls.note_end(session, pulled.peer.name)


class _Puller:
    """One run over one archive."""

    def __init__(
        self,
        context: Context,
        archive: Archive,
        keeper: Keeper,
        pulled: Pulled,
        *,
        pace: Pace,
        stopping: threading.Event,
        dry_run: bool,
        metrics: PullMetrics,
    ) -> None:
        self._metrics = metrics
        self._context, self._archive, self._keeper, self._pulled = context, archive, keeper, pulled
        self._pace, self._stopping, self._dry_run = pace, stopping, dry_run
        self._rules = ViewRules.of(context.settings)
        self._modalities = context.settings.pull.modalities
        self._break_off: PeerAway | None = None  # the last one
        self._broke_off = False  # the archive, at the last study, which no earlier run had noted
        with read_scope(context.engine) as session:
            self._noted = {row["study_instance_uid"] for row in pulls.unpulled(session, [pulled.peer.name])}

    def pull_day(self, day: date, *, moves: bool, on_films: Callable[[], None]) -> None:
        """Every study of a day, once; what failed is noted, and with it the watermark `moves`."""
        if not self._pace.wait_for_window(self._stopping):
            return
        found = [uid for modality in self._modalities for uid in self._archive.studies(day, modality)]
        failed: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for study in dict.fromkeys(found):
            if reasons := self._failures_of(day, study, on_films=on_films):
                failed[study if is_uid(study) else pulls.ILLEGAL] += reasons
        if not self._dry_run and not self._stopping.is_set():
            self._note_day(day, failed, moves=moves)

    def _note_day(self, day: date, failed: Mapping[str, Counter[str]], *, moves: bool) -> None:
        peer = self._pulled.peer.name
        with session_scope(self._context.engine) as session:
            pulls.note_day(session, peer, day, failed)
            if moves:
                pulls.raise_watermark(session, peer, day)
        if moves:
            self._pulled.watermark = max(day, self._pulled.watermark or day)

    def try_again(self, *, on_films: Callable[[], None]) -> None:
        """The studies of days before this run's of which films could not be fetched in the last TRIED_DAYS."""
        peer, since = self._pulled.peer.name, datetime.now(UTC) - TRIED_DAYS * DAY
        with read_scope(self._context.engine) as session:
            studies = pulls.to_try_again(session, peer, before=self._pulled.first, failed_since=since)
        for day, study in studies:
            offered_before = self._pulled.offered
            reasons = self._failures_of(day, study, on_films=on_films)
            if self._stopping.is_set():
                return
            if reasons or self._pulled.offered > offered_before:  # a study of which nothing is listed has not come
                self._note_study(day, study, reasons)

    def _note_study(self, day: date, study: str, reasons: Counter[str]) -> None:
        with session_scope(self._context.engine) as session:
            pulls.note_study(session, self._pulled.peer.name, day, study, reasons)

    def end(self) -> None:
        """Raise PeerAway or WrongSettings where the archive gave nothing at all, and broke off or refused each time:
        then it is hardly the studies."""
        run, name = self._pulled, self._pulled.peer.name
        if not run.failed or run.fetched or run.known or run.wanted:
            return
        if run.failed.keys() <= REFUSED:
            raise WrongSettings(f"peer {name} lists studies and refuses each of them ({', '.join(run.failed)}): "
                                "let its user, or token, fetch films")  # fmt: skip
        if self._break_off is not None and run.failed.keys() <= BROKEN_OFF:
            raise self._break_off

    def _failures_of(self, day: date, study: str, *, on_films: Callable[[], None]) -> Counter[str]:
        """Pull a study, and return what failed of it. Where the archive breaks off and answers the next question, it is
        the study that failed; where it does not, it is the archive. Two studies in a row that no earlier run had
        noted end the run, noted, so that the next run passes them. Raises PeerAway."""
        if not self._pace.wait_for_window(self._stopping):
            return Counter()
        failed_before, fetched_before = self._pulled.failed.copy(), self._pulled.fetched
        broke_off, self._broke_off = self._broke_off, False
        self._pulled.studies += 1
        try:
            self._pull_study(study)
        except FilmFailed as error:
            self._failed(error.reason)
        except PeerAway as error:
            self._archive.studies(day, self._modalities[0])
            self._break_off = error
            reason = "c_move_broke_off" if isinstance(error, MoveBrokenOff) else "archive_broke_off"
            self._failed(reason)
            if not self._dry_run:
                self._note_study(day, study, Counter([reason]))
            is_new = study not in self._noted
            if broke_off and is_new:
                raise
            self._broke_off = is_new
        if self._pulled.fetched > fetched_before:
            on_films()
        return self._pulled.failed - failed_before

    def _pull_study(self, study: str) -> None:
        if not is_uid(study):
            raise FilmFailed("study_uid_illegal")
        offers = self._archive.offers(study, self._modalities)
        with read_scope(self._context.engine) as session:
            known = lookup.known_uids(session, [offer.sop_instance_uid for offer in offers])
        for offer in offers:
            self._pulled.offered += 1
            if offer.sop_instance_uid in known:
                self._pulled.known += 1
            elif not is_uid(offer.sop_instance_uid):
                self._failed("sop_uid_illegal")
            elif reason := offer.left_out_because(self._rules):
                self._pulled.left_out[reason] += 1
            elif self._dry_run:
                self._pulled.wanted += 1
            elif not self._pace.wait_for_film(self._stopping):
                return
            else:
                self._fetch(offer)

    def _fetch(self, offer: Offer) -> None:
        if self._keeper.inbox.is_full():
            raise InboxFull
        arrived = self._keeper.inbox.folder / PULLING / f"{uuid.uuid4().hex}.dcm"
        try:
            if self._archive.fetch(offer, arrived):
                outcome = self._keeper.keep(
                    arrived, sop_instance_uid=offer.sop_instance_uid, patience_seconds=PATIENCE_SECONDS
                )
                if outcome.rejected:
                    raise FilmFailed("rejected_at_intake")
            elif not self._is_known(offer):
                raise FilmFailed("not_at_our_receiver")
            self._pulled.fetched += 1
            self._metrics.fetched()
        except FilmFailed as error:
            self._failed(error.reason)
        finally:
            arrived.unlink(missing_ok=True)

    def _failed(self, reason: str) -> None:
        self._pulled.failed[reason] += 1
        self._metrics.failed(reason)
        log.warning("film_not_pulled", peer=self._pulled.peer.name, reason=reason)

    def _is_known(self, offer: Offer) -> bool:
        with read_scope(self._context.engine) as session:
            return bool(lookup.known_uids(session, [offer.sop_instance_uid]))
