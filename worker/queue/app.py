"""The Celery app: broker, queues, schedule. What the tasks do stands in tasks.py and below it."""

import logging
import socket
import ssl
import threading
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import structlog
from celery import Celery
from celery.schedules import crontab
from celery.signals import worker_ready, worker_shutting_down
from celery.utils.time import remaining
from kombu.entity import Queue

from worker.errors import Unavailable
from worker.settings import Settings

log = structlog.get_logger()

SCORING, TRAINING, DELIVERY, PULLING = "scoring", "training", "delivery", "pulling"
SCORE, SWEEP, DRIFT, RETRAIN = "nightread.score", "nightread.sweep", "nightread.drift", "nightread.retrain"
DELIVER, PULL = "nightread.deliver", "nightread.pull"
DELIVER_SECONDS = 5.0  # results are looked for so often: a look costs two queries by their indexes
DROPPED_AFTER_SECONDS = 12 * 3600  # a scheduled job that nobody took by then: the next one does the same


def make_app(settings: Settings) -> Celery:
    """A Celery app for these settings; nothing is connected yet. Raises Unavailable where no broker is set."""
    if settings.broker_url is None:
        raise Unavailable("NIGHTREAD_BROKER_URL is not set: there is no queue; use `nightread score` instead")
    # Without the URL's query, which would take the place of `tls` and may say not to verify.
    app = Celery("nightread", broker=settings.broker_url.partition("?")[0], set_as_current=False)
    app.conf.update(
        # JSON alone: a message is a row id, and nobody who can write to Redis can make a worker run code.
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        task_queues=[Queue(name) for name in (SCORING, TRAINING, DELIVERY, PULLING)],  # type: ignore[no-untyped-call]
        task_default_queue=SCORING,
        task_create_missing_queues=False,
        # The ledger, not the broker, knows what is done. A message is acknowledged when it is taken: redelivery after
        # Redis' visibility timeout would only notify twice, and the sweep notifies for what a dead worker had taken.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # Time limits stand where they can be kept, per film in the decoders and per study by leases: no thread can be
        # killed.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,  # Celery's stand-in for standard error drops what our log handler writes to it
        worker_send_task_events=True,  # for Flower
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a broker that is away for the night is waited for
        broker_transport_options=transport_options(),
        broker_use_ssl=tls(settings),
        enable_utc=True,
        timezone=settings.time_zone,
        beat_scheduler="celery.beat:Scheduler",  # in memory: the persistent one keeps its schedule in a pickle
        beat_schedule=schedule(settings),
    )
    return app


def schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """The schedule that beat sends. Two beats send everything twice, which the ledger, the day's drift, the lock of
    retraining and what is known of each film make harmless."""
    entries = {
        # A sweep that nobody takes in time is dropped: the next one does the same.
        "sweep": {
            "task": SWEEP,
            "schedule": settings.sweep_seconds,
            "options": {"expires": settings.sweep_seconds},
        }
    }
    if settings.deliver.is_on:
        options = {"queue": DELIVERY, "expires": DELIVER_SECONDS}
        entries["deliver"] = {"task": DELIVER, "schedule": DELIVER_SECONDS, "options": options}
    for name, task, times, queue in (
        ("drift", DRIFT, settings.drift.schedule, SCORING),
        ("retrain", RETRAIN, settings.retrain.schedule, TRAINING),
        ("pull", PULL, settings.pull.schedule, PULLING),
    ):
        if times:
            options = {"queue": queue, "expires": DROPPED_AFTER_SECONDS}
            entries[name] = {"task": task, "schedule": crontab.from_string(times), "options": options}
    return entries


def next_by(times: str, after: datetime, *, zone: str) -> datetime:
    """The first moment after another one that crontab's five fields name."""
    start, step, now = crontab.from_string(times).remaining_delta(after, tz=ZoneInfo(zone))
    due: datetime = now + remaining(start, step, now)
    return due


def transport_options() -> dict[str, Any]:
    """Notice a dead connection within seconds rather than when the kernel does (after two hours)."""
    probes = {
        "TCP_KEEPIDLE": 10,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
    }  # seconds, seconds, times; by the system's names
    return {
        "socket_keepalive": True,
        "socket_keepalive_options": {
            getattr(socket, name): value for name, value in probes.items() if hasattr(socket, name)
        },
        "socket_connect_timeout": 5,
        "socket_timeout": 30,
        "retry_on_timeout": True,
        "health_check_interval": 10,
    }


def tls(settings: Settings) -> dict[str, Any] | None:
    """TLS with verification for a rediss:// URL, by the given authority or the system's; None without TLS."""
    if not (settings.broker_url or "").startswith("rediss://"):
        return None
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return options | ({"ssl_ca_certs": str(settings.broker_ca_file)} if settings.broker_ca_file else {})


def notify(app: Celery, study_ids: list[int]) -> None:
    """Send one message per study: its row id and nothing else. Raises kombu's OperationalError while Redis is away."""
    with app.producer_pool.acquire(block=True) as producer:
        for study_id in study_ids:
            app.send_task(SCORE, args=[study_id], queue=SCORING, producer=producer, retry=False)


def consume(app: Celery, queue: str, *, stopping: threading.Event) -> None:
    """Take a queue's messages until SIGTERM, which sets `stopping` at once; in one thread beside the connection's.

    One process per GPU, and one thread in it that works while the main thread keeps the broker's connection: never a
    forked pool, whose children would inherit CUDA and torch's threads. Raises Unavailable when the consumer ends by
    itself: whoever watches over the process must start it again.
    """

    def stop(**_: Any) -> None:
        stopping.set()

    worker_shutting_down.connect(stop, weak=False)
    worker_ready.connect(lambda **_: log.info("listening", queue=queue), weak=False)
    _of_few_words(app)(
        queues=[queue],
        pool_cls="threads",
        concurrency=1,
        loglevel=logging.WARNING,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    ).start()
    if not stopping.is_set():  # Celery logs what it did not survive and returns as if all were well
        raise Unavailable("the worker's connection to the queue ended by an error; start it again")


def _of_few_words(app: Celery) -> Any:
    """Celery's worker, whose banner (`quiet`) and last words are no lines of the log: it prints neither."""
    from celery.apps.worker import install_worker_term_handler  # a quarter of a second, which `enqueue` need not wait

    class Worker(app.Worker):  # type: ignore[misc]
        def install_platform_tweaks(self, worker: Any) -> None:
            super().install_platform_tweaks(worker)
            install_worker_term_handler(worker, verbose=False)

    return Worker


def ask_for_retraining(app: Celery, cause: str, *, expires_seconds: float = DROPPED_AFTER_SECONDS) -> None:
    """Send one message to the training queue. Raises kombu's OperationalError while the broker is away."""
    app.send_task(RETRAIN, args=[cause], queue=TRAINING, expires=expires_seconds, retry=False)
