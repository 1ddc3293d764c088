"""The DICOM receiver, against pynetdicom's own SCU, raw sockets and, where it is installed, DCMTK's storescu."""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from threading import Event, Timer
from typing import Any
from unittest.mock import Mock

import psutil
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from db.lookup import path_of
from db.models import Instance, InstanceVersion, RejectedFile, Study, StudyPriority
from db.session import read_scope, session_scope
from db.totals import read_totals
from tests.support.certificates import Authority
from tests.support.contexts import seeded_context
from tests.support.debian import need
from tests.support.dicom_files import data_set_digest, make_film, save, texture
from training.imaging.decoders import DECODERS
from worker.context import Context
from worker.dicom_network import association as outward
from worker.dicom_network import pace
from worker.dicom_network.echo import answers
from worker.dicom_network.inbox import ABANDONED_SECONDS
from worker.dicom_network.prune_films import prunable_films, prune_films
from worker.dicom_network.storage_classes import TRANSFER_SYNTAXES
from worker.dicom_network.storage_scp import Receiver, listening
from worker.intake.receive import Received, receive
from worker.monitoring.prometheus import ReceiveMetrics
from worker.peers import PeerAway
from worker.retention import Pruning, prune
from worker.setting_peers import Peer

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SMALL = {"free_mb": 1, "port": 0}


class Site:
    """A receiver and what it holds."""

    def __init__(self, context: Context, receiver: Receiver, port: int) -> None:
        self.context, self.receiver, self.port = context, receiver, port

    def files(self) -> list[Path]:
        """Every file below the receiver's folder, half films included."""
        return sorted(path for path in self.context.receive_folder.rglob("*") if path.is_file())

    def refusals(self) -> dict[str, float]:
        """Refusals by reason."""
        samples = [each for family in self.receiver.metrics.registry.collect() for each in family.samples]
        return {
            each.labels["reason"]: each.value for each in samples if each.name == "nightread_receiver_refusals_total"
        }

    def refused(self) -> list[str]:
        """Reasons of the files that could not become an instance."""
        with read_scope(self.context.engine) as session:
            return list(session.scalars(select(RejectedFile.reason)))

    def is_tidy(self) -> bool:
        """Whether the ledger refers to every file, and every film that it holds or held is on disk."""
        with read_scope(self.context.engine) as session:
            films = {
                Path(path)
                for column in (Instance.path, InstanceVersion.path)
                for path in session.scalars(select(column))
            }
            rejected = {Path(path) for path in session.scalars(select(RejectedFile.path))}
        return films <= set(self.files()) <= films | rejected

    def received(self) -> int:
        """Studies in the ledger."""
        with read_scope(self.context.engine) as session:
            totals = read_totals(session)
        assert totals.balance
        return totals.received


@contextmanager
def receiving(context: Context, **receive: object) -> Iterator[Site]:
    """A receiver in this process."""
    settings = context.settings.changed(receive=SMALL | receive)
    context = Context(settings)
    receiver = Receiver.of(context, metrics=ReceiveMetrics())
    with listening(receiver) as server:
        yield Site(context, receiver, server.server_address[1])


@contextmanager
def associated(
    port: int, *, title: str = "MODALITY", called: str = "NIGHTREAD", syntaxes: list[str] | None = None, tls=None
):
    """An association with the receiver, ended with the block."""
    entity = AE(ae_title=title)
    entity.add_requested_context(DigitalXRayImageStorageForPresentation, syntaxes or [ExplicitVRLittleEndian])
    entity.add_requested_context(CTImageStorage)
    entity.add_requested_context(Verification)
    entity.add_requested_context(StorageCommitmentPushModel)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
    association = entity.associate("127.0.0.1", port, ae_title=called, tls_args=(tls, "localhost") if tls else None)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def sent(port: int, film: Dataset, **options) -> int | None:
    """The status of one film's C-STORE; None where the association ended without one."""
    syntax = film.file_meta.TransferSyntaxUID
    with associated(port, syntaxes=[syntax], **options) as association:
        assert association.is_established
        return getattr(association.send_c_store(film), "Status", None)


