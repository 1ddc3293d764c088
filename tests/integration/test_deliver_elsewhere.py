"""Results to what is no archive by C-STORE: HL7 over MLLP, FHIR and STOW-RS over HTTP, pictures."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from fhir.resources.R4B.bundle import Bundle
from pydicom.uid import Comprehensive3DSRStorage

from tests.integration.test_deliver import delivering, rows, scored_film
from tests.support.certificates import Authority
from tests.support.dicom_files import make_film
from tests.support.orthanc import PASSWORD, USER, Orthanc
from worker.context import Context
from worker.delivery import dicom, hl7, http, outbox
from worker.delivery.errors import DeliveryError, DestinationAway, Refused
from worker.doctor import examine_role
from worker.setting_peers import Peer


@dataclass
class Listener:
    """A receiver of HL7 messages that answers with `pieces`, one after the other; {id} is the message's."""

    pieces: Sequence[bytes] = (b"\x0bMSH|^~\\&|RIS\rMSA|AA|{id}\r\x1c\r",)
    messages: list[str] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    @contextmanager
    def listening(self) -> Iterator[Peer]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=self._serve, args=(server,), daemon=True)
            thread.start()
            scheme = "mllp" if self.tls is None else "mllps"
            yield Peer(name="ris", mllp=f"{scheme}://127.0.0.1:{server.getsockname()[1]}/RIS/HOSPITAL")
            server.shutdown(socket.SHUT_RDWR)  # also ends the wait for a connection

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
                if self.tls is not None:
                    connection = self.tls.wrap_socket(connection, server_side=True)
            except ssl.SSLError:  # a sender that it does not trust, or that does not trust it
                continue
            except OSError:  # it was closed
                return
            with connection:
                received = b""
                while not received.endswith(b"\x1c\r") and (piece := connection.recv(65536)):
                    received += piece
                if not received:  # somebody only looks whether we are there
                    continue
                self.messages.append(received.strip(b"\x0b\x1c\r").decode())
                control_id = self.messages[-1].split("|")[9].encode()
                for piece in self.pieces:
                    connection.sendall(piece.replace(b"{id}", control_id))
                    threading.Event().wait(0.05)  # so that the pieces come apart
                if not self.pieces:
                    connection.recv(1)  # silence, until the sender gives up


