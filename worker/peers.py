"""The peers of the settings, and HTTP to one of them; an association is made in dicom_network/association.py.

Errors name a peer by its name in the settings and never by what it was asked for.
"""

import ssl
from typing import TYPE_CHECKING, Final

from worker.errors import Unavailable
from worker.setting_peers import Peer
from worker.settings import Settings, WrongSettings

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 60.0  # until the next bytes come: an archive may fetch a film from tape first


class PeerAway(Unavailable):
    """A peer that does not answer, or refuses an association; the text names it and says what to look at."""


def peer_named(settings: Settings, name: str) -> Peer:
    """The peer with this name. Raises WrongSettings."""
    for peer in settings.peers:
        if peer.name == name:
            return peer
    known = ", ".join(peer.name for peer in settings.peers) or "none"
    raise WrongSettings(f"no peer has the name {name!r}; NIGHTREAD_PEERS names {known}")


def peer_titled(settings: Settings, ae_title: str) -> Peer | None:
    """The first peer with this AE title, or None."""
    return next((peer for peer in settings.peers if peer.ae_title == ae_title.strip()), None)


def web_client(peer: Peer) -> "httpx.Client":
    """HTTP for a peer's DICOMweb services; paths are relative to their base URL. Raises WrongSettings."""
    if peer.dicomweb is None:
        raise WrongSettings(f"peer {peer.name} has no dicomweb in NIGHTREAD_PEERS")
    return http_client(peer, peer.dicomweb)


def http_client(peer: Peer, base_url: str) -> "httpx.Client":
    """HTTP for one of a peer's services, with its credentials. Raises WrongSettings.

    No redirect is followed, so that the credentials go nowhere else.
    """
    import httpx

    headers = {"Accept-Encoding": "identity"}  # films are compressed already, or not worth the time
    if peer.token_file is not None:
        headers["Authorization"] = f"Bearer {_secret(peer, peer.token_file)}"
    return httpx.Client(
        base_url=base_url,
        auth=None if peer.user is None else httpx.BasicAuth(peer.user, _secret(peer, peer.password_file)),
        headers=headers,
        verify=tls_of(peer),
        timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        trust_env=False,
    )


def tls_of(peer: Peer) -> ssl.SSLContext:
    """TLS towards a peer, which is verified. Raises WrongSettings for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=peer.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195, PS3.15 annex B.9
        if peer.certificate_file is not None:
            context.load_cert_chain(peer.certificate_file, peer.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise WrongSettings(f"peer {peer.name}: {error.strerror or error} (a certificate, key or ca_file)") from None
    return context


def _secret(peer: Peer, file: "Path | None") -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise WrongSettings(f"peer {peer.name}: its password or token cannot be read from {file}") from None
