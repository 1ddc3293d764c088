"""The DICOM nodes that the settings name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from worker.setting_types import PEER


@dataclass(frozen=True)
class Peer:
    """An application entity that we call."""

    title: str
    host: str
    port: int


def peer_of(peers: Sequence[str], title: str) -> Peer | None:
    """The node of NIGHTREAD_PEERS with this AE title, or None."""
    for text in peers:
        found = re.fullmatch(PEER, text)
        if found is not None and found["title"].strip() == title.strip():
            return Peer(found["title"].strip(), found["host"].strip("[]"), int(found["port"]))
    return None
