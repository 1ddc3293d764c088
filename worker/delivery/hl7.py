"""An HL7 v2.5.1 message (ORU^R01) over MLLP, in UTF-8.

Framing and acknowledgement are our own: 0x0B, the message, 0x1C 0x0D. An answer may come in pieces, late or never.
"""

import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

from worker.delivery.errors import DestinationAway, Refused
from worker.delivery.identifiers import device_uid, message_id
from worker.delivery.result import NOT_FOR_DIAGNOSIS, FindingResult, Result
from worker.peers import ANSWER_SECONDS, CONNECT_SECONDS, tls_of
from worker.setting_peers import Peer

BEGIN, END = b"\x0b", b"\x1c\x0d"
MOST_ANSWER_BYTES: Final = 64 * 1024
ESCAPES: Final = {
    "\\": "\\E\\",
    "|": "\\F\\",
    "^": "\\S\\",
    "&": "\\T\\",
    "~": "\\R\\",
    "\r": "\\X0D\\",
    "\n": "\\X0A\\",
}
PRELIMINARY: Final = "P"  # of a result that nobody has verified (tables 0085 and 0123)
OUR_CODES: Final = "99NIGHTREAD"
ACCEPTED, IN_ERROR, REJECTED = ("AA", "CA"), ("AE", "CE"), ("AR", "CR")  # table 0008


# --------------------------------------------------------------------------------------------------------- message


def message(result: Result, *, url: str, sender: str) -> bytes:
    """The message of one result, in the order PID, OBR, NTE, OBX. `url`: mllp://host:port/APPLICATION/FACILITY.

    The notes stand behind OBR and so hold for all of it: behind an OBX they would be that finding's alone.
    """
    segments = [_header(result, url=url, sender=sender), _patient(result), _order(result)]
    notes = [NOT_FOR_DIAGNOSIS, "Unverified: no person has looked at it."]
    if result.predecessor is not None:
        notes.append(f"Replaces message {message_id(result.predecessor.object_uid)}.")
    segments += [_segment("NTE", str(n), "", note) for n, note in enumerate(notes, start=1)]
    segments += [_observation(n, *each, result=result) for n, each in enumerate(_observations(result), start=1)]
    return ("\r".join(segments) + "\r").encode()


def escaped(text: str) -> str:
    """Text without the separators, and without what would end a segment (HL7 v2.5.1 chapter 2.7)."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def _segment(name: str, *fields: str | tuple[str, ...]) -> str:
    """A segment; a tuple is a field's components."""
    return "|".join((name, *map(_field, fields))).rstrip("|")


def _field(value: str | tuple[str, ...]) -> str:
    return escaped(value) if isinstance(value, str) else "^".join(map(escaped, value)).rstrip("^")


def _header(result: Result, *, url: str, sender: str) -> str:
    application, _, facility = urlsplit(url).path.strip("/").partition("/")
    parties = ("", sender, "", application, facility)
    kind = ("ORU", "R01", "ORU_R01")
    identity = (message_id(result.object_uid), "P", "2.5.1", "", "", "", "", "", "UNICODE UTF-8")
    fields = _segment("MSH", *parties, _time(result.published_at), "", kind, *identity)
    return fields.replace("MSH|", "MSH|^~\\&", 1)


def _patient(result: Result) -> str:
    patient = result.patient
    identifier = (str(patient.PatientID), "", "", str(patient.IssuerOfPatientID), "MR")
    name = patient.PatientName
    names = (name.family_name, name.given_name, name.middle_name, name.name_suffix, name.name_prefix)
    return _segment("PID", "1", "", identifier, "", names, "", str(patient.PatientBirthDate), str(patient.PatientSex))


def _order(result: Result) -> str:
    patient, at = result.patient, _time(result.published_at)
    taken = f"{patient.StudyDate}{patient.StudyTime}".partition(".")[0] if patient.StudyDate else ""
    service = ("chest-film", "Chest film, AI result", OUR_CODES)
    accession = str(patient.AccessionNumber)
    return _segment("OBR", "1", accession, accession or result.study_instance_uid, service, "", "", taken, *[""] * 14,
                    at, "", "RAD", PRELIMINARY)  # fmt: skip


