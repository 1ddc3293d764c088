"""A backup that was never restored is a hope: the worklist must come back the same."""

import os
import sqlite3
import subprocess
from pathlib import Path

from sqlalchemy import make_url

from db.session import read_scope
from db.worklist import worklist
from tests.support.contexts import MakeContext, with_settings
from tests.support.dicom_files import make_film, texture
from tests.support.servers import PostgresServer
from worker.context import Context
from worker.intake.receive import receive
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer


def score(context: Context, folder: Path) -> None:
    for i in range(4):
        make_film(folder / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    make_film(folder / "lateral.dcm", view_position="LL")
    make_film(folder / "broken.dcm", PixelData=b"\0\0")
    receive(context, [folder])
    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")


def the_list(context: Context) -> list[dict]:
    with read_scope(context.engine) as session:
        return [dict(row) for row in worklist(session)]


def test_a_dump_of_postgres_restored_elsewhere_has_the_same_worklist(
    make_context: MakeContext, own_postgres: PostgresServer, tmp_path: Path
):
    context = make_context(database_url=own_postgres.url)
    score(context, tmp_path)
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
    restored = with_settings(context, database_url=url)
    assert the_list(restored) == before
    assert receive(restored, [tmp_path]).new_instances == 0, "what is restored is known"
    restored.engine.dispose()


def test_a_copy_of_sqlite_made_while_it_is_in_use_has_the_same_worklist(embedded: Context, tmp_path: Path):
    score(embedded, tmp_path)
    before = the_list(embedded)
    file = embedded.settings.database_url.removeprefix("sqlite:///")
    with sqlite3.connect(file) as source, sqlite3.connect(tmp_path / "copy.db") as copy:
        source.backup(copy)  # what the sqlite3 program's .backup does
    restored = with_settings(embedded, database_url=f"sqlite:///{tmp_path / 'copy.db'}")
    assert the_list(restored) == before