def test_every_transfer_syntax_that_is_decoded_is_accepted() -> None:
    assert {str(syntax) for syntax in DECODERS} <= {str(syntax) for syntax in TRANSFER_SYNTAXES}


def test_echo_is_answered(embedded: Context) -> None:
    with receiving(embedded) as site, associated(site.port) as association:
        assert association.send_c_echo().Status == 0x0000


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless])
def test_a_film_is_kept_byte_for_byte_and_registered(context: Context, tmp_path: Path, syntax: str) -> None:
    film = make_film(tmp_path / "sent.dcm", transfer_syntax=syntax)
    with receiving(context) as site:
        assert sent(site.port, pydicom.dcmread(tmp_path / "sent.dcm")) == 0x0000
        (kept,) = site.files()
        assert data_set_digest(kept) == data_set_digest(tmp_path / "sent.dcm")
        assert str(film.SOPInstanceUID) not in str(kept)
        assert site.received() == 1
        with read_scope(site.context.engine) as session:
            assert path_of(session, film.SOPInstanceUID) == str(kept)


def test_a_film_is_decoded_without_copies_in_any_fragments(embedded: Context, monkeypatch) -> None:
    """Where a new pynetdicom no longer calls what pace.py replaces, each film costs half as much again."""
    monkeypatch.setattr(pace, "p_data", decoded := Mock(wraps=pace.p_data))
    film = make_film(pixels=texture(256, 240, seed=1))
    with receiving(embedded, pdu_kb=16) as site:
        assert sent(site.port, film) == 0x0000
        assert decoded.call_count > len(film.PixelData) / 2**14
        (kept,) = site.files()
        assert pydicom.dcmread(kept).PixelData == film.PixelData


def test_an_association_without_messages_sleeps(embedded: Context, monkeypatch) -> None:
    monkeypatch.setattr(pace, "_next_message", looked := Mock(wraps=pace._next_message))
    with receiving(embedded) as site, associated(site.port) as association:
        time.sleep(0.5)
        assert 5 < looked.call_count <= 0.5 / pace.WAIT_SECONDS + 5
        assert association.send_c_echo().Status == 0x0000


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (struct.pack(">LB", 2**31, 1) + bytes(9), None),  # they do not fill the PDU
        (struct.pack(">LB", 0, 1), None),
        (b"\0\0", None),
        (struct.pack(">LB", 1, 1), "message_unreadable"),  # an empty fragment
        (struct.pack(">LBB", 42, 1, 3) + b"\xff" * 40, "message_unreadable"),  # no command set
    ],
)
def test_a_pdu_that_cannot_be_read_ends_its_association_alone(
    embedded: Context, capfd, items: bytes, reason: str | None
) -> None:
    with receiving(embedded) as site, associated(site.port) as association:
        association.dul.socket.socket.sendall(struct.pack(">BBL", 0x04, 0, len(items)) + items)
        wait_for(lambda: not association.is_established)
        assert association.is_aborted
        assert site.refusals() == ({reason: 1} if reason else {})
        assert sent(site.port, make_film()) == 0x0000
    assert "Traceback" not in capfd.readouterr().err


def test_the_same_film_twice_is_one_file(embedded: Context) -> None:
    film = make_film()
    with receiving(embedded) as site:
        assert [sent(site.port, film), sent(site.port, film)] == [0x0000, 0x0000]
        assert (len(site.files()), site.received()) == (1, 1)


def test_other_pixels_under_a_uid_that_is_held_are_refused_and_both_files_are_kept(embedded: Context) -> None:
    film = make_film()
    with receiving(embedded) as site:
        assert sent(site.port, film) == 0x0000
        (held,) = site.files()
        film.PixelData = texture(seed=1).tobytes()
        assert sent(site.port, film) == 0xC000
        assert (len(site.files()), site.received(), site.refused()) == (2, 1, ["uid_taken"])
        with read_scope(site.context.engine) as session:
            assert path_of(session, film.SOPInstanceUID) == str(held)
        assert site.is_tidy()


