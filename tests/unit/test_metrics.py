"""Metrics: right numbers, stable names, and nothing but codes in the labels."""

import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, update

from db.models import Base, Instance, Run, Study
from db.session import make_engine, session_scope
from worker.metrics import LedgerCollector, WorkMetrics, code, served

NOW = datetime.now(UTC)


@pytest.fixture
def engine(tmp_path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path}/nightread.db")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def add_study(engine: Engine, uid: str, *, state: str, hours_ago: float = 1.0, **values: object) -> int:
    study = Study(study_instance_uid=uid, state=state, received_at=NOW - timedelta(hours=hours_ago), **values)
    with session_scope(engine) as session:
        session.add(study)
        session.flush()
        return study.id


def ledger_registry(engine: Engine, **options: object) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(engine, **options))
    return registry


def test_settled_studies_are_counted_by_outcome_and_reason() -> None:
    metrics = WorkMetrics()
    metrics.settled("scored", reason=None, attempts=1)
    metrics.settled("scored", reason=None, attempts=1)
    metrics.settled("quarantined", reason="undecodable", attempts=3)
    total = metrics.registry.get_sample_value
    assert total("nightread_studies_settled_total", {"outcome": "scored", "reason": "none"}) == 2
    assert total("nightread_studies_settled_total", {"outcome": "quarantined", "reason": "undecodable"}) == 1
    assert total("nightread_study_attempts_sum") == 5
    assert total("nightread_last_progress_timestamp_seconds") > 1e9


def test_batch_fill_is_films_over_batch_size() -> None:
    metrics = WorkMetrics()
    metrics.predicted(16, batch_size=64)
    metrics.predicted(64, batch_size=64)
    assert metrics.registry.get_sample_value("nightread_films_predicted_total") == 80
    assert metrics.registry.get_sample_value("nightread_batch_fill_ratio_bucket", {"le": "0.25"}) == 1
    assert metrics.registry.get_sample_value("nightread_batch_fill_ratio_sum") == 1.25


def test_stage_that_raises_is_timed_all_the_same() -> None:
    metrics = WorkMetrics()
    with pytest.raises(ValueError, match="bad film"), metrics.stage("read"):
        raise ValueError("bad film")
    assert metrics.registry.get_sample_value("nightread_stage_seconds_count", {"stage": "read"}) == 1


def test_two_workers_in_one_process_do_not_mix() -> None:
    first, second = WorkMetrics(), WorkMetrics()
    first.predicted(3, batch_size=4)
    assert second.registry.get_sample_value("nightread_films_predicted_total") == 0


@pytest.mark.parametrize("text", ["DOE^JANE", "1.2.840.113619.2.5", "/data/film.dcm", "Lateral", "", "a" * 65, None])
def test_free_text_never_becomes_a_label(text: str | None) -> None:
    assert code(text) == "other"


def test_ledger_shows_studies_by_state(engine: Engine) -> None:
    add_study(engine, "1.1", state="waiting")
    add_study(engine, "1.2", state="claimed")
    add_study(engine, "1.3", state="quarantined", reason="worker_lost")
    registry = ledger_registry(engine)
    value = registry.get_sample_value
    states = ("waiting", "claimed", "quarantined", "scored", "skipped")
    assert [value("nightread_studies", {"state": state}) for state in states] == [1, 1, 1, 0, 0]
    assert value("nightread_quarantined_studies", {"reason": "worker_lost"}) == 1
    assert value("nightread_ledger_up") == 1


def test_ledger_shows_skips_by_reason_and_pools_what_is_no_code(engine: Engine) -> None:
    study = add_study(engine, "1.1", state="skipped")
    with session_scope(engine) as session:
        for number, reason in enumerate(("lateral_view", "lateral_view", "DOE^JANE", "SMITH^JOHN")):
            session.add(
                Instance(
                    study_id=study,
                    sop_instance_uid=f"1.9.{number}",
                    path="/x",
                    state="skipped",
                    reason=reason,
                    received_at=NOW,
                )
            )
    registry = ledger_registry(engine)
    assert registry.get_sample_value("nightread_skipped_instances", {"reason": "lateral_view"}) == 2
    assert registry.get_sample_value("nightread_skipped_instances", {"reason": "other"}) == 2
    assert b"DOE" not in generate_latest(registry)


def test_oldest_waiting_leaves_out_studies_that_were_settled_before(engine: Engine) -> None:
    add_study(engine, "1.1", state="waiting", hours_ago=2)
    add_study(engine, "1.2", state="waiting", hours_ago=9_000, settled_at=NOW - timedelta(hours=8_000))
    oldest = ledger_registry(engine).get_sample_value("nightread_oldest_waiting_seconds")
    assert oldest == pytest.approx(7200, abs=60)


def test_nothing_waiting_is_zero_seconds_and_no_run_is_no_number(engine: Engine) -> None:
    registry = ledger_registry(engine)
    assert registry.get_sample_value("nightread_oldest_waiting_seconds") == 0
    assert registry.get_sample_value("nightread_seconds_since_settled") is None


def test_progress_is_the_last_run_that_settled_something(engine: Engine) -> None:
    with session_scope(engine) as session:
        session.add(Run(kind="night", started_at=NOW, last_settled_at=NOW - timedelta(minutes=5), settings={}))
    since = ledger_registry(engine).get_sample_value("nightread_seconds_since_settled")
    assert since == pytest.approx(300, abs=60)


def test_ledger_is_read_again_only_after_its_age(engine: Engine) -> None:
    clock = iter([0.0, 10.0, 31.0])
    registry = ledger_registry(engine, max_age_seconds=30, clock=lambda: next(clock))
    study = add_study(engine, "1.1", state="waiting")
    assert registry.get_sample_value("nightread_studies", {"state": "waiting"}) == 1
    with session_scope(engine) as session:
        session.execute(update(Study).where(Study.id == study).values(state="skipped"))
    assert registry.get_sample_value("nightread_studies", {"state": "waiting"}) == 1
    assert registry.get_sample_value("nightread_studies", {"state": "waiting"}) == 0


def test_database_that_does_not_answer_is_down_and_hides_old_numbers(tmp_path) -> None:
    empty = make_engine(f"sqlite:///{tmp_path}/no-schema.db")
    registry = ledger_registry(empty)
    assert registry.get_sample_value("nightread_ledger_up") == 0
    assert registry.get_sample_value("nightread_studies", {"state": "waiting"}) is None
    empty.dispose()


def test_metrics_are_served_over_http_while_the_block_runs() -> None:
    metrics = WorkMetrics()
    metrics.predicted(2, batch_size=4)
    with served(metrics.registry, port=0) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        assert "nightread_films_predicted_total 2.0" in page.read().decode()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
