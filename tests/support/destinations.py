"""Destinations of results that misbehave when told to: an archive that speaks DICOM and a RIS that speaks HL7."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pynetdicom import AE, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage, Verification

from worker.dicom_network.association import quieten_pynetdicom

Mood: TypeAlias = Literal["well", "refuses", "hangs", "drops"]
"""drops: keeps what came, and ends the connection instead of saying so."""


@dataclass
class Destination:
    """What came, by its identifier, and the study that it is of. `changed`: came again with other content."""

    mood: Mood = "well"
    held: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    tries: int = 0  # in the mood of the moment
    _digests: dict[str, str] = field(default_factory=dict)
    _hanging: threading.Event = field(default_factory=threading.Event)

    def becomes(self, mood: Mood) -> None:
        """Change its mood; who hangs goes on."""
        self.mood, self.tries = mood, 0
        self._hanging.set()
        self._hanging = threading.Event()

    def _may_keep(self) -> bool:
        """Whether to keep what has come; a destination that hangs thinks about it until its mood changes."""
        self.tries += 1
        if self.mood == "hangs":
            self._hanging.wait(timeout=120)
        return self.mood != "refuses"

    def _keep(self, uid: str, *, study: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        if self._digests.setdefault(uid, digest) != digest:
            self.changed.add(uid)
        self.held[uid] = study


@dataclass
class Archive(Destination):
    """Takes reports by C-STORE, on 127.0.0.1."""

    @contextmanager
    def listening(self) -> Iterator[int]:
        """Yields its port."""
        quieten_pynetdicom()
        entity = AE(ae_title="ARCHIVE")
        entity.add_supported_context(Verification)
        entity.add_supported_context(Comprehensive3DSRStorage)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        try:
            yield server.server_address[1]
        finally:
            self.becomes("well")
            server.shutdown()

    def _store(self, event: evt.Event) -> int:
        if not self._may_keep():
            return 0xC001
        report = event.dataset
        self._keep(report.SOPInstanceUID, study=report.StudyInstanceUID, content=event.request.DataSet.getvalue())
        if self.mood == "drops":
            event.assoc.abort()
        return 0x0000


@dataclass
class Ris(Destination):
    """Takes messages by MLLP, on 127.0.0.1."""

    @contextmanager
    def listening(self) -> Iterator[int]:
        """Yields its port."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=self._serve, args=(server,), daemon=True).start()
            yield server.getsockname()[1]
            self.becomes("well")
            server.shutdown(socket.SHUT_RDWR)

    def _serve(self, server: socket.socket) -> None:
        with suppress(OSError):  # it was closed
            while True:
                connection, _ = server.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            received = b""
            while not received.endswith(b"\x1c\r"):
                if not (piece := connection.recv(65536)):
                    return
                received += piece
            segments = [line.split("|") for line in received.decode().strip("\x0b\x1c\r").split("\r")]
            control_id, study = segments[0][9], next(each[5] for each in segments if each[0] == "OBX")
            is_kept = self._may_keep()
            if is_kept:
                self._keep(control_id, study=study, content=received)
            if self.mood != "drops":
                code = "AA" if is_kept else "AE"
                connection.sendall(f"\x0bMSH|^~\\&|RIS\rMSA|{code}|{control_id}\r\x1c\r".encode())
