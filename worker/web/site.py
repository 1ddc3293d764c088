"""The web site: the context that its pages show, their templates, and the pictures of films."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cache, partial
from importlib.metadata import version
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from worker.context import Context
from worker.reasons import sentence
from worker.web.images import Pictures
from worker.wording import clock, counted, in_words, moment, number, percent, times, waited


@dataclass
class Site:
    """Objects of every page. `first_token`: opens the page that makes the first user; None once there is one."""

    context: Context
    pictures: Pictures
    templates: Environment
    first_token: str | None = None


def templates(zone: tzinfo | None) -> Environment:
    """The pages' templates, which show moments in this time zone (None: the machine's).

    Autoescaped: what came in a header, or a reader's name, is text and nothing else.
    """
    environment = Environment(
        loader=PackageLoader("worker.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    in_zone = {each.__name__: partial(each, zone=zone) for each in (moment, clock, stamp, second)}
    environment.filters.update(percent=percent, number=number, counted=counted, words=in_words, sentence=sentence)
    environment.filters.update(**in_zone, waited=_waited, times=times)
    environment.globals.update(static=static_address, version=version("nightread"))
    return environment


def _waited(since: datetime) -> str:
    return waited(datetime.now(UTC) - since)


def stamp(time: datetime | None, zone: tzinfo | None = None) -> str:
    """A moment in a table, where columns must align."""
    return "–" if time is None else f"{time.astimezone(zone):%Y-%m-%d %H:%M}"


def second(time: datetime, zone: tzinfo | None = None) -> str:
    """Time of day to the second."""
    return f"{time.astimezone(zone):%H:%M:%S}"


@cache
def static_address(name: str) -> str:
    """A static file's address, which changes with its content: browsers may keep it."""
    content = (files("worker.web") / "static" / name).read_bytes()
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"
