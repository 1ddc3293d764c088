"""Destinations of results: peers that the settings name, each with an address for what it gets."""

import re
from pathlib import Path

import pytest

from worker.delivery.outbox import Destination, destinations
from worker.settings import WrongSettings, read_settings


@pytest.fixture(autouse=True)
def peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "peers.toml"
    file.write_text('[pacs]\nae_title = "PACS"\nhost = "h"\n[ris]\nmllp = "mllp://ris:2575"')
    monkeypatch.setenv("NIGHTREAD_PEERS", str(file))


def test_each_kind_goes_to_each_of_its_peers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTREAD_DELIVER_SR", "pacs,pacs")
    monkeypatch.setenv("NIGHTREAD_DELIVER_ORU", "ris")
    settings = read_settings()
    assert settings.deliver.is_on
    assert destinations(settings) == [Destination("sr", "pacs"), Destination("oru", "ris")]


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("SR", "other", "no peer has the name 'other'"),
        ("ORU", "pacs", "NIGHTREAD_DELIVER_ORU: peer pacs has no mllp in NIGHTREAD_PEERS"),
        ("SC", "ris", "NIGHTREAD_DELIVER_SC: peer ris has no ae_title or dicomweb in NIGHTREAD_PEERS"),
    ],
)
def test_a_peer_without_an_address_for_what_it_gets_is_refused(
    kind: str, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"NIGHTREAD_DELIVER_{kind}", name)
    with pytest.raises(WrongSettings, match=re.escape(sentence)):
        destinations(read_settings())
