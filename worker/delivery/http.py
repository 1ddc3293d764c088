"""HTTP to an archive or a server of records: what its answer means for a delivery."""

from typing import Any, Final

import httpx

from worker.delivery.errors import DestinationAway, Refused
from worker.peers import http_client
from worker.reasons import ReasonCode
from worker.setting_peers import Peer

TRY_LATER: Final = {408, 425, 429, 502, 503, 504}
NOT_LET_IN: Final = {401, 403}


def post(peer: Peer, url: str, content: bytes, *, content_type: str, accept: str, refused: ReasonCode) -> Any:
    """POST, and the answer's JSON, None where it is none.

    Raises DestinationAway where there is no answer or a later one is asked for, and Refused with `refused`, or with
    credentials_refused.
    """
    headers = {"Content-Type": content_type, "Accept": accept}
    try:
        with http_client(peer, url) as client:
            answer = client.post(url, content=content, headers=headers)
    except httpx.TransportError:
        raise DestinationAway from None
    if answer.status_code in TRY_LATER:
        raise DestinationAway
    if answer.status_code in NOT_LET_IN:
        raise Refused("credentials_refused")
    if not answer.is_success:
        raise Refused(refused)
    try:
        return answer.json()
    except ValueError:
        return None
