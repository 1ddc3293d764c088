"""Peers: read from their TOML file, and refused with the entry that is wrong."""

import re
from pathlib import Path

import pytest
from pynetdicom import build_context
from pynetdicom.sop_class import Verification

from tests.support.values import present
from worker.dicom_network.association import associated
from worker.errors import Unavailable
from worker.peers import peer_named, peer_titled, web_client
from worker.setting_peers import Peer
from worker.settings import WrongSettings, read_settings

PACS = """
[pacs]
ae_title = "PACS"
host = "pacs.example"
tls = true

[vna]
dicomweb = "https://vna.example/dicom-web/"
user = "nightread"
password_file = "/run/secrets/vna_password"
"""


CONFIGURATION = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


def test_every_entry_of_a_peer_is_documented():
    section = CONFIGURATION.read_text().partition("## Peers")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([a-z_]+)` \|", section, flags=re.MULTILINE)
    assert documented == [name for name in Peer.model_fields if name != "name"]


@pytest.fixture
def peers_file(monkeypatch, tmp_path):
    """Writes the file that NIGHTREAD_PEERS names."""
    monkeypatch.setenv("NIGHTREAD_PEERS", str(tmp_path / "peers.toml"))
    return (tmp_path / "peers.toml").write_text


def test_a_file_of_peers_becomes_peers_by_name_and_by_title(peers_file):
    peers_file(PACS)
    settings = read_settings()
    assert [peer.name for peer in settings.peers] == ["pacs", "vna"]
    assert (present(peer_titled(settings, "PACS ")).port, peer_titled(settings, "VNA")) == (104, None)
    assert peer_named(settings, "vna").dicomweb == "https://vna.example/dicom-web"
    with pytest.raises(WrongSettings, match="no peer has the name 'ris'; NIGHTREAD_PEERS names pacs, vna"):
        peer_named(settings, "ris")


def test_no_file_is_no_peer(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_PEERS", "")
    assert read_settings().peers == ()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[pacs]\nae_title = "PACS"', "pacs: ae_title and host belong together"),
        ("[pacs]\ntls = true", "pacs: name ae_title and host, dicomweb, mllp or fhir"),
        ('[pacs]\nae_title = "PACS"\nhost = "h"\nport = 0', "pacs.port: "),
        ('[pacs]\ndicomweb = "pacs.example"', "pacs.dicomweb: write it as https://"),
        ('[pacs]\ndicomweb = "https://u:p@h/"', "pacs.dicomweb: a URL holds no password"),
        ('[pacs]\ndicomweb = "https://h"\nuser = "u"', "pacs: user and password_file belong together"),
        ('[ris]\nmllp = "ris:2575"', "ris.mllp: write it as mllp://"),
        ('[ris]\nmllp = "mllp://ris"', "ris.mllp: write it as mllp://"),
        ('[ehr]\nfhir = "ehr"', "ehr.fhir: write it as https://"),
        ('[pacs]\nurl = "https://h"', "pacs.url: "),
        ('[PACS]\ndicomweb = "https://h"', "PACS.name: a peer's name has 1 to 32 small letters"),
        ("pacs = 104", "pacs: "),
        ("[pacs", "peers.toml is no TOML file: "),
    ],
)
def test_a_peer_that_cannot_be_called_is_refused_with_its_entry(content, sentence, peers_file):
    peers_file(content)
    with pytest.raises(WrongSettings, match=re.escape(sentence)) as refusal:
        read_settings()
    assert str(refusal.value).startswith("NIGHTREAD_PEERS: ")
    if "TOML" not in sentence:
        assert "allowed are a table for each peer, with ae_title, host, port, tls" in str(refusal.value)


def test_a_peer_is_called_with_its_secrets_and_verified(tmp_path):
    (tmp_path / "password").write_text("geheim\n")
    peer = Peer(name="vna", dicomweb="https://vna.example/dicom-web", user="u", password_file=tmp_path / "password")
    with web_client(peer) as client:
        request = client.build_request("GET", "studies")
        assert str(request.url) == "https://vna.example/dicom-web/studies"
        sent = next(present(client.auth).auth_flow(request))
        assert sent.headers["Authorization"] == "Basic dTpnZWhlaW0="
    token = Peer(name="vna", dicomweb="https://vna.example", token_file=tmp_path / "password")
    with web_client(token) as client:
        assert client.headers["Authorization"] == "Bearer geheim"


def test_a_secret_or_certificate_that_is_not_there_is_a_wrong_setting(tmp_path):
    peer = Peer(name="vna", dicomweb="https://vna.example", user="u", password_file=tmp_path / "none")
    with pytest.raises(WrongSettings, match="peer vna: its password or token cannot be read"):
        web_client(peer)
    with pytest.raises(WrongSettings, match="peer vna: No such file"):
        web_client(Peer(name="vna", dicomweb="https://vna.example", ca_file=tmp_path / "none"))


def test_a_peer_that_is_not_there_is_away():
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=9)
    echo = [build_context(Verification)]
    with pytest.raises(Unavailable, match="peer pacs does not answer"), associated(peer, calling="US", contexts=echo):
        pass
    with pytest.raises(WrongSettings, match="peer vna has no ae_title"):
        associated(Peer(name="vna", dicomweb="https://h"), calling="US", contexts=echo).__enter__()
