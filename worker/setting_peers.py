"""Peers: the archives, modalities and other nodes that are called, from the TOML file that NIGHTREAD_PEERS names."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from worker.setting_groups import Group, from_toml
from worker.setting_types import Title


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", value):
        raise ValueError("a peer's name has 1 to 32 small letters, digits, - and _")
    return value


def _mllp(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"mllp", "mllps"} or not url.hostname or url.port is None or url.query or url.username:
        raise ValueError("write it as mllp://ris.example:2575/APPLICATION/FACILITY, or mllps:// for TLS")
    return value.rstrip("/")


def _url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname or url.query or url.fragment:
        raise ValueError("write it as https://pacs.example/path")
    if url.username or url.password:
        raise ValueError("a URL holds no password: name user and password_file")
    return value.rstrip("/")


class Peer(Group):
    """One node that is called: by DICOM (ae_title, host and port), DICOMweb, HL7 over MLLP, FHIR, or several."""

    name: Annotated[str, AfterValidator(_name)]
    ae_title: Title | None = None
    host: Annotated[str, Field(pattern=r"^[^\s@/]+$")] | None = None
    port: int = Field(104, ge=1, le=65535)
    tls: bool = False
    """Speak DICOM over TLS; the peer's certificate must name its host."""
    ca_file: Path | None = None
    """The authority that signed the peer's certificate, for DICOM and DICOMweb; unset: the system's authorities."""
    certificate_file: Path | None = None
    """Our certificate (PEM), where the peer asks for one."""
    key_file: Path | None = None
    """The key of that certificate; unset: it is in the certificate's file."""
    retrieve: Literal["get", "move"] = "get"
    """How films are pulled by DICOM: C-GET, or C-MOVE to our receiver, which must run."""
    dicomweb: Annotated[str, AfterValidator(_url)] | None = None
    """Base URL of its DICOMweb services: /studies follows it."""
    mllp: Annotated[str, AfterValidator(_mllp)] | None = None
    """Where it takes HL7 v2 messages: mllp://host:port/APPLICATION/FACILITY, or mllps:// for TLS."""
    fhir: Annotated[str, AfterValidator(_url)] | None = None
    """Base URL of its FHIR R4 server."""
    user: str | None = None
    """For HTTP's Basic authentication, with password_file."""
    password_file: Path | None = None
    token_file: Path | None = None
    """A bearer token, in place of user and password."""

    @model_validator(mode="after")
    def _can_be_called(self) -> Self:
        if (self.ae_title is None) != (self.host is None):
            raise ValueError("ae_title and host belong together")
        if not any((self.ae_title, self.dicomweb, self.mllp, self.fhir)):
            raise ValueError("name ae_title and host, dicomweb, mllp or fhir")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together")
        if self.user is not None and self.token_file is not None:
            raise ValueError("name a password_file or a token_file, not both")
        return self


def peers_in(value: object) -> object:
    """The peers of a TOML file, one table each under its name; anything but its path as it is.

    Raises ValueError that names the entry.
    """
    if not isinstance(value, str):
        return value
    allowed = ", ".join(name for name in Peer.model_fields if name != "name")
    return from_toml(value, _peers_of, f"a table for each peer, with {allowed}") if value else ()


def _peers_of(tables: dict[str, Any]) -> tuple[Peer, ...]:
    named = {name: table | {"name": name} if isinstance(table, dict) else table for name, table in tables.items()}
    return tuple(TypeAdapter(dict[str, Peer]).validate_python(named).values())
