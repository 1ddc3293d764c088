"""A backup that was never restored is a hope: the worklist must come back the same."""

import os
import sqlite3
import subprocess
from pathlib import Path

from sqlalchemy import make_url

from db import schema
from db.session import make_engine, read_scope
from db.worklist import worklist
from tests.support.dicom_files import make_film, texture
from tests.support.servers import PostgresServer
from worker.context import Context
from worker.intake.receive import receive
from worker.scoring.pipeline import open_scorer, score_waiting
from worker.settings import Settings


def scored_house(settings: Settings, folder: Path) -> Context:
    for i in range(4):
        make_film(folder / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    make_film(folder / "lateral.dcm", view_position="LL")
    make_film(folder / "broken.dcm", PixelData=b"\0\0")
    context = Context(settings)
    receive(context, [folder])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")
    return context


def the_list(context: Context) -> list[dict]:
    with read_scope(context.engine) as session:
        return [dict(row) for row in worklist(session)]


def test_a_dump_of_postgres_restored_elsewhere_has_the_same_worklist(
    settings: Settings, own_postgres: PostgresServer, tmp_path: Path
):
    schema.upgrade(make_engine(own_postgres.url))
    context = scored_house(settings.model_copy(update={"database_url": own_postgres.url}), tmp_path)
    before = the_list(context)
    assert len(before) == 6
    context.engine.dispose()

    def tool(name: str, *words: str) -> None:
        address = ["--host=127.0.0.1", f"--port={own_postgres.port}", "--username=postgres"]
        environment = os.environ | {"PGPASSWORD": own_postgres.password}
        subprocess.run([own_postgres.program(name), *address, *words], env=environment, check=True)

    dump = tmp_path / "nightread.dump"
    tool("pg_dump", "--format=custom", f"--file={dump}", "postgres")
    tool("createdb", "restored")
    tool("pg_restore", "--dbname=restored", "--exit-on-error", str(dump))
    url = make_url(own_postgres.url).set(database="restored").render_as_string(hide_password=False)
    restored = Context(settings.model_copy(update={"database_url": url}))
    assert the_list(restored) == before
    assert receive(restored, [tmp_path]).new_instances == 0, "what is restored is known"
    restored.engine.dispose()


def test_a_copy_of_sqlite_made_while_it_is_in_use_has_the_same_worklist(settings: Settings, tmp_path: Path):
    context = scored_house(settings, tmp_path)
    before = the_list(context)
    file = settings.database_url.removeprefix("sqlite:///")
    with sqlite3.connect(file) as source, sqlite3.connect(tmp_path / "copy.db") as copy:
        source.backup(copy)  # what the sqlite3 program's .backup does
    restored = Context(settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'copy.db'}"}))
    assert the_list(restored) == before
