"""An archive by DICOMweb: QIDO-RS finds studies and series, WADO-RS tells headers and sends films (PS3.18)."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, Final

import httpx
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from worker.dicom_network.pull_archive import OFFER_KEYWORDS, FilmFailed, Offer, patiently
from worker.intake.header import is_uid
from worker.peers import PeerAway
from worker.setting_peers import Peer
from worker.settings import WrongSettings

PAGE_STUDIES: Final = 200
MOST_STUDIES: Final = 10_000  # of one day: a server that makes up new ones for every page would never end
MOST_JSON_BYTES: Final = 64 * 2**20
FILM_SECONDS: Final = 600.0
JSON: Final = {"Accept": "application/dicom+json"}
# As it is stored, in whatever transfer syntax; an archive that does not know the asterisk answers 406.
FILMS: Final = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    'multipart/related; type="application/dicom"',
)
BUSY: Final = frozenset({429, 500, 502, 503, 504})
REFUSED_ALONE: Final = frozenset({400, 401, 403, 409, 410, 451})  # below a study: its own failure, not the peer's


class _Busy(PeerAway):
    """A server that answers that it cannot serve now, with this HTTP status."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class WebArchive:
    """An archive that speaks DICOMweb, by an open client. A film may have `most_bytes`."""

    def __init__(self, peer: Peer, client: httpx.Client, *, most_bytes: int) -> None:
        self._peer, self._client, self._most_bytes = peer, client, most_bytes

    def studies(self, day: date, modality: str) -> Sequence[str]:
        """Page by page: servers cap what one answer holds, each at its own number, or ignore the offset."""
        found: dict[str, None] = {}
        received = 0
        while True:
            query = {
                "StudyDate": f"{day:%Y%m%d}",
                "ModalitiesInStudy": modality,
                "limit": PAGE_STUDIES,
                "offset": received,
            }
            page = self._json("studies", query)
            if page is None:
                raise WrongSettings(f"peer {self._peer.name} has no list of studies below its dicomweb URL")
            new = [uid for item in page if (uid := _value(item, "StudyInstanceUID")) and uid not in found]
            if not new:
                return list(found)
            found |= dict.fromkeys(new)
            if len(found) > MOST_STUDIES:
                raise PeerAway(f"peer {self._peer.name} lists more than {MOST_STUDIES:,} studies of one day")
            received += len(page)

    def offers(self, study_instance_uid: str, modalities: Sequence[str]) -> Sequence[Offer]:
        """By the headers of each series; where the server sends none, by its list of instances."""
        series = self._json(f"studies/{study_instance_uid}/series", {})
        if series is None:
            raise FilmFailed("no_list_of_series")
        found: list[Offer] = []
        for item in series:
            uid, modality = _value(item, "SeriesInstanceUID"), _value(item, "Modality")
            if is_uid(uid) and (not modality or modality in modalities):
                found += self._offers_of(study_instance_uid, uid)
        return found

    def _offers_of(self, study: str, series: str) -> Iterator[Offer]:
        place = f"studies/{study}/series/{series}"
        headers, whole = self._json(f"{place}/metadata", {}), True
        if headers is None:
            headers, whole = self._json(f"{place}/instances", {"includefield": "all"}), False
        if headers is None:
            raise FilmFailed("no_list_of_films")
        for item in headers:
            yield Offer(study, series, _value(item, "SOPInstanceUID"), _header(item), whole)

    @patiently
    def _json(self, path: str, query: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The list that the server answers; None where it has no such thing."""
        with self._asked(path, JSON, query) as response:
            if response.status_code in {404, 406, 501}:
                return None
            self._check(response)
            if response.status_code == 204:
                return []
            content, deadline = bytearray(), time.monotonic() + FILM_SECONDS
            for block in response.iter_bytes():
                content += block
                if len(content) > MOST_JSON_BYTES or time.monotonic() > deadline:
                    raise PeerAway(f"peer {self._peer.name} answers a query with more than can be read, or too slowly")
        try:
            answer = json.loads(content)
        except ValueError:
            raise PeerAway(f"peer {self._peer.name} answers a query with something else than DICOM JSON") from None
        return [item for item in answer if isinstance(item, dict)] if isinstance(answer, list) else None

    def fetch(self, offer: Offer, into: Path) -> bool:
        """Write the film to `into` while it comes; nothing but one block of it is ever in memory."""
        place = (
            f"studies/{offer.study_instance_uid}/series/{offer.series_instance_uid}/instances/{offer.sop_instance_uid}"
        )
        try:
            if not any(self._fetched(place, accept, into) for accept in FILMS):
                raise FilmFailed("http_406")
        except _Busy as error:
            raise FilmFailed(f"http_{error.status}") from None
        return True

    @patiently
    def _fetched(self, place: str, accept: str, into: Path) -> bool:
        """False where the server has the film in no such form."""
        with self._asked(place, {"Accept": accept}) as response:
            if response.status_code == 406:
                return False
            if response.status_code == 404:
                raise FilmFailed("http_404")
            self._check(response)
            kind, options = parse_options_header(response.headers.get("content-type"))
            with into.open("wb") as file:
                sink = _FirstPart(file, options[b"boundary"]) if b"boundary" in options else file
                if kind not in {b"multipart/related", b"application/dicom"}:
                    raise FilmFailed("not_dicom")
                self._copy(response, sink.write)
            if isinstance(sink, _FirstPart) and not sink.is_whole:
                raise FilmFailed("multipart_broken")
        return True

    def _copy(self, response: httpx.Response, write: Callable[[bytes], object]) -> None:
        received, deadline = 0, time.monotonic() + FILM_SECONDS
        for block in response.iter_bytes():
            received += len(block)
            if received > self._most_bytes:
                raise FilmFailed("file_too_large")
            if time.monotonic() > deadline:
                raise FilmFailed("too_slow")
            write(block)

    @contextmanager
    def _asked(
        self, path: str, headers: dict[str, str], query: dict[str, Any] | None = None
    ) -> Iterator[httpx.Response]:
        try:
            with self._client.stream("GET", path, headers=headers, params=query) as response:
                if path.startswith("studies/") and response.status_code in REFUSED_ALONE:
                    raise FilmFailed(f"http_{response.status_code}")
                yield response
        except (httpx.TransportError, httpx.DecodingError):  # its text holds the URL, and so UIDs
            raise PeerAway(f"peer {self._peer.name} does not answer, or breaks off: look at its dicomweb URL, its "
                         "certificate, and the network between") from None  # fmt: skip

    def _check(self, response: httpx.Response) -> None:
        status, name = response.status_code, self._peer.name
        if status in {401, 403}:
            raise WrongSettings(
                f"peer {name} refuses our credentials (HTTP {status}): look at its user, password or token"
            )
        if status in BUSY:
            raise _Busy(f"peer {name} answers that it cannot serve now (HTTP {status})", status)
        if not 200 <= status < 300:
            raise WrongSettings(f"peer {name} answers HTTP {status}: look at its dicomweb URL")


class _FirstPart:
    """Writes the first part of a multipart message to a file; others are passed over."""

    def __init__(self, file: BinaryIO, boundary: bytes) -> None:
        self._file, self._parts, self._ended = file, 0, False
        callbacks: Any = {"on_part_begin": self._begin, "on_part_data": self._data, "on_part_end": self._end}
        self._parser = MultipartParser(boundary, callbacks)

    def write(self, block: bytes) -> None:
        try:
            self._parser.write(block)
        except FormParserError:
            raise FilmFailed("multipart_broken") from None

    @property
    def is_whole(self) -> bool:
        """Whether the part's end was seen."""
        return self._ended

    def _begin(self) -> None:
        self._parts += 1

    def _data(self, block: bytes, start: int, end: int) -> None:
        if self._parts == 1:
            self._file.write(memoryview(block)[start:end])

    def _end(self) -> None:
        self._ended = True


def _value(item: dict[str, Any], keyword: str) -> str:
    """An attribute's first value in the DICOM JSON model (PS3.18 annex F), as text; empty where there is none."""
    attribute = item.get(_TAGS[keyword])
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""


def _header(item: dict[str, Any]) -> Dataset:
    """The attributes that decide, and no other: no name of a patient is even parsed."""
    header = Dataset()
    for keyword in OFFER_KEYWORDS:
        attribute = item.get(_TAGS[keyword])
        if isinstance(attribute, dict) and "Value" in attribute:
            try:
                header.update(Dataset.from_json({_TAGS[keyword]: attribute}))
            except Exception:  # noqa: BLE001, S112  # whatever a server's JSON makes pydicom raise: it is not told
                continue
    return header


_TAGS: Final = {keyword: f"{tag_for_keyword(keyword):08X}" for keyword in (*OFFER_KEYWORDS, "Modality")}
