"""Types of single settings: what a value may be, and the error for one that cannot be used."""

import ipaddress
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator

from worker.pacing import per_minute_of, window_of

PREFIX = "NIGHTREAD_"  # of every environment variable
PLACEHOLDERS = ("study_instance_uid", "accession_number")  # of a viewer's address


def _crontab(value: str) -> str:
    """Empty, or five fields that Celery understands; it is imported only where a schedule is set."""
    if value:
        from celery.schedules import crontab

        if len(value.split()) != 5:
            raise ValueError("a schedule has five fields (minute hour day month weekday), such as 0 22 * * 6")
        crontab.from_string(value)  # raises ValueError, in Celery's words
    return value


def _window(value: str) -> str:
    """Empty, or hours of the day."""
    if value:
        window_of(value)  # raises ValueError with a sentence
    return value


def _rate(value: str) -> str:
    if value:
        per_minute_of(value)
    return value


def _time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # OSError: "Europe", which is a folder
        near = get_close_matches(value, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "one is called Europe/Berlin"
        raise ValueError(f"no such time zone; {hint}") from None
    return value


def _parts(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if value and not parts:  # for roots, an empty list would mean: anywhere
        raise ValueError("nothing stands between the commas")
    return parts


def _unset(value: object) -> object:
    return None if value == "" else value


def _modality(value: str) -> str:
    if not re.fullmatch("[A-Z0-9_]{1,16}", value):
        raise ValueError("a modality is written in capitals, such as DX")
    return value


def _word(value: str) -> str:
    if len(value) > 64 or sum(map(str.isalnum, value)) < 2 or "*" in value[:-1]:
        raise ValueError("a word has 2 to 64 characters, two letters or digits among them, and a star only at its end")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError("a device is auto, cpu, cuda, cuda:1 or mps")
    return value


def _absolute(value: str) -> str:
    if not Path(value).is_absolute():
        raise ValueError("a folder is named by its absolute path")
    return value


def _address(value: str) -> str:
    ipaddress.ip_address(value)  # raises ValueError with a sentence
    return value


def _network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


def _title(value: str) -> str:
    """An application entity title: PS3.5 table 6.2-1, VR AE."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", value) or value != value.strip():
        raise ValueError("an AE title has 1 to 16 characters and no backslash")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", value.lower()):
        raise ValueError("a host is named without scheme and port, as nightread.hospital.example")
    return value.lower()


def _issuer(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s?#]+", value):
        raise ValueError("an issuer is an address such as https://login.hospital.example/realms/staff")
    return value


def _viewer(value: str) -> str:
    places = re.findall(r"\{(.*?)\}", value)
    if not re.match(r"https?://[^/{}\s]+", value) or not places or not set(places) <= set(PLACEHOLDERS):
        raise ValueError("write it as https://pacs.example/viewer?StudyInstanceUIDs={study_instance_uid}; "
                         "{accession_number} is the other placeholder")  # fmt: skip
    return value


Schedule = Annotated[str, AfterValidator(_crontab)]
WindowText = Annotated[str, AfterValidator(_window)]
RateText = Annotated[str, AfterValidator(_rate)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Empty = BeforeValidator(_unset)  # an empty variable is an unset one
Commas = BeforeValidator(_parts)
Modality = Annotated[str, AfterValidator(_modality)]
Device = Annotated[str, AfterValidator(_device)]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
Title = Annotated[str, AfterValidator(_title)]
Host = Annotated[str, AfterValidator(_host)]
Issuer = Annotated[str, AfterValidator(_issuer)]
ViewerUrl = Annotated[str, AfterValidator(_viewer)]
Word = Annotated[str, AfterValidator(_word)]
Folder = Annotated[str, AfterValidator(_absolute)]


def sentence(message: str) -> str:
    """A validator's message without pydantic's words before it."""
    return message.removeprefix("Value error, ")
