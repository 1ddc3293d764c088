"""Application contexts for tests: one way to make them, on whatever database and with whatever settings."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import make_url

from db import schema
from db.session import make_engine
from worker.context import Context
from worker.settings import Settings


class MakeContext(Protocol):
    """The fixture `make_context`."""

    def __call__(self, **settings: Any) -> Context: ...


def with_settings(context: Context, **changes: Any) -> Context:
    """Another context of the same site, with some settings changed."""
    return Context(context.settings.changed(**changes))


def site_settings(folder: Path, **changes: Any) -> Settings:
    """Settings of a small site in a folder of its own: on SQLite, without a broker, unless `changes` say otherwise."""
    settings = Settings(
        database_url=f"sqlite:///{folder / 'nightread.db'}",
        state_folder=folder,
        decoders=1,
        batch_size=4,
        device="cpu",
    )
    return settings.changed(**changes)


def seeded_context(settings: Settings, *, champion: Path | None) -> Context:
    """A context on a database with the schema and, unless None, a registered champion that no setting names."""
    bring_schema(settings.database_url)
    if champion is not None:
        Context(settings.changed(checkpoint=champion)).seed()
    return Context(settings)


def bring_schema(url: str) -> None:
    """Today's schema, in a database that may have it; on SQLite as a copy, which costs next to nothing."""
    file = Path(make_url(url).database or "")
    if url.startswith("sqlite:") and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_file_with_schema())
        return
    engine = make_engine(url)
    if schema.current_revision(engine) != schema.head_revision():
        schema.upgrade(engine)
    engine.dispose()


@cache
def _file_with_schema() -> bytes:
    """An SQLite file that the migrations made."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nightread.db")
        engine = make_engine(f"sqlite:///{file}")
        schema.upgrade(engine)
        engine.dispose()
        return file.read_bytes()
