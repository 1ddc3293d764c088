"""An archive by DICOMweb, as servers differ: pages, missing metadata, other multipart, and what goes wrong."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset

from worker.dicom_network.pull_archive import FilmFailed, Offer
from worker.dicom_network.pull_web import WebArchive
from worker.intake.view_rules import DEFAULT_RULES
from worker.peers import PeerAway
from worker.setting_peers import Peer
from worker.settings import WrongSettings

DAY, PEER = date(2026, 1, 1), Peer(name="pacs", dicomweb="https://pacs.example/dicom-web")
STUDY, SERIES, FILM = "1.2.3", "1.2.3.4", "1.2.3.4.5"
CONTENT = b"\0" * 128 + b"DICM" + bytes(range(256)) * 40 + b"\r\n--edge\r\n--not-the-edge--\r\n"


def tag(keyword: str) -> str:
    return {"study": "0020000D", "series": "0020000E", "film": "00080018", "modality": "00080060",
            "view": "00185101", "body": "00180015", "name": "00100010"}[keyword]  # fmt: skip


def item(**values: str) -> dict[str, object]:
    """One item of an answer in the DICOM JSON model."""
    kinds = dict.fromkeys(("study", "series", "film"), "UI")
    return {tag(name): {"vr": kinds.get(name, "CS"), "Value": [value]} for name, value in values.items()}


def archive(answer: Callable[[httpx.Request], httpx.Response], *, most_bytes: int = 10**6) -> WebArchive:
    """An archive whose server is this function."""
    client = httpx.Client(base_url=PEER.dicomweb or "", transport=httpx.MockTransport(answer))
    return WebArchive(PEER, client, most_bytes=most_bytes)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in (WebArchive._json, WebArchive._fetched):
        monkeypatch.setattr(method.retry, "sleep", lambda _seconds: None)


OFFER = Offer(STUDY, SERIES, FILM, Dataset(), whole=False)


def multipart(content: bytes, *, boundary: str = "a1b2", end: bool = True) -> httpx.Response:
    head = f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\nContent-Location: x\r\n\r\n".encode()
    body = head + content + (f"\r\n--{boundary}--\r\n".encode() if end else b"")
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    return httpx.Response(200, headers={"content-type": kind}, content=body)


def test_studies_are_asked_for_page_by_page_until_nothing_new_comes() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        first = int(request.url.params["offset"])
        return httpx.Response(200, json=[item(study=f"1.{number}") for number in range(first, min(first + 2, 5))])

    assert archive(answer).studies(DAY, "DX") == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    assert asked[0] == {"StudyDate": "20260101", "ModalitiesInStudy": "DX", "limit": "200", "offset": "0"}
    assert len(asked) == 4


def test_a_server_that_ignores_the_offset_or_finds_nothing_ends_the_search() -> None:
    assert archive(lambda _: httpx.Response(200, json=[item(study="1.2")])).studies(DAY, "DX") == ["1.2"]
    assert archive(lambda _: httpx.Response(204)).studies(DAY, "DX") == []


def test_films_are_offered_by_the_headers_of_the_series_of_a_modality() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/series"):
            others = [item(series="1.9", modality="CT"), item(series="../../x", modality="DX")]
            return httpx.Response(200, json=[item(series=SERIES, modality="DX"), *others])
        assert request.url.path == f"/dicom-web/studies/{STUDY}/series/{SERIES}/metadata"
        return httpx.Response(200, json=[item(film=FILM, view="LL", body="CHEST", name="Kanarienvogel")])

    (offer,) = archive(answer).offers(STUDY, ("CR", "DX"))
    assert (offer.sop_instance_uid, offer.whole, "PatientName" in offer.header) == (FILM, True, False)


def test_without_metadata_films_are_offered_by_the_list_of_instances() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/metadata"):
            return httpx.Response(501)
        if request.url.path.endswith("/series"):
            return httpx.Response(200, json=[item(series=SERIES)])
        return httpx.Response(200, json=[item(film=FILM)])

    (offer,) = archive(answer).offers(STUDY, ("DX",))
    assert (offer.sop_instance_uid, offer.whole) == (FILM, False)
    assert offer.left_out_because(DEFAULT_RULES) is None, "what is not told is fetched"


@pytest.mark.parametrize("boundary", ["a1b2", "-" * 20, "edge with space"])
def test_a_film_is_written_as_it_comes_whatever_its_bytes(boundary: str, tmp_path: Path) -> None:
    if boundary == "edge with space":
        boundary = "x'()+_,./:=?"
    assert archive(lambda _: multipart(CONTENT, boundary=boundary)).fetch(OFFER, tmp_path / "film")
    assert (tmp_path / "film").read_bytes() == CONTENT


def test_a_film_that_comes_alone_is_taken_too_and_one_in_another_syntax_where_the_stored_one_is_refused(
    tmp_path: Path,
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if "transfer-syntax=*" in request.headers["accept"]:
            return httpx.Response(406)
        return httpx.Response(200, headers={"content-type": "application/dicom"}, content=CONTENT)

    assert archive(answer).fetch(OFFER, tmp_path / "film")
    assert (tmp_path / "film").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (multipart(CONTENT, end=False), "multipart_broken"),
        (httpx.Response(200, headers={"content-type": "multipart/related; boundary=z"}, content=b"\0nonsense"),
         "multipart_broken"),
        (httpx.Response(200, headers={"content-type": "text/html"}, content=b"<html>"), "not_dicom"),
        (httpx.Response(200, content=b""), "not_dicom"),
        (httpx.Response(403), "http_403"),
        (httpx.Response(404), "http_404"),
        (httpx.Response(451), "http_451"),
        (httpx.Response(503), "http_503"),
        (httpx.Response(406), "http_406"),
        (multipart(bytes(2 * 10**6)), "file_too_large"),
    ],
)  # fmt: skip
def test_a_film_that_cannot_be_had_fails_alone_with_its_reason(
    response: httpx.Response, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(FilmFailed) as failed:
        archive(lambda _: response).fetch(OFFER, tmp_path / "film")
    assert failed.value.reason == reason


def test_what_breaks_off_or_is_busy_is_tried_again(tmp_path: Path) -> None:
    answers = iter([httpx.Response(503), None, multipart(CONTENT)])

    def answer(_: httpx.Request) -> httpx.Response:
        found = next(answers)
        if found is None:
            raise httpx.ReadError("https://pacs.example/studies/1.2.3")
        return found

    assert archive(answer).fetch(OFFER, tmp_path / "film")


@pytest.mark.parametrize(("listed", "reason"), [((), "no_list_of_series"), (("series",), "no_list_of_films")])
def test_a_study_whose_films_are_not_listed_is_not_taken_for_an_empty_one(listed: tuple[str, ...], reason: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        known = request.url.path.rpartition("/")[2] in listed
        return httpx.Response(200, json=[item(series=SERIES, modality="DX")]) if known else httpx.Response(501)

    with pytest.raises(FilmFailed) as failed:
        archive(answer).offers(STUDY, ("DX",))
    assert failed.value.reason == reason


@pytest.mark.parametrize("status", [400, 401, 403, 409, 410, 451])
@pytest.mark.parametrize("refused", ["/series", "/metadata"])
def test_a_study_that_is_refused_fails_alone_and_a_refused_search_ends_the_run(refused: str, status: int) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        known = not request.url.path.endswith((refused, "/studies"))
        return httpx.Response(200, json=[item(series=SERIES, modality="DX")]) if known else httpx.Response(status)

    with pytest.raises(FilmFailed) as failed:
        archive(answer).offers(STUDY, ("DX",))
    assert failed.value.reason == f"http_{status}"
    with pytest.raises(WrongSettings, match=f"HTTP {status}"):
        archive(answer).studies(DAY, "DX")


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (httpx.Response(401), WrongSettings, "refuses our credentials (HTTP 401)"),
        (httpx.Response(302, headers={"location": "https://elsewhere"}), WrongSettings, "answers HTTP 302"),
        (httpx.Response(404), WrongSettings, "no list of studies"),
        (httpx.Response(500), PeerAway, "cannot serve now (HTTP 500)"),
        (httpx.Response(200, content=b"<html>"), PeerAway, "something else than DICOM JSON"),
        (httpx.Response(200, content=json.dumps({"studies": []}).encode()), WrongSettings, "no list of studies"),
    ],
)
def test_an_answer_that_is_none_ends_the_run_with_a_sentence_that_names_no_one(
    response: httpx.Response, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        archive(lambda _: response).studies(DAY, "DX")
    assert words in str(raised.value)
    assert str(raised.value).startswith("peer pacs ")
    assert "example" not in str(raised.value)


def header(**attributes: object) -> Dataset:
    film = Dataset()
    film.Modality, film.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
    for keyword, value in attributes.items():
        setattr(film, keyword, value)
    return film


@pytest.mark.parametrize(
    ("told", "whole", "reason"),
    [
        ({"ViewPosition": "PA", "BodyPartExamined": "CHEST"}, False, None),
        ({"ViewPosition": "LL", "BodyPartExamined": "CHEST"}, False, "lateral_view"),
        ({"ViewPosition": "", "SeriesDescription": "Thorax seitlich", "BodyPartExamined": "CHEST"}, False, None),
        (
            {"ViewPosition": "", "SeriesDescription": "Thorax seitlich", "BodyPartExamined": "CHEST"},
            True,
            "lateral_view",
        ),
        ({"BodyPartExamined": "HAND", "ViewPosition": "PA"}, False, "body_part_not_chest"),
        ({"BodyPartExamined": "CHEST"}, True, None),
        ({}, False, None),
        ({"Modality": "CT"}, False, "modality_not_accepted"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1", "ViewPosition": "PA"}, False, "for_processing"),
    ],
)
def test_a_film_is_left_out_only_where_the_archive_told_what_decides(
    told: dict[str, str], whole: bool, reason: str | None
) -> None:
    assert Offer(STUDY, SERIES, FILM, header(**told), whole).left_out_because(DEFAULT_RULES) == reason