def test_a_refused_film_that_is_sent_again_and_again_is_one_file_and_one_entry(embedded: Context) -> None:
    film = make_film()
    with receiving(embedded) as site:
        assert sent(site.port, film) == 0x0000
        film.PixelData = texture(seed=1).tobytes()
        assert [sent(site.port, film) for _ in range(3)] == [0xC000] * 3
        assert (len(site.files()), site.refused()) == (2, ["uid_taken"])
        assert site.is_tidy()
        film.PixelData = texture(seed=2).tobytes()
        assert sent(site.port, film) == 0xC000
        assert len(site.files()) == 3, "another film is another file"


def settled(context: Context, *, read: bool) -> None:
    """Every study is scored, and read or not; it was received and its film written long ago."""
    with session_scope(context.engine) as session:
        session.execute(update(Instance).values(state="scored"))
        session.execute(update(Study).values(state="scored", received_at=LONG_AGO, settled_at=LONG_AGO))
        session.execute(update(RejectedFile).values(received_at=LONG_AGO))
        session.execute(update(StudyPriority).values(read_at=LONG_AGO if read else None))
    for path in context.receive_folder.rglob("*"):
        os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))


def test_films_of_read_studies_go_by_age_and_what_was_pointed_at_stays(context: Context, tmp_path: Path) -> None:
    film, pruning = make_film(), Pruning(LONG_AGO + timedelta(days=1))
    pointed_at = tmp_path / "mine.dcm"
    make_film(pointed_at)
    with receiving(context) as site:
        assert sent(site.port, film) == 0x0000
        film.PixelData = texture(seed=1).tobytes()
        assert sent(site.port, film) == 0xC000
        receive(context, [pointed_at])
        of_the_user = context.receive_folder / "2020-01-01" / "notes.dcm"
        of_the_user.parent.mkdir()
        of_the_user.write_text("not ours")
        assert prunable_films(context, pruning).paths == [], "nothing is old"
        settled(context, read=False)
        assert [path.parent.name for path in prunable_films(context, pruning).paths] == ["refused"], (
            "nobody has read it"
        )
        settled(context, read=True)
        assert len(prunable_films(context, pruning).paths) == 2
        assert len(prunable_films(context, pruning, results_stay=True).paths) == 1
        assert len(site.files()) == 3, "so far it was only counted"
        prune(context.engine, pruning, by="test")
        assert len(prune_films(context, pruning, by="test").paths) == 2
        assert site.files() == [of_the_user]
        assert pointed_at.exists()
        assert site.received() == 0


def test_films_go_and_their_results_stay_where_that_is_asked_for(embedded: Context) -> None:
    film, pruning = make_film(), Pruning(LONG_AGO + timedelta(days=1))
    with receiving(embedded) as site:
        assert sent(site.port, film) == 0x0000
        settled(embedded, read=True)
        assert len(prune_films(embedded, pruning, by="test", results_stay=True).paths) == 1
        assert (site.files(), site.received()) == ([], 1)
        assert sent(site.port, film) == 0x0000, "it is taken again"
        assert len(site.files()) == 1
        assert site.is_tidy()


def quarantined(site: Site) -> None:
    """Put every film into quarantine, as one that cannot be decoded."""
    with session_scope(site.context.engine) as session:
        session.execute(update(Instance).values(state="quarantined", reason="truncated"))
        session.execute(update(Study).values(state="quarantined", reason="truncated"))


def test_a_copy_that_differs_takes_the_place_of_a_film_in_quarantine(embedded: Context) -> None:
    film = make_film()
    with receiving(embedded) as site:
        assert sent(site.port, film) == 0x0000
        (damaged,) = site.files()
        quarantined(site)
        film.PixelData = texture(seed=1).tobytes()
        assert sent(site.port, film) == 0x0000
        assert (len(site.files()), site.received(), site.refused()) == (2, 1, [])
        with read_scope(site.context.engine) as session:
            assert path_of(session, film.SOPInstanceUID) != str(damaged)
        assert site.is_tidy()
        assert site.receiver.keeper.register_leftovers() == 0, "a film that was replaced is no leftover"


