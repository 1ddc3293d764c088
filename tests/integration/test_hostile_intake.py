"""One hostile file costs one rejection: it ends no intake, hides no neighbour, and is named."""

import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text

from db import roles, schema
from db.models import Instance, RejectedFile
from db.session import make_engine, read_scope
from tests.support.dicom_files import make_film, save
from tests.support.hostile_headers import SEQUENCE_END, element, item, nested_views, spliced
from tests.support.values import present
from worker import doctor
from worker.context import Context
from worker.intake import header
from worker.intake import receive as intake
from worker.intake.receive import find_files, receive


def rejected(context) -> dict[str, str]:
    """The name of each rejected file -> its reason."""
    with read_scope(context.engine) as session:
        rows = session.execute(select(RejectedFile.path, RejectedFile.reason))
        return {Path(path).name: reason for path, reason in rows}


MANY_VALUES = b"1\\" * 4_000_000
HOSTILE = {
    "views 490 deep": nested_views(490),
    "views 3,000 deep": nested_views(3000),
    "4 million values": element((0x0018, 0x1400), "UC", MANY_VALUES),
    "4 million values in an item": element((0x0008, 0x1032), "SQ", item(element((0x0008, 0x0104), "UC", MANY_VALUES))),
    "4 million values in a sequence without length": element(
        (0x0008, 0x1032), "SQ", item(element((0x0008, 0x0104), "UC", MANY_VALUES)) + SEQUENCE_END, undefined_length=True
    ),
    "4 million character sets": element((0x0008, 0x0005), "UC", MANY_VALUES),
    "a million elements": element((0x0008, 0x1032), "SQ", item(element((0x0008, 0x0104), "LO", b"") * 1_000_000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_costs_a_second_and_no_neighbour(name: str, embedded, tmp_path):
    make_film(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(spliced(make_film(), HOSTILE[name], before=(0x0018, 0x0015)))
    make_film(tmp_path / "c.dcm")
    began = time.process_time()
    received = receive(embedded, [tmp_path])
    assert time.process_time() - began < 2
    assert received.files == 3
    assert received.new_instances + received.rejected == 3
    assert received.new_instances >= 2
    assert set(rejected(embedded)) <= {"b.dcm"}


def test_a_file_whose_header_raises_anything_is_rejected_alone_and_by_name(context, tmp_path, monkeypatch):
    films = [make_film(tmp_path / f"{name}.dcm") for name in "abc"]
    real = header.arrival_of

    def arrival_of(header, **kwargs):
        if header.SOPInstanceUID == films[1].SOPInstanceUID:
            raise RecursionError
        return real(header, **kwargs)

    monkeypatch.setattr(intake, "arrival_of", arrival_of)
    received = receive(context, [tmp_path])
    assert (received.new_instances, received.rejected) == (2, 1)
    assert rejected(context) == {"b.dcm": "header_raised"}


def test_folders_nested_a_thousand_deep_are_searched_to_the_bottom(tmp_path, monkeypatch):
    (tmp_path / "e").touch()
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")  # noqa: PTH102 - a path so long is built step by step
        os.chdir("d")
    Path("film").touch()
    assert [path.name for path in find_files([tmp_path])] == ["e", "film"]
    Path("film").unlink()  # what follows recurses, in pytest's own cleaning
    for _ in range(1200):
        os.chdir("..")
        os.rmdir("d")  # noqa: PTH106


def test_files_come_in_the_order_of_their_names_those_of_a_folder_before_its_folders(tmp_path):
    for name in ("b/2", "b/1", "a/x/3", "a/0", "c", "B"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_files([tmp_path])]
    assert found == ["B", "c", "a/0", "a/x/3", "b/1", "b/2"]


def test_a_closed_folder_is_named_as_one_until_it_is_open(context, tmp_path, monkeypatch):
    make_film(tmp_path / "a.dcm")
    (tmp_path / "closed").mkdir()
    make_film(tmp_path / "closed" / "b.dcm")
    real = os.scandir

    def scandir(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    with monkeypatch.context() as patch:  # the superuser, who runs tests in containers, may list any folder
        patch.setattr(os, "scandir", scandir)
        assert receive(context, [tmp_path]).new_instances == 1
    assert rejected(context) == {"closed": "folder_closed"}
    assert receive(context, [tmp_path]).new_instances == 1
    assert rejected(context) == {}


def test_a_link_to_a_folder_says_that_it_was_not_followed(embedded, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "films")
    receive(embedded, [tmp_path])
    assert rejected(embedded) == {"link": "folder_link"}


@pytest.mark.parametrize("swapped", ["file", "folder", "pipe"])
def test_what_is_swapped_in_while_files_are_read_leads_out_of_no_root(swapped: str, embedded, tmp_path):
    """A sender swaps a film, or its folder, for a link to another patient's (or a pipe), again and again."""
    secret = make_film(SOPInstanceUID="1.2.3.4")
    roots, outside = tmp_path / "in", tmp_path / "out"
    for folder in (roots / "films", outside / "films"):
        folder.mkdir(parents=True)
    save(secret, outside / "films" / "a.dcm")
    make_film(roots / "films" / "a.dcm", SOPInstanceUID="1.2.3.5")
    settings = embedded.settings.model_copy(update={"roots": (str(roots),)})
    context = Context(settings)
    place = roots / "films" if swapped == "folder" else roots / "films" / "a.dcm"
    kept, bait = tmp_path / "kept", tmp_path / "bait"
    if swapped == "pipe":
        os.mkfifo(bait)
    else:
        bait.symlink_to(outside / place.relative_to(roots))
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            place.rename(kept)
            bait.rename(place)
            place.rename(bait)
            kept.rename(place)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        arrivals = [intake.read_arrival(context, roots / "films" / "a.dcm", "00" * 32) for _ in range(2000)]
    finally:
        stop.set()
        swapper.join()
    uids = {arrival.instance["sop_instance_uid"] for arrival in arrivals if hasattr(arrival, "instance")}
    assert uids <= {"1.2.3.5"}
    assert len(uids) == 1


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused(postgres_server_url: str, settings, encoding):
    server = create_engine(postgres_server_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE other ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'"))
    url = server.url.set(database="other").render_as_string(hide_password=False)
    engine = make_engine(url)
    try:
        with pytest.raises(schema.WrongEncoding, match=encoding):
            schema.upgrade(engine)
        with pytest.raises(schema.WrongEncoding, match=encoding):
            roles.create_roles(engine, dict.fromkeys(roles.ROLES, "secret"))
        results = doctor.examine(Context(settings.model_copy(update={"database_url": url})))
        checked = next(result for result in results if result.name == "database")
        assert not checked.ok
        assert "ENCODING 'UTF8'" in checked.text
    finally:
        engine.dispose()
        with server.connect() as connection:
            connection.execute(text("DROP DATABASE other WITH (FORCE)"))


def test_no_text_of_a_header_is_lost_in_the_database(context, tmp_path):
    make_film(
        tmp_path / "a.dcm", SpecificCharacterSet="ISO_IR 192", SeriesDescription="胸部 正面 PA 🫁", view_position=None
    )
    receive(context, [tmp_path])
    with read_scope(context.engine) as session:
        assert "胸部" in present(session.scalars(select(Instance.evidence)).one())
