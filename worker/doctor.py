"""Health checks of an installation. Each says what it found and, when something is wrong, what to do."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import DBAPIError

from db import deliveries, pulls, schema, training_runs
from db.base import database_now
from db.health import head_of_queue, seconds_since_settled
from db.session import make_engine, read_scope
from training.checkpoint import SHIPPED, CheckpointError, read_header
from worker.context import Context, NothingSeeded, file_digest
from worker.database import reason_of, require_database
from worker.errors import Unavailable
from worker.intake.view_rules import outdated, outdated_hint
from worker.peers import peer_named
from worker.setting_peers import Peer
from worker.settings import Settings, WrongSettings
from worker.wording import counted

LEAST_FREE_MB = 500
MOST_SKEW_SECONDS = 5.0
MOST_PULL_DAYS = 2  # since a pull was due: one that goes on raises the watermark, and one that ended is noted
WEB_PORT = 8080  # where `nightread serve` listens unless told otherwise
STALLED_SECONDS = 300.0  # studies wait and none was settled for this long: the workers stand still


@dataclass(frozen=True)
class CheckResult:
    """One check's outcome."""

    name: str
    ok: bool
    text: str


def examine(context: Context) -> Iterator[CheckResult]:
    """Settings, database, schema, checkpoint, device, decoders, broker, clock, disk and peers, less what needs a broken
    one."""
    yield CheckResult("settings", True, f"{len(context.settings.model_fields_set)} set, the others at their defaults")
    database = _checked("database", lambda: _database(context.settings))
    yield database
    if database.ok:
        yield _checked("clock", lambda: _clock(context.engine))
        yield _checked("checkpoint", lambda: _checkpoint(context))
        yield _checked("skipped", lambda: _skipped(context))
        if context.settings.pull.peers:
            yield _checked("pulls", lambda: _pulls(context))
    yield _checked("device", lambda: _device(context.settings.device))
    yield _checked("decoders", lambda: _decoders(context))
    yield _checked("broker", lambda: _broker(context))
    yield _checked("disk", lambda: _disk(make_url(context.settings.database_url)))
    for peer in (each for each in context.settings.peers if each.ae_title or each.dicomweb):
        yield _checked(f"peer {peer.name}", partial(_peer_answers, context, peer))


def examine_role(context: Context, role: str) -> Iterator[CheckResult]:
    """Health check of a container: is the work of this role being completed?"""
    yield _checked("progress", lambda: ROLES[role](context))


class CheckFailed(Exception):
    """A check failed; the text says how and what to do."""


def _checked(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, True, check())
    except (CheckFailed, Unavailable, WrongSettings, CheckpointError) as error:
        return CheckResult(name, False, str(error))
    except OSError as error:
        return CheckResult(name, False, f"{error.strerror}: check the folders that the settings name")
    except DBAPIError as error:
        return CheckResult(name, False, f"the database does not answer: {reason_of(error)}")


def _database(settings: Settings) -> str:
    require_database(settings)
    engine = make_engine(settings.database_url)
    with engine.connect().execution_options(read_only=True) as connection:
        try:
            schema.require_utf8(connection)
        except schema.WrongEncoding as error:
            raise CheckFailed(str(error)) from error
    found, needed = schema.current_revision(engine), schema.head_revision()
    kind = engine.dialect.name
    if found is None and kind == "sqlite":
        return f"{kind}, empty; the first command makes the schema"
    if found != needed:
        raise CheckFailed(
            f"{kind}, schema {found or 'missing'}, this version needs {needed}: run `nightread db upgrade`"
        )
    return f"{kind}, schema {found}"


def _clock(engine: Engine) -> str:
    with read_scope(engine) as session:
        skew = abs((database_now(session) - datetime.now(UTC)).total_seconds())
    if skew > MOST_SKEW_SECONDS:
        raise CheckFailed(f"this machine's clock is {skew:.0f} s off the database's: synchronise it (NTP)")
    return f"{skew:.1f} s off the database's"


