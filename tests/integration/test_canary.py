"""Canaries: a patient planted in headers and paths shows up in no log, message, metric or error of the service."""

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1
from sqlalchemy import create_engine, inspect, select, text

from db.models import Delivery
from db.session import read_scope
from tests.integration.test_deliver import Node, rows
from tests.integration.test_deliver_elsewhere import Listener, Server
from tests.support.contexts import seeded_context
from tests.support.crew import environment_of, messages, wait_until
from tests.support.dicom_files import make_film, texture
from tests.support.orthanc import AE_TITLE, DICOM_PORT, PASSWORD, USER, Orthanc
from tests.support.scored import score_at_once
from tests.support.servers import free_port
from worker.intake.receive import receive
from worker.monitoring.prometheus import LedgerCollector
from worker.queue.app import SCORE
from worker.settings import Settings

pytestmark = pytest.mark.xdist_group("servers")

CANARY: dict[str, Any] = {
    "PatientName": "Kanarienvogel^Hansi",
    "PatientID": "CANARY-PATIENT-KV4711VK",
    "PatientBirthDate": "19310217",
    "AccessionNumber": "CANARYACCN",
    "InstitutionName": "Canary Hospital",
    "ReferringPhysicianName": "Canary^Doctor",
    "StudyDescription": "CANARY STUDY TEXT",
    "OtherPatientIDs": "CANARY-OTHER",
}
METRICS_PORT = 9100  # of the receiver, in a namespace of its own
NONSENSE = encapsulate([b"Kanarienvogel^Hansi " * 50])
# None of them may come about by chance: four digits alone do, in a digest or a clock, now and then.
WORDS = ("kanarienvogel", "hansi", "canary", "kv4711vk", "19310217", ".dcm")
# The worklist needs UIDs, accession numbers and paths; the database needs none of these.
NEVER_STORED = ("kanarienvogel^hansi", "kv4711vk", "19310217", "canary hospital", "canary^doctor", "canary-other")


def films(folder: Path) -> list[str]:
    """One film of every fate, in a folder named after the patient; returns their UIDs."""
    folder.mkdir()
    made = [
        make_film(folder / "good.dcm", pixels=texture(), bits=12, **CANARY),
        make_film(folder / "lateral.dcm", view_position="LL", **CANARY),
        make_film(folder / "truncated.dcm", PixelData=b"\0\0", **CANARY),
        make_film(folder / "nonsense.dcm", **{**CANARY, "ViewPosition": "KANARIENVOGEL", "BodyPartExamined": "CANARY"}),
        make_film(folder / "undecodable.dcm", transfer_syntax=JPEGLosslessSV1, PixelData=NONSENSE, **CANARY),
    ]
    (folder / "canary-not-dicom.dcm").write_bytes(b"Kanarienvogel^Hansi" * 50)
    return [uid for film in made for uid in (film.StudyInstanceUID, film.SOPInstanceUID)]


@pytest.fixture
def environment(settings: Settings, postgres_url: str, redis_url: str) -> dict[str, str]:
    seeded_context(settings.changed(database_url=postgres_url), champion=settings.checkpoint)
    return os.environ | {
        "NIGHTREAD_DATABASE_URL": postgres_url,
        "NIGHTREAD_BROKER_URL": redis_url,
        "NIGHTREAD_CHECKPOINT": str(settings.checkpoint),
        "NIGHTREAD_DECODERS": "1",
        "NIGHTREAD_DEVICE": "cpu",
        "NIGHTREAD_LOG_FORMAT": "json",
        "NIGHTREAD_LOG_LEVEL": "debug",
    }


