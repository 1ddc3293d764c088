"""Is the house in order? Each check says what it found and, when something is wrong, what to do."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from db import schema, training_runs
from db.base import database_now
from db.session import make_engine, read_scope
from db.vitals import head_of_queue, vitals
from training.checkpoint import CheckpointError
from worker.errors import Unavailable
from worker.house import House, file_digest

LEAST_FREE_MB = 500
MOST_SKEW_SECONDS = 5.0
STALLED_SECONDS = 300.0  # studies wait and none was settled for this long: the workers stand still


@dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    name: str
    ok: bool
    text: str


def examine(house: House) -> Iterator[Finding]:
    """Database, schema, checkpoint, device, broker, clock and disk. A check that needs a broken one is left out."""
    engine = make_engine(house.settings.database_url)
    database = _checked("database", lambda: _database(engine))
    yield database
    if database.ok:
        yield _checked("clock", lambda: _clock(engine))
        yield _checked("checkpoint", lambda: _checkpoint(house))
    yield _checked("device", lambda: _device(house.settings.device))
    yield _checked("broker", lambda: _broker(house))
    yield _checked("disk", lambda: _disk(engine))


def examine_role(house: House, role: str) -> Iterator[Finding]:
    """What a container's health check asks: does the work of this role get on?"""
    yield _checked("progress", lambda: ROLES[role](house))


class Ailing(Exception):
    """A check failed; the text says how and what to do."""


def _checked(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (Ailing, Unavailable, CheckpointError) as error:
        return Finding(name, False, str(error))
    except OSError as error:
        return Finding(name, False, f"{error.strerror}: check the folders that the settings name")
    except DBAPIError as error:
        return Finding(name, False, f"the database does not answer ({type(error.orig).__name__})")


def _database(engine: Engine) -> str:
    found, needed = schema.current_revision(engine), schema.head_revision()
    kind = engine.dialect.name
    if found is None and kind == "sqlite":
        return f"{kind}, empty; the first command makes the schema"
    if found != needed:
        raise Ailing(f"{kind}, schema {found or 'missing'}, this version needs {needed}: run `nightread db upgrade`")
    return f"{kind}, schema {found}"


def _clock(engine: Engine) -> str:
    with read_scope(engine) as session:
        skew = abs((database_now(session) - datetime.now(UTC)).total_seconds())
    if skew > MOST_SKEW_SECONDS:
        raise Ailing(f"this machine's clock is {skew:.0f} s off the database's: synchronise it (NTP)")
    return f"{skew:.1f} s off the database's"


def _checkpoint(house: House) -> str:
    live = house.live()
    if file_digest(live.path) != live.digest:
        raise Ailing("the champion's file has changed since it was registered: restore it, or promote another")
    return f"{live.header.network}, digest {live.digest[:12]}, policy version {live.policy.policy.version}"


def _device(name: str) -> str:
    import torch

    from worker.inference import choose_device

    try:
        device = choose_device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise Ailing(f"{name} cannot be used: {str(error).splitlines()[0]}") from error
    return str(device)


def _broker(house: House) -> str:
    from kombu.exceptions import OperationalError as BrokerAway

    from worker.app import make_app

    if house.settings.broker_url is None:
        return "none set: embedded, `nightread score` only"
    began = time.monotonic()
    try:
        with make_app(house.settings).connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except (BrokerAway, OSError) as error:
        raise Ailing("the broker does not answer: check NIGHTREAD_BROKER_URL, password and TLS") from error
    return f"answers in {(time.monotonic() - began) * 1000:.0f} ms"


def _disk(engine: Engine) -> str:
    database = engine.url.database or ""
    folder = Path(database).parent if engine.dialect.name == "sqlite" and database else Path.cwd()
    while not folder.exists():
        folder = folder.parent
    free_mb = shutil.disk_usage(folder).free // 2**20
    if free_mb < LEAST_FREE_MB:
        raise Ailing(f"{free_mb} MB free; {LEAST_FREE_MB} are the least")
    return f"{free_mb} MB free"


def _worker_progress(house: House) -> str:
    with read_scope(house.engine) as session:
        found, head = vitals(session), head_of_queue(session)
    if head is None:
        return "nothing waits"
    quiet = min(found.seconds_since_settled or head.waits_seconds, head.waits_seconds)
    if quiet > STALLED_SECONDS:
        raise Ailing(f"studies wait and none was settled for {quiet:.0f} s")
    return f"{found.books.waiting} wait, the last was settled {quiet:.0f} s ago"


def _beat_progress(house: House) -> str:
    settings = house.settings
    limit = settings.ring_again_minutes * 60 + 3 * settings.sweep_seconds
    with read_scope(house.engine) as session:
        head = head_of_queue(session)
    if head is not None and head.unrung_seconds > limit:
        raise Ailing(f"the study at the head of the queue was not rung for since {head.unrung_seconds:.0f} s")
    return "the head of the queue was rung for lately" if head else "nothing waits"


def _training_progress(house: House) -> str:
    with read_scope(house.engine) as session:
        run = training_runs.running(session)
        if run is None:
            return "no retraining is under way"
        silent = (database_now(session) - (run.lease_expires_at or run.started_at)).total_seconds()
    if silent > STALLED_SECONDS:
        raise Ailing(f"retraining {run.id} was left (stage: {run.stage}) and nobody goes on with it")
    return f"retraining {run.id} is at its stage {run.stage}"


ROLES = {"worker": _worker_progress, "beat": _beat_progress, "training": _training_progress}