def delivered(context: Context, peer: Peer, **deliver: Any) -> Context:
    """A film, scored, published and sent to this peer as `deliver` says."""
    context = delivering(context, **{"sr": ()} | deliver)
    context = Context(context.settings.changed(peers=(peer,)))
    scored_film(context, PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100")
    outbox.publish(context)
    outbox.deliver_due(context)
    return context


@pytest.mark.parametrize(
    "pieces",
    [
        (b"\x0bMSH|^~\\&|RIS\rMSA|AA|{id}\r\x1c\r",),
        (b"\x0b", b"MSH|^~\\&|RIS\rMSA|A", b"A|{id}\r\x1c", b"\r"),
        (b"noise\x0bMSH|^~\\&|R\xc3\xbcS\rMSA|AA|{id}\r\x1c\rmore",),
        (b"\x0bMSH|^~\\&|RIS\rMSA|AA|{id}|\xc4\xd6\r\x1c",),  # Latin-1, and half an end
    ],
)
def test_a_message_is_sent_once_and_its_acknowledgement_may_come_in_pieces(embedded: Context, pieces) -> None:
    listener = Listener(pieces)
    with listener.listening() as peer:
        context = delivered(embedded, peer, oru=("ris",))
        assert outbox.deliver_due(context) == 0
    assert [(row.kind, row.state) for row in rows(context)] == [("oru", "sent")]
    (message,) = listener.messages
    assert "Müller^Jürgen" in message
    assert message.startswith("MSH|^~\\&|NIGHTREAD||RIS|HOSPITAL|")


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((b"\x0bMSH|^~\\&|RIS\rMSA|AE|{id}\r\x1c\r",), "ack_error"),
        ((b"\x0bMSH|^~\\&|RIS\rMSA|AR|{id}\r\x1c\r",), "ack_rejected"),
        ((b"\x0bHello\r\x1c\r",), "ack_unreadable"),
        ((b"\x0bMSH|^~\\&|RIS\rMSA|AA|another\r\x1c\r",), "ack_unreadable"),
        ((b"\x0bMSH|^~\\&|RIS\rMSA|AA|{id}",), "destination_away"),  # cut off
        ((), "destination_away"),  # silence
    ],
)
def test_a_message_that_is_not_accepted_waits_with_its_reason(embedded: Context, monkeypatch, pieces, reason) -> None:
    monkeypatch.setattr(hl7, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(hl7, "CONNECT_SECONDS", 1.0)
    with Listener(pieces).listening() as peer:
        context = delivered(embedded, peer, oru=("ris",))
    assert [(row.state, row.reason) for row in rows(context)] == [("waiting", reason)]


def test_a_message_goes_by_tls_with_our_certificate_to_a_ris_that_is_verified(
    embedded: Context, tmp_path: Path
) -> None:
    authority, key, certificate = trusted(tmp_path)
    asking = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    ris_key, ris_certificate = authority.certify("ris")
    asking.load_cert_chain(ris_certificate, ris_key)
    asking.verify_mode = ssl.CERT_REQUIRED
    listener = Listener(tls=asking)
    with listener.listening() as ris:
        files = {"ca_file": authority.file, "certificate_file": certificate, "key_file": key}
        peers = {
            "ris": files,
            "stranger": {"ca_file": authority.file},
            "believer": {"certificate_file": certificate, "key_file": key},
        }
        context = delivering(embedded, sr=(), oru=tuple(peers))
        named = tuple(ris.model_copy(update={"name": name, **entries}) for name, entries in peers.items())
        context = Context(context.settings.changed(peers=named))
        scored_film(context)
        outbox.publish(context)
        outbox.deliver_due(context)
        (result,) = examine_role(context, "delivery")
        assert result.text.startswith("no answer from stranger, believer:")
    away = "destination_away"
    assert {row.destination: row.reason or row.state for row in rows(context)} == {
        "ris": "sent", "stranger": away, "believer": away}  # fmt: skip
    assert len(listener.messages) == 1


def trusted(folder: Path) -> tuple[Authority, Path, Path]:
    """An authority, and the key and certificate that it gave us."""
    authority = Authority(folder, "hospital")
    return authority, *authority.certify("nightread")


def test_a_ris_that_is_away_is_waited_for(embedded: Context) -> None:
    with Listener().listening() as peer:
        pass
    context = delivered(embedded, peer, oru=("ris",))
    assert [(row.state, row.reason) for row in rows(context)] == [("waiting", "destination_away")]


@dataclass
class Server:
    """An HTTP server that answers every POST with one status, and keeps what came."""

    status: int = 200
    answer: Any = None
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[str]:
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kept.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                kept.headers.append(dict(self.headers))
                content = json.dumps(kept.answer).encode()
                self.send_response(kept.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


def test_a_bundle_is_posted_with_its_token_and_is_valid(embedded: Context, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    server = Server()
    with server.listening() as url:
        peer = Peer(name="ehr", fhir=f"{url}/r4", token_file=tmp_path / "token")
        context = delivered(embedded, peer, fhir=("ehr",))
    assert [(row.kind, row.state) for row in rows(context)] == [("fhir", "sent")]
    assert Bundle.model_validate_json(server.bodies[0]).type == "transaction"
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert server.headers[0]["Content-Type"] == "application/fhir+json"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (422, "bundle_refused"),
        (500, "bundle_refused"),
        (302, "bundle_refused"),
        (401, "credentials_refused"),
        (503, "destination_away"),
    ],
)  # fmt: skip
def test_a_servers_status_decides_what_follows(embedded: Context, status: int, reason: str) -> None:
    with Server(status=status).listening() as url:
        context = delivered(embedded, Peer(name="ehr", fhir=url), fhir=("ehr",))
    assert [(row.state, row.reason) for row in rows(context)] == [("waiting", reason)]


@pytest.mark.parametrize(
    ("limit", "reason"), [("MOST_ANSWER_BYTES", "bundle_refused"), ("MOST_SECONDS", "destination_away")]
)
def test_an_answer_is_read_within_bounds(embedded: Context, monkeypatch, limit: str, reason: str) -> None:
    monkeypatch.setattr(http, limit, -1)
    with Server(answer={}).listening() as url:
        context = delivered(embedded, Peer(name="ehr", fhir=url), fhir=("ehr",))
    assert [(row.state, row.reason) for row in rows(context)] == [("waiting", reason)]


def test_a_token_that_cannot_be_read_is_named_as_the_reason(embedded: Context, tmp_path: Path) -> None:
    peer = Peer(name="ehr", fhir="http://127.0.0.1:9", token_file=tmp_path / "nowhere")
    context = delivered(embedded, peer, fhir=("ehr",))
    assert [(row.state, row.reason) for row in rows(context)] == [("waiting", "peer_unusable")]


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({}, "sent"),
        ({"00081198": {"vr": "SQ"}}, "sent"),
        ({"00081198": {"vr": "SQ", "Value": []}}, "sent"),
        ({"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]}}, "waiting"),
    ],
)
def test_a_web_archive_that_names_no_failure_has_stored(embedded: Context, answer: Any, state: str) -> None:
    server = Server(answer=answer)
    with server.listening() as url:
        context = delivered(embedded, Peer(name="vna", dicomweb=f"{url}/dicom-web"), sr=("vna",))
    assert [row.state for row in rows(context)] == [state]
    assert b"DICM" in server.bodies[0]


def failed(*reasons: int) -> dict[str, Any]:
    """An archive's answer that names an object for each of these reasons."""
    items = [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]
    return {"00081198": {"vr": "SQ", "Value": items}}


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (202, {}, None),
        (202, failed(0xA900), "object_refused"),
        (409, failed(0x0111), None),  # held already
        (409, failed(0x0111, 0xA900), "object_refused"),
        (409, None, "object_refused"),
        (409, {"00081198": {"Value": [{"00081197": {"Value": [{}]}}]}}, "object_refused"),
        (413, None, "object_refused"),
        (503, None, "destination_away"),
    ],
)
def test_a_web_archives_status_decides_what_follows(
    embedded: Context, status: int, answer: Any, reason: str | None
) -> None:
    with Server(status=status, answer=answer).listening() as url:
        peer, said = Peer(name="vna", dicomweb=f"{url}/dicom-web"), None
        try:
            dicom.store(embedded, make_film(), peer)
        except DeliveryError as error:
            said = error.reason
    assert said == reason


def test_an_orthanc_takes_reports_by_stow_once(embedded: Context, archive: Orthanc, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    peer = Peer(name="vna", dicomweb=archive.dicomweb, user=USER, password_file=tmp_path / "password")
    with archive.namespace.entered():
        context = delivered(embedded, peer, sr=("vna",))
    (row,) = rows(context)
    assert row.state == "sent"
    (found,) = archive.instances(SOPClassUID=Comprehensive3DSRStorage)
    report = pydicom.dcmread(BytesIO(archive.file(found["ID"])))
    assert (report.SOPInstanceUID, str(report.PatientName)) == (row.object_uid, "Müller^Jürgen")


def test_silence_while_connecting_is_no_error_of_the_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
    with pytest.raises(DestinationAway):
        hl7.send_message(Peer(name="ris", mllp=f"mllp://127.0.0.1:{port}"), b"MSH|", control_id="1")


def test_an_endless_answer_is_cut_off() -> None:
    with Listener((b"\x0b" + b"x" * 70_000,)).listening() as peer, pytest.raises((DestinationAway, Refused)):
        hl7.send_message(peer, b"MSH|^~\\&|||||||1|1|P", control_id="1")
