"""Associations of ours: peers that answer too much, or stop in the middle, and TLS in both directions."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from tests.integration.test_deliver import delivering, rows, scored_film
from tests.support.certificates import Authority
from tests.support.debian import need
from tests.support.namespaces import Namespace, namespace
from worker.context import Context
from worker.delivery import outbox
from worker.dicom_network import association, bounds, pull_dimse
from worker.dicom_network.association import associated
from worker.dicom_network.pull_archive import MoveBrokenOff, Offer
from worker.dicom_network.pull_dimse import DimseArchive
from worker.peers import PeerAway
from worker.setting_peers import Peer
from worker.settings import WrongSettings

ANNOUNCED = 800 * 2**20
PDU = b"\x02\x00" + ANNOUNCED.to_bytes(4, "big")  # an A-ASSOCIATE-AC of that length


@contextmanager
def talker(*pieces: bytes) -> Iterator[tuple[Peer, list[int]]]:
    """A peer that answers an association request with these bytes, and then with zeros where they announce more;
    yields how many of them it got rid of."""
    sent: list[int] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while connection.send(bytes(2**20)) and sum(sent) < 64 * 2**20:
                    sent.append(2**20)
            except OSError:  # it was hung up on
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Peer(name="talker", ae_title="TALKER", host="127.0.0.1", port=server.getsockname()[1]), sent
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_peer_that_announces_800_mb_is_hung_up_on() -> None:
    contexts = [build_context(Verification)]
    with talker(PDU) as (peer, sent), pytest.raises(PeerAway), associated(peer, calling="US", contexts=contexts):
        pass
    assert sum(sent) < 8 * 2**20, "what fits into the buffers of two sockets"


def test_a_peer_that_stops_in_the_middle_of_a_pdu_is_waited_for_no_longer_than_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "PDU_SECONDS", 0.3)
    monkeypatch.setattr(association, "CONNECT_SECONDS", 20.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"\x02\x00\x00"), daemon=True)
        thread.start()
        peer = Peer(name="slow", ae_title="SLOW", host="127.0.0.1", port=server.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(PeerAway), associated(peer, calling="US", contexts=[build_context(Verification)]):
            pass
        assert time.monotonic() - began < 10


def test_an_archive_that_answers_a_query_without_end_is_given_up(
    embedded: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_dimse, "MOST_ANSWERS", 50)

    def found(_event: evt.Event) -> Iterator[tuple[int, Dataset]]:
        number = 0
        while True:
            number += 1
            answer = Dataset()
            answer.QueryRetrieveLevel, answer.StudyInstanceUID = "STUDY", f"1.2.{number}"
            yield 0xFF00, answer

    entity = AE(ae_title="ENDLESS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, found)])
    peer = Peer(name="endless", ae_title="ENDLESS", host="127.0.0.1", port=server.server_address[1])
    try:
        with DimseArchive(peer, embedded.settings) as archive, pytest.raises(PeerAway, match="more than 50"):
            archive.studies(date(2026, 1, 1), "DX")
    finally:
        server.shutdown()


@pytest.mark.parametrize(("breaks_off", "error"), [(False, WrongSettings), (True, MoveBrokenOff)])
def test_an_archive_that_does_not_know_our_receiver_is_told_where_to_set_it(
    embedded: Context, tmp_path: Path, breaks_off: bool, error: type[Exception]
) -> None:
    def move(event: evt.Event) -> Iterator[Any]:
        if breaks_off:
            event.assoc.abort()
        yield None, None  # the destination is unknown: A801

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_MOVE, move)])
    port = server.server_address[1]
    peer = Peer(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=port, retrieve="move")
    try:
        with DimseArchive(peer, embedded.settings) as archive, pytest.raises(error) as raised:
            archive.fetch(Offer("1.2", "1.2.3", "1.2.3.4", Dataset(), whole=False), tmp_path / "film")
    finally:
        server.shutdown()
    for words in ("peer archive", "NIGHTREAD as a destination (NIGHTREAD_RECEIVE_AE_TITLE)", "NIGHTREAD_RECEIVE_PORT"):
        assert words in str(raised.value)


# ------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "hospital")


@pytest.fixture
def inside() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


@contextmanager
def storescp(inside: Namespace, authority: Authority, folder: Path) -> Iterator[None]:
    """DCMTK's storescp, which speaks TLS and asks for our certificate; it listens on all addresses of a namespace."""
    need("storescp", packages="dcmtk")
    key, certificate = authority.certify("archive")
    tls = ["+tls", str(key), str(certificate), "+cf", str(authority.file), "--require-peer-cert"]
    command = [*inside.words, "storescp", *tls, "-aet", "ARCHIVE", "--output-directory", str(folder), "11113"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with inside.entered():
            deadline = time.monotonic() + 20
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", 11113)) == 0:
                        break
                assert time.monotonic() < deadline, "storescp does not listen"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_report_goes_to_an_archive_by_tls_with_our_certificate_and_not_without(
    embedded: Context, inside: Namespace, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(association, "CONNECT_SECONDS", 3.0)  # storescp waits for the plain one's TLS as long as we do
    (folder := tmp_path / "archive").mkdir()
    key, certificate = authority.certify("nightread")
    address = {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": 11113, "tls": True}
    ours = {"certificate_file": certificate, "key_file": key}
    peers = (
        Peer(name="whole", **address, **ours, ca_file=authority.file),
        Peer(name="stranger", **address, ca_file=authority.file),
        Peer(name="believer", **address, **ours),
        Peer(name="plain", **address | {"tls": False}),
    )
    context = delivering(embedded, *peers)
    scored_film(context)
    outbox.publish(context)
    with storescp(inside, authority, folder), inside.entered():
        outbox.deliver_due(context)
    assert {row.destination: row.reason or row.state for row in rows(context)} == {
        "whole": "sent",
        "stranger": "destination_away",
        "believer": "destination_away",
        "plain": "destination_away",
    }
    assert len(list(folder.iterdir())) == 1
