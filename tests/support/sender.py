"""A sender of films by C-STORE that does what modalities do: it sends each film again until it hears of success."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association

from worker.dicom_network.association import quieten_pynetdicom

REFUSED_FOR_GOOD = 0xC000  # and above: this film, not this moment, is the fault (PS3.4 table B.2-1)


class Sender(threading.Thread):
    """Sends files to 127.0.0.1 in a thread of its own. `acknowledged`: SOP Instance UIDs; `refused`: statuses."""

    def __init__(self, files: Sequence[Path], *, port: int, pause_seconds: float = 0.1) -> None:
        super().__init__(daemon=True)
        quieten_pynetdicom()
        self._films: list[Dataset] = [pydicom.dcmread(file) for file in files]  # now: the files may go away meanwhile
        self._port, self._pause_seconds = port, pause_seconds
        self.acknowledged: list[str] = []
        self.refused: list[int] = []

    def run(self) -> None:
        """Send every film, on one association after another."""
        left = list(self._films)
        while left:
            with suppress(RuntimeError):  # the association is gone
                self._send(left)
            time.sleep(self._pause_seconds)

    def _send(self, left: list[Dataset]) -> None:
        entity = AE(ae_title="MODALITY")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
        for film in left:
            entity.add_requested_context(film.SOPClassUID, film.file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", self._port, ae_title="NIGHTREAD")
        try:
            while left and association.is_established and self._is_settled(association, left[0]):
                left.pop(0)
                time.sleep(self._pause_seconds)
        finally:
            if association.is_established:
                association.release()

    def _is_settled(self, association: Association, film: Dataset) -> bool:
        status = getattr(association.send_c_store(film), "Status", None)
        if status == 0x0000:
            self.acknowledged.append(str(film.SOPInstanceUID))
        elif status is not None and status >= REFUSED_FOR_GOOD:
            self.refused.append(status)
        return status is not None and (status == 0x0000 or status >= REFUSED_FOR_GOOD)