def test_a_copy_that_is_replaced_before_its_sender_hears_is_kept_on_record(embedded: Context, monkeypatch) -> None:
    film, better = make_film(), make_film(pixels=texture(seed=2), bits=12)
    better.SOPInstanceUID, better.StudyInstanceUID = film.SOPInstanceUID, film.StudyInstanceUID
    better.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    with receiving(embedded) as site:
        assert sent(site.port, film) == 0x0000
        quarantined(site)

        def receive_and_replace(*arguments: Any, **options: Any) -> Received:
            outcome = receive(*arguments, **options)
            quarantined(site)
            save(better, embedded.receive_folder / "better.dcm")
            assert receive(embedded, [embedded.receive_folder / "better.dcm"]).changed == 1
            return outcome

        monkeypatch.setattr("worker.dicom_network.keeper.receive", receive_and_replace)
        film.PixelData = texture(seed=1).tobytes()
        assert sent(site.port, film) == 0x0000
        assert len(site.files()) == 3
        assert site.is_tidy()


def test_a_film_of_a_second_patient_under_one_study_uid_is_kept_and_registered(embedded: Context) -> None:
    film = make_film()
    other = make_film(StudyInstanceUID=film.StudyInstanceUID, PatientID="PHANTOM-2")
    with receiving(embedded) as site:
        assert [sent(site.port, film), sent(site.port, other)] == [0x0000, 0x0000]
        assert (len(site.files()), site.received(), site.refused()) == (2, 1, [])
        assert site.is_tidy()