Observation = tuple[str, tuple[str, ...], str, tuple[str, ...], str, str]  # type, code, value, unit, range, flag


def _observations(result: Result) -> list[Observation]:
    no_unit = ("1", "no units", "UCUM")
    study = ("110180", "Study Instance UID", "DCM")
    urgency, category = ("urgency", "Urgency", OUR_CODES), ("category", "Urgency category", OUR_CODES)
    return [
        ("ST", study, result.study_instance_uid, (), "", ""),
        ("ST", category, result.category, (), "", ""),
        ("NM", urgency, f"{result.urgency:.6f}", no_unit, "", ""),
        *(_finding(finding, no_unit) for finding in result.findings),
    ]


def _finding(finding: FindingResult, unit: tuple[str, ...]) -> Observation:
    scheme = OUR_CODES if finding.snomed_ct is None else "SCT"
    code = (finding.snomed_ct or finding.finding, finding.words, scheme)
    below, flag = "", ""  # without a threshold nothing says whether it is normal
    if finding.threshold is not None:
        below, flag = f"<{finding.threshold:.6f}", "A" if finding.counts else "N"
    return ("NM", code, f"{finding.probability:.6f}", unit, below, flag)


def _observation(
    number: int, kind: str, code: tuple[str, ...], value: str, unit: tuple[str, ...], below: str, flag: str,
    *, result: Result,
) -> str:  # fmt: skip
    device = (result.checkpoint_digest[:16], "", str(device_uid(result.checkpoint_digest)), "ISO")
    model = (f"{result.network} {result.version}, Nightread {version('nightread')}",)
    return _segment("OBX", str(number), kind, code, "", value, unit, below, flag, "", "", PRELIMINARY, "", "",
                    _time(result.published_at), "", "", model, device)  # fmt: skip


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y%m%d%H%M%S}+0000"


# -------------------------------------------------------------------------------------------------------- transport


def send_message(peer: Peer, content: bytes, *, control_id: str) -> None:
    """Send one message and wait for its acknowledgement. Raises DestinationAway for silence, Refused for AE and AR."""
    deadline = time.monotonic() + CONNECT_SECONDS + ANSWER_SECONDS
    try:
        with connected(peer) as connection:
            connection.sendall(BEGIN + content + END)
            answer = _framed(connection, deadline)
    except OSError:  # a refused connection, a broken one, silence, TLS
        raise DestinationAway from None
    judge(answer.decode(errors="replace"), control_id=control_id)


def connected(peer: Peer) -> socket.socket:
    """A connection to a peer that takes messages, after the TLS handshake by mllps://. Raises OSError."""
    url = urlsplit(peer.mllp or "")
    connection = socket.create_connection((url.hostname, url.port), timeout=CONNECT_SECONDS)
    if url.scheme == "mllp":
        return connection
    try:
        return tls_of(peer).wrap_socket(connection, server_hostname=url.hostname)
    except BaseException:
        connection.close()
        raise


def _framed(connection: socket.socket, deadline: float) -> bytes:
    """The message between a frame's first byte and its end, however many pieces it comes in.

    0x1C is the end: it stands in no message, and some peers send no 0x0D after it.
    """
    received, end = b"", END[:1]
    while end not in received:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(4096)
        if not piece or len(received) > MOST_ANSWER_BYTES:
            raise ConnectionError
        received += piece
    return received.partition(end)[0].rpartition(BEGIN)[2]


def judge(answer: str, *, control_id: str) -> None:
    """Whether an acknowledgement accepts the message. Raises Refused; the answer's own words are not passed on."""
    code, said_id = _acknowledged(answer)
    if code in IN_ERROR:
        raise Refused("ack_error")
    if code in REJECTED:
        raise Refused("ack_rejected")
    if code not in ACCEPTED or said_id != control_id:
        raise Refused("ack_unreadable")


def _acknowledged(answer: str) -> tuple[str, str]:
    """MSA-1 and MSA-2, nothing where there is no MSA segment."""
    for segment in answer.replace("\n", "\r").split("\r"):
        with suppress(ValueError):
            name, code, control_id, *_ = segment.split(answer[3:4] or "|")
            if name.strip() == "MSA":
                return code.strip(), control_id.strip()
    return "", ""