def _checkpoint(context: Context) -> str:
    from worker.scoring.inference import prove

    try:
        live = context.live()
    except NothingSeeded:
        file = context.settings.checkpoint or SHIPPED
        prove(file)
        network = read_header(file).network
        return f"{network}, not registered yet: `nightread score`, a worker or `nightread db upgrade` does it"
    if file_digest(live.path) != live.digest:
        raise CheckFailed("the champion's file has changed since it was registered: restore it, or promote another")
    prove(live.path, digest=live.digest)
    return f"{live.header.network}, digest {live.short}, policy version {live.policy.version}"


def _skipped(context: Context) -> str:
    """Not a failure: a site may leave what it skipped before as it is."""
    count = outdated(context.engine, context.settings)
    return outdated_hint(count) if count else "all decided by these settings"


def _device(name: str) -> str:
    import torch

    from worker.scoring.inference import choose_device

    try:
        device = choose_device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise CheckFailed(f"{name} cannot be used: {str(error).splitlines()[0]}") from error
    return str(device)


def _decoders(context: Context) -> str:
    from training.imaging.preprocessing import Preprocessing
    from worker.scoring.decoder_pool import DecoderPool
    from worker.scoring.decoding import DecodeOptions

    with DecoderPool(DecodeOptions.of(context, Preprocessing()), decoders=1) as pool:
        pool.begin_proof()()
    return f"a film is decoded within {context.settings.decode.memory_mb} MB"


def _broker(context: Context) -> str:
    from kombu.exceptions import OperationalError as BrokerAway

    from worker.queue.app import make_app

    if context.settings.broker_url is None:
        return "none set: embedded, `nightread score` only"
    began = time.monotonic()
    try:
        with make_app(context.settings).connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except (BrokerAway, OSError) as error:
        raise CheckFailed("the broker does not answer: check NIGHTREAD_BROKER_URL, password and TLS") from error
    return f"answers in {(time.monotonic() - began) * 1000:.0f} ms"


def _disk(url: URL) -> str:
    database = url.database or ""
    folder = Path(database).parent if url.get_backend_name() == "sqlite" and database else Path.cwd()
    while not folder.exists():
        folder = folder.parent
    free_mb = shutil.disk_usage(folder).free // 2**20
    if free_mb < LEAST_FREE_MB:
        raise CheckFailed(f"{free_mb} MB free; {LEAST_FREE_MB} are the least")
    return f"{free_mb} MB free"


def _worker_progress(context: Context) -> str:
    with read_scope(context.engine) as session:
        settled, head = seconds_since_settled(session), head_of_queue(session)
    if head is None:
        return "nothing waits"
    quiet = min(settled or head.waits_seconds, head.waits_seconds)
    if quiet > STALLED_SECONDS:
        raise CheckFailed(f"studies wait and none was settled for {quiet:.0f} s")
    return f"studies wait, work went on {quiet:.0f} s ago"


def _beat_progress(context: Context) -> str:
    settings = context.settings
    limit = settings.renotify_minutes * 60 + 3 * settings.sweep_seconds
    with read_scope(context.engine) as session:
        head = head_of_queue(session)
    if head is not None and head.unnotified_seconds > limit:
        raise CheckFailed(f"the study at the head of the queue has had no message for {head.unnotified_seconds:.0f} s")
    return "the head of the queue was notified lately" if head else "nothing waits"


def _training_progress(context: Context) -> str:
    with read_scope(context.engine) as session:
        run = training_runs.running(session)
        if run is None:
            return "no retraining is under way"
        silent = (database_now(session) - (run.lease_expires_at or run.started_at)).total_seconds()
    if silent > STALLED_SECONDS:
        raise CheckFailed(f"retraining {run.id} was left (stage: {run.stage}) and no process resumes it")
    return f"retraining {run.id} is at its stage {run.stage}"


def _receiver_answers(context: Context) -> str:
    """A C-ECHO to our own receiver, as a modality that may send would ask it."""
    from worker.dicom_network.echo import echo

    receive = context.settings.receive
    host = "127.0.0.1" if receive.address in ("0.0.0.0", "::") else receive.address  # noqa: S104 - compared, not bound
    title = next(iter(receive.calling_ae_titles), "DOCTOR")
    if not echo(
        host, receive.port, called=receive.ae_title, calling=title, tls=receive.tls_certificate_file is not None
    ):
        raise CheckFailed(
            f"the receiver on {host}:{receive.port} does not answer a C-ECHO: is `nightread receive` running?"
        )
    return f"answers a C-ECHO on {host}:{receive.port}"