def test_a_film_whose_header_raises_is_refused_and_kept_for_a_person(embedded: Context, monkeypatch) -> None:
    def raises(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr("worker.intake.receive.arrival_of", raises)
    with receiving(embedded) as site:
        assert sent(site.port, make_film()) == 0xC000
        assert (len(site.files()), site.received(), site.refused()) == (1, 0, ["header_raised"])
        assert site.is_tidy()


def store_request(film: Dataset, association: Association) -> tuple[C_STORE, int]:
    """The C-STORE request of a film, and the id of its presentation context."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 0x0002
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = film.SOPClassUID, film.SOPInstanceUID
    request.DataSet = BytesIO(encode(film, is_implicit_vr=False, is_little_endian=True))
    contexts = {each.abstract_syntax: each.context_id for each in association.accepted_contexts}
    return request, contexts[film.SOPClassUID]


def test_a_film_with_another_uid_than_its_request_is_refused_and_not_registered(embedded: Context) -> None:
    film = make_film()
    film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    with receiving(embedded) as site, associated(site.port) as association:
        request, context_id = store_request(film, association)
        request.AffectedSOPInstanceUID = generate_uid()
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, context_id)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer.Status == 0xC000
        assert (site.received(), site.refused()) == (0, ["sop_uid_differs"])
        assert site.is_tidy()


@pytest.mark.parametrize("registered", [True, False])
def test_a_film_whose_registration_is_unknown_stays_until_the_database_says(
    registered: bool, embedded: Context, monkeypatch
) -> None:
    """The database went away: before the film was committed, or after it, and before it said so."""
    film = make_film()

    def receive_and_lose(*arguments: Any, **options: Any) -> Received:
        if registered:
            receive(*arguments, **options)
        raise OperationalError("", {}, Exception())

    with receiving(embedded) as site:
        with monkeypatch.context() as patched:
            patched.setattr("worker.dicom_network.keeper.receive", receive_and_lose)
            assert sent(site.port, film) == 0xA700
        (kept,) = site.files()
        site.receiver.keeper.settle()
        assert site.files() == ([kept] if registered else [])
        assert site.is_tidy()
        assert sent(site.port, film) == 0x0000
        assert (len(site.files()), site.received()) == (1, 1)
        assert site.is_tidy()


def test_another_called_title_calling_title_or_network_is_rejected(embedded: Context) -> None:
    with receiving(embedded, calling_ae_titles=("MODALITY",)) as site:
        wrong: tuple[dict[str, Any], ...] = {"called": "OTHER"}, {"title": "STRANGER"}
        for options in wrong:
            with associated(site.port, **options) as association:
                assert association.is_rejected
        assert sent(site.port, make_film()) == 0x0000
    with receiving(embedded, networks=("10.0.0.0/8",)) as site:
        with associated(site.port) as association:
            assert not association.is_established
        assert site.refusals() == {"network_not_allowed": 1}


def test_over_tls_only_senders_whose_certificate_the_authority_signed_get_in(embedded: Context, tmp_path: Path) -> None:
    """With DCMTK's storescu, which is another's TLS."""
    need("storescu", packages="dcmtk")
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    key, certificate = ours.certify("receiver")
    make_film(tmp_path / "film.dcm")
    files = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": ours.file}
    with receiving(embedded, **files) as site:
        command = [
            "storescu",
            "-v",
            "-aet",
            "MODALITY",
            "-aec",
            "NIGHTREAD",
            "--timeout",
            "5",
            "--socket-timeout",
            "10",
        ]

        def store(*options: str | Path) -> int:
            words = [*command, *options, "localhost", str(site.port), tmp_path / "film.dcm"]
            return subprocess.run(words, capture_output=True).returncode

        assert store() != 0, "no TLS"
        assert store("+tla", "+cf", ours.file) != 0, "no certificate"
        assert store("+tls", *others.certify("stranger"), "+cf", ours.file) != 0, "another authority's"
        assert (site.files(), site.received()) == ([], 0)
        assert site.refusals()["tls_failed"] >= 2
        assert store("+tls", *ours.certify("modality"), "+cf", ours.file) == 0
        assert (len(site.files()), site.received()) == (1, 1)
        key, certificate = ours.certify("peer")
        peer = Peer(
            name="receiver", ae_title="NIGHTREAD", host="localhost", port=site.port,
            tls=True, ca_file=ours.file, certificate_file=certificate, key_file=key,
        )  # fmt: skip
        assert answers(peer, calling="MODALITY")
        for wrong in ({"ca_file": others.file}, {"certificate_file": None, "key_file": None}, {"tls": False}):
            with pytest.raises(PeerAway):
                answers(peer.model_copy(update=wrong), calling="MODALITY")


def test_an_association_of_ours_lets_no_small_message_wait(embedded: Context) -> None:
    with receiving(embedded) as site:
        peer = Peer(name="receiver", ae_title="NIGHTREAD", host="127.0.0.1", port=site.port)
        with outward.associated(peer, calling="MODALITY", contexts=[build_context(Verification)]) as association:
            assert association.dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_uid_that_is_a_path_is_refused_and_nothing_is_written(embedded: Context) -> None:
    film = make_film()
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = UID("../../x")
    with receiving(embedded) as site:
        assert sent(site.port, film) != 0x0000
        assert (site.files(), site.received()) == ([], 0)


def test_another_storage_class_is_accepted_where_the_setting_names_it(embedded: Context) -> None:
    film = make_film(SOPClassUID=CTImageStorage)
    film.file_meta.MediaStorageSOPClassUID = CTImageStorage
    with receiving(embedded) as site, associated(site.port) as association:
        assert CTImageStorage not in {context.abstract_syntax for context in association.accepted_contexts}
    with receiving(embedded, sop_classes=(CTImageStorage,)) as site:
        assert sent(site.port, film) == 0x0000


def test_a_disk_without_room_refuses_films_and_keeps_the_association(embedded: Context) -> None:
    with receiving(embedded, free_mb=10**9) as site, associated(site.port) as association:
        assert [association.send_c_store(make_film()).Status for _ in range(2)] == [0xA700, 0xA700]
        assert association.is_established
        assert site.received() == 0
    assert site.files() == []


def test_a_disk_that_fills_up_while_a_film_comes_refuses_it_and_keeps_the_association(
    embedded: Context, monkeypatch, tmp_path: Path
) -> None:
    film = make_film(pixels=texture(256, 240, seed=1))
    with receiving(embedded) as site, associated(site.port) as association:
        with monkeypatch.context() as patched:
            half = tmp_path / "half.dcm"
            half.touch()
            patched.setattr(tempfile, "mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(half)))
            assert association.send_c_store(film).Status == 0xA700
            assert not half.exists()
            patched.setattr(tempfile, "mkstemp", Mock(side_effect=OSError(errno.ENOSPC, "no inode left")))
            assert association.send_c_store(film).Status == 0xA700
        assert (site.files(), site.received(), site.refusals()) == ([], 0, {"disk_full": 2})
        assert association.send_c_store(film).Status == 0x0000


def test_a_database_that_is_away_refuses_films_until_it_is_back(settings, own_postgres) -> None:
    settings = settings.changed(database_url=own_postgres.url)
    context = seeded_context(settings, champion=settings.checkpoint)
    with receiving(context) as site, associated(site.port) as association:
        assert association.send_c_store(make_film()).Status == 0x0000
        own_postgres.stop()
        assert association.send_c_store(make_film()).Status == 0xA700
        own_postgres.start()
        assert association.is_established
        assert association.send_c_store(make_film()).Status == 0x0000
        assert (site.received(), len(site.files())) == (2, 2)


def test_a_pdu_of_800_mb_costs_its_sender_the_connection_and_no_memory(embedded: Context) -> None:
    with receiving(embedded) as site:
        before = psutil.Process().memory_info().rss
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as peer:
            peer.sendall(struct.pack(">BBL", 0x01, 0, 800_000_000))
            peer.settimeout(20)
            assert bytes_taken(peer, most=800_000_000) < 32 * 2**20
        assert psutil.Process().memory_info().rss - before < 32 * 2**20
        assert sent(site.port, make_film()) == 0x0000


def bytes_taken(peer: socket.socket, *, most: int) -> int:
    """How many bytes the other end takes before it closes the connection."""
    taken, block = 0, bytes(2**20)
    with suppress(OSError):
        while taken < most:
            peer.sendall(block)
            taken += len(block)
    return taken


def test_an_endless_film_is_cut_off_and_its_half_removed(embedded: Context) -> None:
    film = make_film(pixels=None, ImageComments="x")
    film.PixelData = bytes(3 * 2**20)
    context = Context(embedded.settings.changed(max_file_mb=1))
    with receiving(context) as site:
        assert sent(site.port, film) is None
        wait_for(lambda: site.files() == [])
        assert (site.received(), site.refusals()) == (0, {"film_broken_off": 1})


def test_a_sender_that_ends_in_the_middle_of_a_film_leaves_nothing(embedded: Context) -> None:
    message = C_STORE_RQ()
    with receiving(embedded) as site, associated(site.port) as association:
        request, context_id = store_request(make_film(), association)
        message.primitive_to_message(request)
        *fragments, _last = message.encode_msg(context_id, 4096)
        for fragment in fragments:
            association.dul.send_pdu(fragment)
        wait_for(lambda: len(site.files()) == 1)
        association.abort()
        wait_for(lambda: site.files() == [])
        assert (site.received(), site.refusals()) == (0, {"film_broken_off": 1})


def test_silent_peers_keep_nobody_out(embedded: Context) -> None:
    with receiving(embedded) as site:
        silent = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(100)]
        try:
            began = time.monotonic()
            assert sent(site.port, make_film()) == 0x0000
            assert time.monotonic() - began < 5
        finally:
            for peer in silent:
                peer.close()


def test_connections_of_one_address_and_associations_of_one_title_have_a_limit(embedded: Context) -> None:
    with receiving(embedded, associations_per_ae=1) as site, associated(site.port):
        with associated(site.port) as second:
            assert second.is_rejected
        with associated(site.port, title="ANOTHER") as other:
            assert other.is_established
        assert site.refusals()["too_many_associations"] == 1
    with receiving(embedded, connections_per_address=1) as site, associated(site.port), associated(site.port) as second:
        assert not second.is_established


def test_a_film_that_was_kept_before_a_kill_is_registered_at_the_next_start(embedded: Context, tmp_path: Path) -> None:
    make_film(tmp_path / "arrived.dcm")
    with receiving(embedded) as site:
        kept = site.receiver.keeper.inbox.keep(tmp_path / "arrived.dcm")
        assert site.received() == 0
        copy = site.receiver.keeper.inbox.keep(tmp_path / "arrived.dcm")
    with receiving(embedded) as site:
        assert site.files() in ([kept], [copy]), "a second copy goes"
        assert site.received() == 1
        assert site.receiver.keeper.register_leftovers() == 0


def test_a_receiver_that_starts_leaves_the_films_that_another_one_is_receiving(embedded: Context) -> None:
    """Two of them share one folder on a cluster, and while a new version takes over."""
    with receiving(embedded) as site:
        arriving = site.context.receive_folder / "arriving"
        for name, age_seconds in (("on_its_way", 0), ("given_up", ABANDONED_SECONDS)):
            (arriving / name).write_bytes(b"DICM")
            os.utime(arriving / name, (0, time.time() - age_seconds))
        with receiving(embedded):
            assert [path.name for path in arriving.iterdir()] == ["on_its_way"]


def test_every_film_that_was_acknowledged_before_a_kill_is_on_disk_and_in_the_ledger(
    embedded: Context, tmp_path: Path
) -> None:
    acknowledged: list[str] = []
    film = make_film(pixels=texture(2000, 2000))
    for films in (1, 2, 3):
        with receiver_process(embedded, tmp_path) as (process, port), associated(port) as association:
            killer = Timer(0.02, process.kill)
            for _ in range(films + 100):
                film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                with suppress(RuntimeError):  # the association is gone
                    if getattr(association.send_c_store(film), "Status", None) == 0x0000:
                        acknowledged.append(str(film.SOPInstanceUID))
                        films -= 1
                        if films == 0:
                            killer.start()
                if process.poll() is not None:
                    break
            assert process.wait() == -signal.SIGKILL
    assert len(acknowledged) >= 6
    with read_scope(embedded.engine) as session:
        paths = [path_of(session, uid) for uid in acknowledged]
    assert all(path is not None and len(pydicom.dcmread(path).PixelData) > 0 for path in paths)


@contextmanager
def receiver_process(context: Context, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`nightread receive` in a process of its own, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "NIGHTREAD_DATABASE_URL": context.settings.database_url,
        "NIGHTREAD_STATE_FOLDER": str(context.settings.state_folder),
        "NIGHTREAD_RECEIVE_PORT": str(port),
        "NIGHTREAD_RECEIVE_FREE_MB": "1",
    }
    with (folder / "receiver.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "receive"], env=environment, stdout=log, stderr=log
        )
        try:
            wait_for(lambda: is_open(port), process=process)
            yield process, port
        finally:
            process.kill()
            process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], *, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait up to a minute. Fails at once where the process has ended."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, "the process ended"
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.05)


def test_commitment_is_reported_for_films_that_are_kept_and_refused_for_others(embedded: Context) -> None:
    reports: list[Dataset] = []
    heard = Event()

    def report(event: evt.Event) -> tuple[int, None]:
        reports.append(event.event_information)
        heard.set()
        return 0x0000, None

    sender = AE(ae_title="MODALITY")
    sender.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    listener = sender.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
    peers = (Peer(name="cr1", ae_title="MODALITY", host="127.0.0.1", port=listener.server_address[1]),)
    try:
        film, unknown = make_film(), generate_uid()
        with receiving(Context(embedded.settings.changed(peers=peers))) as site:
            assert sent(site.port, film) == 0x0000
            request = Dataset()
            request.TransactionUID = generate_uid()
            request.ReferencedSOPSequence = [
                referenced(film.SOPClassUID, film.SOPInstanceUID),
                referenced(film.SOPClassUID, unknown),
            ]
            with associated(site.port) as association:
                status, _ = association.send_n_action(
                    request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
                )
                assert status.Status == 0x0000
            assert heard.wait(60)
            with associated(site.port, title="STRANGER") as association:
                status, _ = association.send_n_action(
                    request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
                )
                assert status.Status != 0x0000, "nobody knows where its report would go"
    finally:
        listener.shutdown()
    (answer,) = reports
    assert answer.TransactionUID == request.TransactionUID
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [film.SOPInstanceUID]
    assert [item.ReferencedSOPInstanceUID for item in answer.FailedSOPSequence] == [unknown]


def referenced(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item
