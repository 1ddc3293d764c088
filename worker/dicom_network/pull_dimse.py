"""An archive by DICOM: C-FIND finds studies, series and films; C-GET or C-MOVE brings them (PS3.4 annex C).

An association is used again while it stands, and is made anew after a pause, in which the peer would end it.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final, Self

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from worker.dicom_network.association import associated
from worker.dicom_network.inbox import is_given_up
from worker.dicom_network.pull_archive import OFFER_KEYWORDS, FilmFailed, MoveBrokenOff, Offer, patiently
from worker.dicom_network.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES
from worker.dicom_network.transport import receive_to_files
from worker.intake.header import is_uid
from worker.intake.view_evidence import text_of
from worker.peers import PeerAway
from worker.setting_peers import Peer
from worker.settings import Settings, WrongSettings

FIND: Final = StudyRootQueryRetrieveInformationModelFind
GET: Final = StudyRootQueryRetrieveInformationModelGet
MOVE: Final = StudyRootQueryRetrieveInformationModelMove

SUCCESS: Final = 0x0000
CANNOT_UNDERSTAND: Final = 0xC000
OUT_OF_RESOURCES: Final = 0xA700
PENDING: Final = frozenset({0xFF00, 0xFF01})
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
SERVICES: Final = {FIND: "C-FIND", GET: "C-GET: set retrieve to move", MOVE: "C-MOVE: set retrieve to get"}
IDLE_SECONDS: Final = 10.0
MOST_ANSWERS: Final = 10_000  # to one query: a day's studies, a study's series, a series' films
MOST_ANSWER_BYTES: Final = 64 * 2**20
RETRIEVE_SECONDS: Final = 600.0  # an archive may send nothing while it fetches a film from tape


class DimseArchive:
    """An archive that speaks DICOM; a context manager that ends its associations."""

    def __init__(self, peer: Peer, settings: Settings) -> None:
        self._peer, self._settings = peer, settings
        self._open: dict[str, tuple[Association, ExitStack]] = {}  # by the service's information model
        self._used_at: dict[str, float] = {}
        self._expected = ("", Path())  # the film that a C-GET asked for, and where it goes
        receive_to_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for model in list(self._open):
            self._close(model)

    @patiently
    def studies(self, day: date, modality: str) -> Sequence[str]:
        """By C-FIND at STUDY level."""
        with self._association(FIND) as association:
            query = {"StudyDate": f"{day:%Y%m%d}", "ModalitiesInStudy": modality, "StudyInstanceUID": ""}
            found = self._found(association, "STUDY", query)
            return list(dict.fromkeys(text_of(item, "StudyInstanceUID") for item in found))

    @patiently
    def offers(self, study_instance_uid: str, modalities: Sequence[str]) -> Sequence[Offer]:
        """By C-FIND at SERIES and IMAGE level; a peer tells of the attributes asked for what it has in its index."""
        study = {"StudyInstanceUID": study_instance_uid}
        with self._association(FIND) as association:
            found: list[Offer] = []
            for item in self._found(association, "SERIES", study | {"SeriesInstanceUID": "", "Modality": ""}):
                uid, modality = text_of(item, "SeriesInstanceUID"), text_of(item, "Modality")
                if is_uid(uid) and (not modality or modality in modalities):
                    told = {"Modality": modality} if modality else {}
                    found += self._offers_of(association, study_instance_uid, uid, told)
            return found

    def _offers_of(self, association: Association, study: str, series: str, told: dict[str, str]) -> Iterator[Offer]:
        asked = {keyword: [] if dictionary_VR(keyword) == "SQ" else "" for keyword in OFFER_KEYWORDS}
        place = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        for item in self._found(association, "IMAGE", asked | place):
            header = Dataset()
            header.update({tag: item[tag] for tag in item.keys() & _TAGS})
            for keyword, value in told.items():
                if not text_of(header, keyword):
                    setattr(header, keyword, value)
            yield Offer(study, series, text_of(item, "SOPInstanceUID"), header, whole=False)

    @patiently
    def fetch(self, offer: Offer, into: Path) -> bool:
        """By C-GET into `into`, or by C-MOVE to our receiver."""
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "IMAGE"
        wanted.StudyInstanceUID, wanted.SeriesInstanceUID = offer.study_instance_uid, offer.series_instance_uid
        wanted.SOPInstanceUID = offer.sop_instance_uid
        if self._peer.retrieve == "move":
            with self._association(MOVE) as association:
                self._end_of(association.send_c_move(wanted, self._settings.receive.ae_title, MOVE), "c_move")
            return False
        into.unlink(missing_ok=True)
        self._expected = (offer.sop_instance_uid, into)
        with self._association(GET) as association:
            self._end_of(association.send_c_get(wanted, GET), "c_get")
        if not into.exists():
            raise FilmFailed("c_get_sent_no_film")
        return True

    def _stored(self, event: evt.Event) -> int:
        """Take the film that a C-GET brings."""
        event.assoc.reader.begin_message()
        uid, into = self._expected
        if event.request.AffectedSOPInstanceUID != uid or into.exists():
            return CANNOT_UNDERSTAND
        if is_given_up(event.dataset_path):
            return OUT_OF_RESOURCES
        os.link(event.dataset_path, into)  # pynetdicom removes its own name
        return SUCCESS

    def _end_of(self, answers: Iterator[tuple[Dataset, Any]], operation: str) -> None:
        """Wait for the final answer. Raises FilmFailed for all but success."""
        for status, _ in answers:
            code = self._code(status, operation)
            if code == MOVE_DESTINATION_UNKNOWN:
                raise WrongSettings(f"peer {self._peer.name} does not know {self._destination}: add it there")
            if code not in PENDING and code != SUCCESS:
                raise FilmFailed(f"{operation}_{code:04x}")

    def _found(self, association: Association, level: str, query: dict[str, Any]) -> list[Dataset]:
        """All answers: the next query can only be sent after the last of them."""
        wanted = Dataset()
        wanted.QueryRetrieveLevel = level
        for keyword, value in query.items():
            setattr(wanted, keyword, value)
        found: list[Dataset] = []
        association.reader.begin_message()
        for status, item in association.send_c_find(wanted, FIND):
            code = self._code(status, "c_find")
            if code not in PENDING and code != SUCCESS:
                raise PeerAway(f"peer {self._peer.name} answers a C-FIND with status {code:04X}")
            if item is not None:
                found.append(item)
            if len(found) > MOST_ANSWERS:
                raise PeerAway(f"peer {self._peer.name} answers a C-FIND with more than {MOST_ANSWERS:,} items")
        return found

    def _code(self, status: Dataset, operation: str) -> int:
        if "Status" in status:
            return int(status.Status)
        broken_off = f"peer {self._peer.name} broke off the association in a {operation.upper().replace('_', '-')}"
        if operation == "c_move":
            raise MoveBrokenOff(f"{broken_off}: does it know {self._destination}?")
        raise PeerAway(broken_off)

    @property
    def _destination(self) -> str:
        """Our receiver, as an archive must know it."""
        title = self._settings.receive.ae_title
        return f"{title} as a destination (NIGHTREAD_RECEIVE_AE_TITLE), at our address and NIGHTREAD_RECEIVE_PORT"

    @contextmanager
    def _association(self, model: str) -> Iterator[Association]:
        """The association for a service. After an error it is ended: what is left of an answer belongs to nobody."""
        association, idle_seconds = None, time.monotonic() - self._used_at.get(model, 0.0)
        if model in self._open:
            association = self._open[model][0]
            if idle_seconds > IDLE_SECONDS or not association.is_established:
                self._close(model)
                association = None
        association = association or self._associated(model)
        association.reader.begin_message()
        try:
            yield association
        except RuntimeError:  # sent on an association that had ended
            self._close(model)
            raise PeerAway(f"peer {self._peer.name} broke off the association") from None
        except Exception:  # an association in an unknown state is used by nobody else, and a release might wait long
            association.abort()
            self._close(model)
            raise
        self._used_at[model] = time.monotonic()

    def _associated(self, model: str) -> Association:
        classes = list(dict.fromkeys((*STORAGE_CLASSES, *self._settings.receive.sop_classes))) if model == GET else []
        stack = ExitStack()
        association = stack.enter_context(
            associated(
                self._peer,
                calling=self._settings.receive.ae_title,
                contexts=[build_context(model), *_storage_contexts(classes)],
                roles=[build_role(each, scp_role=True) for each in classes],  # the archive sends, we store
                handlers=[(evt.EVT_C_STORE, self._stored)] if model == GET else [],
                message_bytes=self._settings.max_file_mb * 2**20 if model == GET else MOST_ANSWER_BYTES,
            )
        )
        self._open[model] = (association, stack)
        if model not in {context.abstract_syntax for context in association.accepted_contexts}:
            self._close(model)
            raise WrongSettings(f"peer {self._peer.name} does not offer us {SERVICES[model]}")
        association.dimse_timeout = association.network_timeout = RETRIEVE_SECONDS
        return association

    def _close(self, model: str) -> None:
        self._open.pop(model)[1].close()


def _storage_contexts(classes: Sequence[str]) -> list[PresentationContext]:
    """A context for each class and syntax, so that the archive can send each film as it is stored.

    An association has room for 128: classes beyond those of radiographs share one context among their syntaxes.
    """
    own = [build_context(each, syntax) for each in classes if each in STORAGE_CLASSES for syntax in TRANSFER_SYNTAXES]
    others = [build_context(each, list(TRANSFER_SYNTAXES)) for each in classes if each not in STORAGE_CLASSES]
    return (own + others)[:127]


_TAGS: Final = frozenset(Tag(keyword) for keyword in OFFER_KEYWORDS)
