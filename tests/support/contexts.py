"""Application contexts for tests: one way to make them, on whatever database and with whatever settings."""

from pathlib import Path
from typing import Any, Protocol

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
    engine = make_engine(settings.database_url)
    schema.upgrade(engine)
    engine.dispose()
    if champion is not None:
        Context(settings.changed(checkpoint=champion)).seed()
    return Context(settings)
