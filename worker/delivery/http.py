"""HTTP to an archive or a server of records: what its answer means for a delivery."""

import json
import time
from typing import Any, Final

import httpx

from worker.delivery.errors import DestinationAway, Refused
from worker.peers import http_client
from worker.reasons import ReasonCode
from worker.setting_peers import Peer

TRY_LATER: Final = {408, 425, 429, 502, 503, 504}
NOT_LET_IN: Final = {401, 403}
CONFLICT: Final = 409
MOST_ANSWER_BYTES: Final = 4 * 2**20
MOST_SECONDS: Final = 300.0  # for a whole answer: a lease lasts longer


class Conflict(Refused):
    """An answer of HTTP 409; `answer` is its JSON, None where it is none."""

    def __init__(self, reason: ReasonCode, answer: Any) -> None:
        super().__init__(reason)
        self.answer = answer


def post(peer: Peer, url: str, content: bytes, *, content_type: str, accept: str, refused: ReasonCode) -> Any:
    """POST, and the answer's JSON, None where it is none.

    Raises DestinationAway where there is no answer or a later one is asked for, and Refused with `refused` (Conflict
    for HTTP 409), or with credentials_refused.
    """
    headers = {"Content-Type": content_type, "Accept": accept}
    deadline = time.monotonic() + MOST_SECONDS
    try:
        with http_client(peer, url) as client, client.stream("POST", url, content=content, headers=headers) as answer:
            _check(answer, refused)
            said = _json(_read(answer, refused, deadline))
            if answer.status_code == CONFLICT:
                raise Conflict(refused, said)
            return said
    except httpx.TransportError:
        raise DestinationAway from None


def _check(answer: httpx.Response, refused: ReasonCode) -> None:
    if answer.status_code in TRY_LATER:
        raise DestinationAway
    if answer.status_code in NOT_LET_IN:
        raise Refused("credentials_refused")
    if not answer.is_success and answer.status_code != CONFLICT:
        raise Refused(refused)


def _read(answer: httpx.Response, refused: ReasonCode, deadline: float) -> bytes:
    """The whole answer, of bounded size, in bounded time."""
    content = bytearray()
    for block in answer.iter_bytes():
        content += block
        if len(content) > MOST_ANSWER_BYTES:
            raise Refused(refused)
        if time.monotonic() > deadline:
            raise DestinationAway
    return bytes(content)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
