"""A backup that was never restored is a hope: the worklist must come back the same."""

import os
import sqlite3
import subprocess
from pathlib import Path

from dicom_files import make_film, texture
from servers import PostgresServer
from sqlalchemy import make_url

from db import schema
from db.session import make_engine, read_scope
from db.worklist import worklist
from worker.house import House
from worker.intake import receive
from worker.scoring import open_scorer, score_waiting
from worker.settings import Settings


def scored_house(settings: Settings, folder: Path) -> House:
    for i in range(4):
        make_film(folder / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    make_film(folder / "lateral.dcm", view_position="LL")
    make_film(folder / "broken.dcm", PixelData=b"\0\0")
    house = House(settings)
    receive(house, [folder])
    with open_scorer(house) as scorer:
        score_waiting(scorer, kind="score")
    return house


def the_list(house: House) -> list[dict]:
    with read_scope(house.engine) as session:
        return [dict(row) for row in worklist(session)]


def test_a_dump_of_postgres_restored_elsewhere_has_the_same_worklist(
    settings: Settings, own_postgres: PostgresServer, tmp_path: Path
):
    schema.upgrade(make_engine(own_postgres.url))
    house = scored_house(settings.model_copy(update={"database_url": own_postgres.url}), tmp_path)
    before = the_list(house)
    assert len(before) == 6
    house.engine.dispose()

    def tool(name: str, *words: str) -> None:
        address = ["--host=127.0.0.1", f"--port={own_postgres.port}", "--username=postgres"]
        environment = os.environ | {"PGPASSWORD": own_postgres.password}
        subprocess.run([own_postgres.program(name), *address, *words], env=environment, check=True)

    dump = tmp_path / "nightread.dump"
    tool("pg_dump", "--format=custom", f"--file={dump}", "postgres")
    tool("createdb", "restored")
    tool("pg_restore", "--dbname=restored", "--exit-on-error", str(dump))
    url = make_url(own_postgres.url).set(database="restored").render_as_string(hide_password=False)
    restored = House(settings.model_copy(update={"database_url": url}))
    assert the_list(restored) == before
    assert receive(restored, [tmp_path]).new_instances == 0, "what is restored is known"
    restored.engine.dispose()


def test_a_copy_of_sqlite_made_while_it_is_in_use_has_the_same_worklist(settings: Settings, tmp_path: Path):
    house = scored_house(settings, tmp_path)
    before = the_list(house)
    file = settings.database_url.removeprefix("sqlite:///")
    with sqlite3.connect(file) as source, sqlite3.connect(tmp_path / "copy.db") as copy:
        source.backup(copy)  # what the sqlite3 program's .backup does
    restored = House(settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'copy.db'}"}))
    assert the_list(restored) == before