def _pulling_goes_on(context: Context) -> str:
    """Whether each archive of NIGHTREAD_PULL_PEERS answers, and pulls from it come to their end."""
    for name in context.settings.pull.peers:
        _peer_answers(context, peer_named(context.settings, name))
    return _pulls(context)


def _pulls(context: Context) -> str:
    """Whether pulls come to their end; studies that could not be fetched are named, and are no failure."""
    settings = context.settings
    with read_scope(context.engine) as session:
        found = {name: pulls.progress(session, name) for name in settings.pull.peers}
        unpulled = pulls.unpulled_count(session, settings.pull.peers)
        now = database_now(session)
    words = {name: f"up to {each.day}" if each and each.day else "nothing pulled yet" for name, each in found.items()}
    oldest = now - timedelta(days=MOST_PULL_DAYS)
    if late := [name for name, each in found.items() if each and _pull_due(settings, each.moved_at) < oldest]:
        named = ", ".join(f"{name} ({words[name]})" for name in late)
        raise CheckFailed(f"no pull came to its end lately from {named}: see the log of the pulling worker")
    rest = (
        f"; {counted(unpulled, 'study', 'studies')} could not be fetched: `nightread pull --failed`" if unpulled else ""
    )
    return ", ".join(f"{name}: {text}" for name, text in words.items()) + rest


def _pull_due(settings: Settings, moved_at: datetime) -> datetime:
    """When the next pull was due: by the schedule; without one, at once."""
    from worker.queue.app import next_by

    return next_by(settings.pull.schedule, moved_at, zone=settings.time_zone) if settings.pull.schedule else moved_at


def _delivery_answers(context: Context) -> str:
    """Whether each destination answers, and whether anything was given up."""
    from worker.delivery.probe import silent_destinations

    if not context.settings.deliver.is_on:
        return "no result is sent to anybody"
    with read_scope(context.engine) as session:
        paused, count = deliveries.is_paused(session), deliveries.counts(session)
    if silent := silent_destinations(context):
        raise CheckFailed(f"no answer from {', '.join(silent)}: see their addresses in NIGHTREAD_PEERS")
    if failed := sum(number for (_, state), number in count.items() if state == "failed"):
        raise CheckFailed(f"{failed} results were given up: `nightread deliver --list` says why, --retry sends them")
    return "every destination answers" + ("; all deliveries are stopped" if paused else "")


def _web_answers(context: Context) -> str:
    """A request to our own web page, on the port that `nightread serve` takes unless told otherwise."""
    import httpx

    scheme = "http" if context.settings.web.tls_certificate_file is None else "https"
    address = f"{scheme}://127.0.0.1:{WEB_PORT}/alive"
    try:  # the certificate names the host that browsers use
        httpx.get(address, verify=False, timeout=10, trust_env=False).raise_for_status()  # noqa: S501
    except httpx.HTTPError as error:
        raise CheckFailed(f"no answer from {address}: is `nightread serve` running?") from error
    return f"answers on port {WEB_PORT}"


def _peer_answers(context: Context, peer: Peer) -> str:
    """A C-ECHO and, by DICOMweb, a search for today's studies."""
    from worker.dicom_network.echo import answers
    from worker.dicom_network.pull import web_archive

    answered = []
    if peer.ae_title is not None:
        if not answers(peer, calling=context.settings.receive.ae_title):
            raise CheckFailed(f"peer {peer.name} takes our association and answers no C-ECHO")
        answered.append("a C-ECHO")
    if peer.dicomweb is not None:
        with web_archive(context, peer) as archive:
            archive.studies(datetime.now(UTC).date(), context.settings.pull.modalities[0])
        answered.append("a search by DICOMweb")
    return f"answers {' and '.join(answered)}"


ROLES = {
    "worker": _worker_progress,
    "beat": _beat_progress,
    "training": _training_progress,
    "receiver": _receiver_answers,
    "puller": _pulling_goes_on,
    "delivery": _delivery_answers,
    "web": _web_answers,
}
