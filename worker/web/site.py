"""The web site: the context that its pages show, their templates, and the pictures of films."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from worker.context import Context
from worker.reasons import sentence
from worker.web.images import Pictures
from worker.wording import clock, counted, day, in_words, moment, number, percent, waited


@dataclass
class Site:
    """What every page needs. `first_token`: opens the page that makes the first user; None once there is one."""

    context: Context
    pictures: Pictures
    templates: Environment
    first_token: str | None = None


def templates() -> Environment:
    """The pages' templates. Autoescaped: what came in a header, or a reader's name, is text and nothing else."""
    environment = Environment(
        loader=PackageLoader("worker.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"percent": percent, "number": number, "day": day, "moment": moment, "clock": clock}
    environment.filters.update(filters, words=in_words, counted=counted, sentence=sentence, waited=_waited)
    environment.globals.update(static=static_address, version=version("nightread"))
    return environment


def _waited(since: datetime) -> str:
    return waited(datetime.now(UTC) - since)


@cache
def static_address(name: str) -> str:
    """A static file's address, which changes with its content: browsers may keep it."""
    content = (files("worker.web") / "static" / name).read_bytes()
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"
