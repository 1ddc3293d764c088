"""Prometheus metrics: counts, durations and codes; never a name, an identifier or a path.

A worker counts its own work (`WorkMetrics`); beat shows the ledger (`LedgerCollector`), which holds across workers and
restarts. Each has a registry of its own, so that two of them in one process do not mix.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db.health import Health, health
from db.models import DRIFT_LEVELS, Drift
from db.session import read_scope

# From one small film decoded on a GPU machine (5 ms) to a minute for a batch on two slow cores.
STAGE_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

MAX_AGE_SECONDS = 30.0

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def code(value: str | None) -> str:
    """`value` where it is a code such as `lateral_view`, else "other": free text may hold what no metric may show."""
    return value if value is not None and _CODE.fullmatch(value) else "other"


class WorkMetrics:
    """Metrics of one worker since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._studies = Counter(
            "nightread_studies_settled", "Studies this worker settled.", ["outcome", "reason"], registry=self.registry
        )
        self._attempts = Histogram(
            "nightread_study_attempts",
            "Attempts a study took until it was settled.",
            buckets=(1, 2, 3, 5, 8),
            registry=self.registry,
        )
        self._films = Counter("nightread_films_predicted", "Films the network has read.", registry=self.registry)
        self._fill = Histogram(
            "nightread_batch_fill_ratio",
            "Films in a batch over the batch size.",
            buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1),
            registry=self.registry,
        )
        self._stages = Histogram(
            "nightread_stage_seconds",
            "Seconds per stage of a batch: claim, decode, predict, shadow, record.",
            ["stage"],
            buckets=STAGE_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._shadow = Counter(
            "nightread_shadow_failures",
            "Times that the shadow was left out; no study is the worse for it.",
            ["reason"],
            registry=self.registry,
        )
        self._progress = Gauge(
            "nightread_last_progress_timestamp_seconds",
            "When this worker last settled a study or found none waiting (Unix time).",
            registry=self.registry,
        )

    def settled(self, outcome: str, *, reason: str | None, attempts: int) -> None:
        """Count a study that was scored, skipped or quarantined; `reason` is the ledger's, None for a scored one."""
        self._studies.labels(code(outcome), "none" if reason is None else code(reason)).inc()
        self._attempts.observe(attempts)
        self.progressed()

    def predicted(self, films: int, *, batch_size: int) -> None:
        self._films.inc(films)
        self._fill.observe(films / batch_size)

    def shadow_failed(self, reason: str) -> None:
        self._shadow.labels(code(reason)).inc()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, whether it ends well or raises."""
        with self._stages.labels(code(name)).time():
            yield

    def progressed(self) -> None:
        self._progress.set(time.time())


class ReceiveMetrics:
    """Metrics of one DICOM receiver since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._films = Counter("nightread_received_films", "Films received by C-STORE.", registry=self.registry)
        self._bytes = Counter("nightread_received_bytes", "Bytes of those films.", registry=self.registry)
        self._refusals = Counter(
            "nightread_receiver_refusals",
            "Films, associations and connections refused, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._associations = Counter(
            "nightread_receiver_associations", "Associations accepted.", registry=self.registry
        )

    def received(self, size_bytes: int) -> None:
        self._films.inc()
        self._bytes.inc(size_bytes)

    def refused(self, reason: str) -> None:
        self._refusals.labels(code(reason)).inc()

    def associated(self) -> None:
        self._associations.inc()


class PullMetrics:
    """Metrics of one pulling process since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._films = Counter("nightread_pulled_films", "Films fetched from archives.", registry=self.registry)
        self._failures = Counter(
            "nightread_pull_failures",
            "Films that could not be fetched and studies that could not be listed, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._runs = Counter(
            "nightread_pulls",
            "Pulls from one archive each: whole, or ended_early, whatever the cause.",
            ["peer", "outcome"],
            registry=self.registry,
        )
        self._last = Gauge(
            "nightread_last_whole_pull_timestamp_seconds",
            "When a pull from this archive last came to its last day (Unix time).",
            ["peer"],
            registry=self.registry,
        )

    def fetched(self) -> None:
        self._films.inc()

    def failed(self, reason: str) -> None:
        self._failures.labels(code(reason)).inc()

    def ended(self, peer: str, *, whole: bool) -> None:
        """A pull from a peer, by its name in the settings."""
        self._runs.labels(peer, "whole" if whole else "ended_early").inc()
        if whole:
            self._last.labels(peer).set(time.time())


class LedgerCollector(Collector):
    """The ledger as gauges, read from the database when Prometheus asks, at most once in MAX_AGE_SECONDS.

    While the database does not answer, `nightread_ledger_up` is 0 and the other gauges are absent: an old number that
    looks new would be worse than none.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._read_at: float | None = None
        self._health: Health | None = None

    def collect(self) -> Iterable[Metric]:
        health = self._current()
        up = GaugeMetricFamily("nightread_ledger_up", "1 when the database answered, else 0.")
        up.add_metric([], health is not None)
        yield up
        if health is not None:
            yield from _gauges(health)

    def describe(self) -> Iterable[Metric]:
        """Nothing: Prometheus' client would else read the database just to register."""
        return []

    def _current(self) -> Health | None:
        now = time.monotonic()
        if self._read_at is None or now - self._read_at >= MAX_AGE_SECONDS:
            self._health = self._read()
            self._read_at = now
        return self._health

    def _read(self) -> Health | None:
        try:
            with read_scope(self._engine) as session:
                return health(session)
        except SQLAlchemyError:
            return None


def _gauges(found: Health) -> Iterator[Metric]:
    totals = found.totals
    states = {"scored": totals.scored, "skipped": totals.skipped, "quarantined": totals.quarantined}
    states |= {"waiting": totals.waiting - totals.claimed, "claimed": totals.claimed}
    yield _counts("nightread_studies", "Studies by state.", "state", states)
    for name, text, reasons in (
        ("nightread_skipped_instances", "Instances not read, by reason.", "skipped instances"),
        ("nightread_quarantined_studies", "Studies set aside after their attempts, by reason.", "quarantined studies"),
        ("nightread_rejected_files", "Files that could not become an instance, by reason.", "rejected files"),
    ):
        yield _counts(name, text, "reason", totals.reasons.get(reasons, {}))
    yield GaugeMetricFamily("nightread_films_scored", "Films with a score.", value=totals.films)
    yield GaugeMetricFamily(
        "nightread_oldest_waiting_seconds",
        "How long the oldest study that was never settled has waited.",
        value=found.oldest_waiting_seconds,
    )
    yield from _deliveries(found)
    if found.seconds_since_settled is not None:
        yield GaugeMetricFamily(
            "nightread_seconds_since_settled", "Since a run last settled a study.", value=found.seconds_since_settled
        )
    if found.seconds_since_drift is not None:
        yield from _drift(found.drift)
        yield GaugeMetricFamily(
            "nightread_drift_age_seconds",
            "Since the end of the day that was last judged; negative while it goes on.",
            value=found.seconds_since_drift,
        )


def _deliveries(found: Health) -> Iterator[Metric]:
    counts = GaugeMetricFamily("nightread_deliveries", "Results by kind and state.", labels=["kind", "state"])
    for (kind, state), count in found.deliveries.items():
        counts.add_metric([code(kind), code(state)], count)
    yield counts
    yield GaugeMetricFamily(
        "nightread_oldest_delivery_seconds",
        "How long the oldest result that is not out yet has waited.",
        value=found.oldest_delivery_seconds,
    )


def _drift(figures: Sequence[Drift]) -> Iterator[Metric]:
    moved = GaugeMetricFamily(
        "nightread_drift",
        "How far the last judged day moved: psi, ks and shares less what chance gives, rate as a change.",
        labels=["measure", "subject"],
    )
    level = GaugeMetricFamily(
        "nightread_drift_level", "The same in levels: 0 quiet, 1 warn, 2 act.", labels=["measure", "subject"]
    )
    for figure in figures:
        if figure.reference is not None:  # there was something to compare with
            labels = [code(figure.measure), code(figure.subject.lower())]
            moved.add_metric(labels, figure.value)
            level.add_metric(labels, DRIFT_LEVELS.index(figure.level))
    yield from (moved, level)


def _counts(name: str, text: str, label: str, counts: Mapping[str | None, int] | Mapping[str, int]) -> Metric:
    by_code: defaultdict[str, int] = defaultdict(int)  # several texts may become one "other"
    for value, count in counts.items():
        by_code[code(value)] += count
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in by_code.items():
        family.add_metric([value], count)
    return family


@contextmanager
def served(registry: CollectorRegistry, *, port: int, address: str = "127.0.0.1") -> Iterator[int]:
    """Answer http://address:port/metrics while the block runs; port 0 takes a free one. Yields the port."""
    server, thread = start_http_server(port, addr=address, registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def page(registry: CollectorRegistry, *, port: int, address: str) -> AbstractContextManager[int | None]:
    """`served`, or no page at all where the setting says port 0."""
    return served(registry, port=port, address=address) if port else nullcontext()