def test_a_patient_shows_up_nowhere_and_nothing_but_the_metrics_pages_listens(
    environment: dict[str, str], tmp_path: Path
) -> None:
    uids = films(tmp_path / "Kanarienvogel_Hansi")
    seen: dict[str, str] = {}
    enqueued = nightread(["enqueue", str(tmp_path / "Kanarienvogel_Hansi")], environment)
    seen["enqueue"] = enqueued.stdout + enqueued.stderr
    assert enqueued.returncode == 0, seen["enqueue"]
    seen["messages"] = messages(environment["NIGHTREAD_BROKER_URL"])
    assert SCORE in seen["messages"]
    with redis.Redis.from_url(environment["NIGHTREAD_BROKER_URL"]) as client:
        seen["Redis"] = repr([(key, client.dump(key)) for key in client.scan_iter()])
    with ExitStack() as stack:
        ports, processes = {}, []
        for command in ("worker", "beat"):
            ports[command] = free_port()
            log = stack.enter_context((tmp_path / f"{command}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "worker.cli", command],
                env=environment | {"NIGHTREAD_METRICS_PORT": str(ports[command])},
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait, timeout=60)
            stack.callback(process.terminate)
            processes.append(psutil.Process(process.pid))
        wait_for_the_night(environment["NIGHTREAD_DATABASE_URL"])
        wanted = {("127.0.0.1", port) for port in ports.values()}
        wait_until(lambda: wanted <= listening(processes))
        assert listening(processes) == wanted
        for command, port in ports.items():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                seen[f"{command}'s metrics"] = page.read().decode()
    for command in ports:
        seen[f"{command}'s log"] = (tmp_path / f"{command}.log").read_text()
    assert '"event": "study_scored"' in seen["worker's log"]
    assert 'nightread_studies_settled_total{outcome="scored"' in seen["worker's metrics"]
    assert 'nightread_skipped_instances{reason="lateral_view"} 1.0' in seen["beat's metrics"]
    assert [word for word in NEVER_STORED if word in everything_stored(environment["NIGHTREAD_DATABASE_URL"])] == []
    leaks = {
        place: [word for word in (*WORDS, *uids) if word in what.lower().replace(str(tmp_path).lower(), "")]
        for place, what in seen.items()
    }
    assert {place: words for place, words in leaks.items() if words} == {}


def test_a_patient_in_an_archive_shows_up_in_no_word_of_a_pull_or_of_the_receiver(
    settings: Settings, archive: Orthanc, tmp_path: Path
) -> None:
    """Queries, answers and films name the patient: by DICOMweb, by C-FIND and C-GET, and by C-MOVE to the receiver."""
    folder = tmp_path / "films"
    uids = films(folder)
    archive.upload(folder / name for name in ("good.dcm", "lateral.dcm", "nonsense.dcm"))
    (tmp_path / "password").write_text(PASSWORD)
    by_dicom = f'ae_title = "{AE_TITLE}"\nhost = "127.0.0.1"\nport = {DICOM_PORT}\n'
    by_web = f'dicomweb = "{archive.dicomweb}"\nuser = "{USER}"\npassword_file = "{tmp_path / "password"}"\n'
    (tmp_path / "peers.toml").write_text(
        f'[web]\n{by_web}[get]\n{by_dicom}[move]\n{by_dicom}retrieve = "move"\n'
        f'[lost]\ndicomweb = "{archive.dicomweb}/studies"\n[locked]\ndicomweb = "{archive.dicomweb}"\n'
    )
    seen = {}
    with ExitStack() as stack:
        for name in ("web", "get", "move"):
            home = tmp_path / name
            own = settings.changed(state_folder=home, database_url=f"sqlite:///{home / 'nightread.db'}")
            environment = os.environ | environment_of(own) | {
                "NIGHTREAD_PEERS": str(tmp_path / "peers.toml"),
                "NIGHTREAD_RECEIVE_FREE_MB": "1",
                "NIGHTREAD_LOG_FORMAT": "json",
                "NIGHTREAD_LOG_LEVEL": "debug",
            }  # fmt: skip
            command = [*archive.namespace.words, sys.executable, "-m", "worker.cli"]
            seeded_context(own, champion=settings.checkpoint)
            if name == "move":
                log = stack.enter_context((tmp_path / "receiver.log").open("wb"))
                shown = environment | {"NIGHTREAD_METRICS_PORT": str(METRICS_PORT)}
                receiver = subprocess.Popen([*command, "receive"], env=shown, stdout=log, stderr=log)
                stack.callback(receiver.wait, timeout=60)
                stack.callback(receiver.terminate)
                wait_until(lambda: b"receiver_listening" in (tmp_path / "receiver.log").read_bytes())
            words = [name, "lost", "locked", "--from", "2026-01-01", "--to", "2026-01-01", "--json"]
            ran = subprocess.run(
                [*command, "pull", *words], env=environment, capture_output=True, text=True, check=False
            )
            assert ran.returncode == 2, ran.stderr
            pulled = json.loads(ran.stdout)
            assert [run["fetched"] for run in pulled] == [2, 0, 0], (
                "a good film, and one of which the view is not known"
            )
            seen[name] = ran.stdout + ran.stderr
            assert '"event": "pulled"' in seen[name], "nothing was logged"
        with archive.namespace.entered(), urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics") as page:
            seen["receiver's metrics"] = page.read().decode()
    assert "nightread_received_films_total 2.0" in seen["receiver's metrics"]
    seen["receiver"] = (tmp_path / "receiver.log").read_text()
    assert '"event": "files_received"' in seen["receiver"]
    leaks = {
        place: [word for word in (*WORDS, *uids) if word in what.lower().replace(str(tmp_path).lower(), "")]
        for place, what in seen.items()
    }
    assert {place: words for place, words in leaks.items() if words} == {}


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Where these processes and their children take connections: address and port, or a Unix socket's path."""
    family = [each for process in processes for each in (process, *process.children(recursive=True))]
    inet = {c.laddr for each in family for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    unix = {(c.laddr, 0) for each in family for c in each.net_connections("unix") if c.laddr}
    return {(address.ip, address.port) for address in inet} | unix


def nightread(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def everything_stored(database_url: str) -> str:
    """Every row of every table, as lower-case text."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        rows = [
            str(row)
            for table in inspect(engine).get_table_names()
            for row in connection.execute(text(f"SELECT CAST(t AS text) FROM {table} t"))  # noqa: S608
        ]
    engine.dispose()
    assert any("canaryaccn" in row.lower() for row in rows)
    return "\n".join(rows).lower()


def wait_for_the_night(database_url: str) -> None:
    engine = create_engine(database_url)
    left = text("SELECT count(*) FROM study WHERE state IN ('waiting', 'claimed')")

    def is_over() -> bool:
        with engine.connect() as connection:
            return connection.scalar(left) == 0

    wait_until(is_over, seconds=150)
    engine.dispose()


def test_results_that_are_sent_and_refused_name_nobody_in_logs_and_tables(settings: Settings, tmp_path: Path) -> None:
    """The RIS and the FHIR server quote the patient in their refusals; a result and its film hold the name."""
    context = seeded_context(settings, champion=settings.checkpoint)
    uids = films(tmp_path / "Kanarienvogel_Hansi")
    receive(context, [tmp_path / "Kanarienvogel_Hansi" / "good.dcm"])
    score_at_once(context)
    log = tmp_path / "deliver.log"
    refusal = b"\x0bMSH|^~\\&|RIS\rMSA|AE|{id}|Kanarienvogel^Hansi is unknown\r\x1c\r"
    ris, ehr, pacs = Listener((refusal,)), Server(status=422, answer={"diagnostics": "Kanarienvogel^Hansi"}), Node()
    with ris.listening() as peer, ehr.listening() as url, pacs.listening() as node, log.open("wb") as output:
        peers = tmp_path / "peers.toml"
        peers.write_text(
            f'[ris]\nmllp = "{peer.mllp}"\n[ehr]\nfhir = "{url}"\n'
            f'[pacs]\nae_title = "NODE"\nhost = "127.0.0.1"\nport = {node.port}\n'
        )
        deliver = {"ORU": "ris", "FHIR": "ehr", "SR": "pacs", "QUIET_SECONDS": "0"}
        logs = {"NIGHTREAD_LOG_FORMAT": "json", "NIGHTREAD_LOG_LEVEL": "debug", "NIGHTREAD_PEERS": str(peers)}
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "deliver"],
            env=os.environ
            | {"NIGHTREAD_DATABASE_URL": settings.database_url, "NIGHTREAD_STATE_FOLDER": str(settings.state_folder)}
            | {f"NIGHTREAD_DELIVER_{name}": value for name, value in deliver.items()}
            | logs,
            stdout=output,
            stderr=output,
        )
        try:
            wait_until(lambda: sorted(row.reason or row.state for row in rows(context)) == [
                "ack_error", "bundle_refused", "sent"], log=log)  # fmt: skip
        finally:
            process.terminate()
            process.wait(timeout=60)
    assert "Kanarienvogel" in ris.messages[0], "the message itself names the patient"
    assert str(pacs.got[0].PatientName) == CANARY["PatientName"]
    assert CANARY["PatientID"].encode() in ehr.bodies[0]
    registry = CollectorRegistry()
    registry.register(LedgerCollector(context.engine))
    metrics = generate_latest(registry).decode()
    assert 'nightread_deliveries{kind="oru",state="waiting"} 1.0' in metrics
    logged = log.read_text().lower().replace(str(tmp_path).lower(), "")
    for event in ("delivery_sent", "delivery_put_off"):
        assert f'"event": "{event}"' in logged
    assert [word for word in (*WORDS, *uids) if word in logged + metrics.lower()] == []
    with read_scope(context.engine) as session:
        kept = [str(vars(row)).lower() for row in session.scalars(select(Delivery))]
    assert [word for word in NEVER_STORED if any(word in row for row in kept)] == []
