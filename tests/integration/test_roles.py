"""Database roles on a real server: the reader reads the morning and cannot read a patient."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import yaml
from sqlalchemy import Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from db import roles, schema
from db.base import database_now
from db.models import Instance, InstanceVersion, Study
from db.session import make_engine
from tests.support.contexts import site_settings
from tests.support.crew import wait_until
from tests.support.servers import PostgresServer
from tests.support.web import Visitor, add_night, csrf_on
from worker.context import Context
from worker.web.app import create_app

PASSWORDS = {role: f"canary'{role}\"; %" for role in roles.ROLES}


@dataclass(frozen=True)
class Site:
    server: PostgresServer
    admin: Engine

    def as_role(self, role: str, *, password: str | None = None) -> Engine:
        url = make_url(self.server.url).set(username=role, password=password or PASSWORDS[role])
        return create_engine(url)


@pytest.fixture(scope="module")
def site(module_postgres: PostgresServer) -> Iterator[Site]:
    """A database made as docker/compose.yaml makes it: roles first, then the schema by the role that owns it."""
    admin = make_engine(module_postgres.url)
    site = Site(module_postgres, admin)
    roles.create_roles(admin, PASSWORDS)
    migrate = site.as_role(roles.MIGRATE)
    schema.upgrade(migrate)
    migrate.dispose()
    yield site
    admin.dispose()


def denied(engine: Engine, statement: str) -> bool:
    """Whether the server refuses this for want of a right (and not for any other reason)."""
    with engine.connect() as connection:
        try:
            connection.execute(text(statement))
        except ProgrammingError as error:
            return "permission denied" in str(error)
    return False


def test_reader_reads_every_view(site: Site) -> None:
    reader = site.as_role(roles.READER)
    views = set(inspect(site.admin).get_view_names())
    assert {"worklist", "study_findings", "finding_score"} <= views
    with reader.connect() as connection:
        for view in views - {roles.SCALER_READS}:
            assert connection.execute(text(f"SELECT * FROM {view}")).all() == []  # noqa: S608
    reader.dispose()


def test_scaler_reads_how_many_studies_wait_and_nothing_else(site: Site) -> None:
    scaler = site.as_role(roles.SCALER)
    schema = inspect(site.admin)
    others = {*schema.get_view_names(), *schema.get_table_names()} - {roles.SCALER_READS}
    assert [each for each in others if not denied(scaler, f"SELECT * FROM {each}")] == []  # noqa: S608
    scaler.dispose()


def test_keda_is_told_how_many_studies_wait(site: Site) -> None:
    """The manifest's own question, at an address as KEDA takes it, as the role that KEDA has."""
    manifests = Path(__file__).parents[2] / "docker/kubernetes/worker.yaml"
    (scaler,) = (each for each in yaml.safe_load_all(manifests.read_text()) if each["kind"] == "ScaledObject")
    (trigger,) = scaler["spec"]["triggers"]
    login = f"{roles.SCALER}:{quote(PASSWORDS[roles.SCALER])}"
    server = f"{site.server.address}:{site.server.port}/postgres"
    with psycopg.connect(f"postgresql://{login}@{server}", autocommit=True) as keda:
        assert keda.execute(trigger["metadata"]["query"]).fetchall() == [(0,)]
        with Session(site.admin) as session:
            session.add(Study(study_instance_uid="2.25.77", received_at=database_now(session), state="waiting"))
            session.commit()
            assert keda.execute(trigger["metadata"]["query"]).fetchall() == [(1,)]
            session.execute(text("DELETE FROM study WHERE study_instance_uid = '2.25.77'"))
            session.commit()
        assert keda.execute(trigger["metadata"]["query"]).fetchall() == [(0,)]


def test_reader_leaves_the_workers_their_connections(site: Site) -> None:
    with site.admin.connect() as connection:
        limit = text("SELECT rolconnlimit FROM pg_roles WHERE rolname = :role")
        assert connection.scalar(limit, {"role": roles.READER}) == roles.READERS


def test_an_upgrade_gives_up_where_somebody_holds_its_lock(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "UPGRADE_WAITS", "1s")
    reader, migrate = site.as_role(roles.READER), site.as_role(roles.MIGRATE)
    with reader.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": schema.UPGRADE_LOCK})
        with pytest.raises(OperationalError, match="lock timeout"):
            schema.upgrade(migrate)
    reader.dispose()
    migrate.dispose()


def test_reader_reads_no_table_and_so_no_patient(site: Site) -> None:
    reader = site.as_role(roles.READER)
    tables = inspect(site.admin).get_table_names()
    assert {"study", "instance", "site", "review"} <= set(tables)
    assert [table for table in tables if not denied(reader, f"SELECT * FROM {table}")] == []  # noqa: S608
    assert denied(reader, "SELECT patient_key FROM study")
    reader.dispose()


def test_reader_changes_nothing_even_after_it_leaves_read_only_mode(site: Site) -> None:
    reader = site.as_role(roles.READER)
    with reader.connect() as connection:
        connection.execute(text("SET default_transaction_read_only = off"))
        connection.commit()
        for statement in ("CREATE TABLE mine (id int)", "CREATE TEMP TABLE mine (id int)", "DELETE FROM study"):
            with pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text(statement))
            connection.rollback()
    reader.dispose()


@pytest.mark.parametrize("role", roles.ROLES)
def test_no_role_makes_large_objects(site: Site, role: str) -> None:
    engine = site.as_role(role)
    for call in ("lo_create(0)", "lo_creat(-1)", "lo_from_bytea(0, 'x')", "lo_open(1, 131072)", "lowrite(0, 'x')"):
        assert denied(engine, f"SELECT {call}")
    engine.dispose()


def _role_as_it_is(admin: Engine, role: str) -> tuple[object, ...]:
    """Its attributes, and the settings that its sessions start with, in all databases."""
    attributes = text(
        "SELECT rolcanlogin, rolinherit, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, "
        "rolconnlimit, CAST(rolvaliduntil AS text) FROM pg_roles WHERE rolname = :role"
    )
    settings = text(
        "SELECT s.setdatabase, s.setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole "
        "WHERE r.rolname = :role ORDER BY 1"
    )
    with admin.connect() as connection:
        named = {"role": role}
        return (*connection.execute(attributes, named).one(), *map(tuple, connection.execute(settings, named)))


def test_roles_mends_a_reader_that_was_changed(site: Site) -> None:
    before = _role_as_it_is(site.admin, roles.READER)
    reader, database = site.as_role(roles.READER), site.admin.url.database
    with reader.connect() as connection:
        connection.execute(text("SET default_transaction_read_only = off"))
        connection.commit()
        for change in (
            "SET search_path = nowhere",
            "SET statement_timeout = 1",
            f'IN DATABASE "{database}" SET search_path = nowhere',
            "RESET default_transaction_read_only",
            "PASSWORD 'mine now'",
        ):
            connection.execute(text(f"ALTER ROLE {roles.READER} {change}"))
        connection.commit()
    reader.dispose()
    with site.admin.begin() as connection:
        connection.execute(text(f"ALTER ROLE {roles.READER} NOLOGIN CREATEROLE CONNECTION LIMIT 0 VALID UNTIL 'now'"))
    roles.create_roles(site.admin, PASSWORDS)
    assert _role_as_it_is(site.admin, roles.READER) == before
    with site.as_role(roles.READER).connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM worklist")) == 0


def test_worker_writes_rows_but_changes_neither_schema_nor_history(site: Site) -> None:
    worker = site.as_role(roles.WORKER)
    with worker.begin() as connection:
        connection.execute(text("INSERT INTO rejected_file (path_digest, path, reason, received_at) "
                                "VALUES ('d', 'p', 'not_dicom', now())"))  # fmt: skip
        connection.execute(text("UPDATE rejected_file SET reason = 'empty_file'"))
        connection.execute(text("DELETE FROM rejected_file"))
        connection.execute(text("INSERT INTO audit (at, actor, action, detail) VALUES (now(), 'me', 'did', '{}')"))
    for statement in (
        "DROP TABLE study",
        "CREATE TABLE mine (id int)",
        "UPDATE audit SET actor = 'someone'",
        "DELETE FROM audit",
        "UPDATE alembic_version SET version_num = '0'",
    ):
        with worker.connect() as connection, pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
            connection.execute(text(statement))
    assert schema.current_revision(worker) == schema.head_revision()
    worker.dispose()


def test_worker_adds_versions_of_a_film_which_only_go_with_the_film(site: Site) -> None:
    worker = site.as_role(roles.WORKER)
    with Session(worker) as session:
        now = database_now(session)
        study = Study(study_instance_uid="1.2.1", state="skipped", received_at=now, stat=False)
        session.add(study)
        session.flush()
        film = Instance(study_id=study.id, sop_instance_uid="1.2.2", path="/p", state="skipped", received_at=now)
        session.add(film)
        session.flush()
        session.add(
            InstanceVersion(instance_id=film.id, path="/q", state="scored", cause="file_changed", replaced_at=now)
        )
        session.commit()
    for statement in ("UPDATE instance_version SET state = 'waiting'", "DELETE FROM instance_version"):
        assert denied(worker, statement)
    reader = site.as_role(roles.READER)
    with reader.connect() as connection:
        assert connection.execute(text("SELECT cause, state FROM film_history")).all() == [("file_changed", "scored")]
    with worker.begin() as connection:
        connection.execute(text("DELETE FROM study"))
        assert connection.scalar(text("SELECT count(*) FROM instance_version")) == 0
    reader.dispose()
    worker.dispose()


def test_the_web_page_does_all_it_must_as_its_own_role_and_reaches_no_secret(site: Site, tmp_path: Path) -> None:
    url = make_url(site.server.url).set(username=roles.WEB, password=PASSWORDS[roles.WEB])
    context = Context(site_settings(tmp_path, database_url=url.render_as_string(hide_password=False)))
    add_night(Context(site_settings(tmp_path, database_url=site.server.url)))
    app = create_app(context, first_token="once")
    visitor = Visitor(app)
    form = csrf_on(visitor.get("/first/once").text)
    name_and_password = {"name": "Anna", "password": "a horse reads films"}
    assert visitor.client.post("/first/once", data={"csrf": form, **name_and_password}).status_code == 303
    form = csrf_on(visitor.get("/").text)
    changes = {"claim": {}, "renew": {}, "take-over": {"reason": "a test"}, "release": {}, "review": {"rest": "absent"},
               "read": {}, "unread": {}}  # fmt: skip
    for action, fields in changes.items():
        answer = visitor.client.post(f"/studies/1/{action}", data={"csrf": form, **fields})
        assert answer.status_code in (200, 303), (action, answer.text)
        assert visitor.get("/studies/1").status_code == 200
    with site.admin.begin() as connection:
        connection.execute(text("UPDATE study SET state = 'quarantined', reason = 'decoder_crashed' WHERE id = 2"))
    assert (
        visitor.client.post("/system/requeue", data={"csrf": form, "reason": "decoder_crashed"})
        .headers["location"]
        .startswith("/system?requeued=1")
    )
    assert visitor.get("/system").status_code == 200
    assert visitor.client.post("/sign-out", data={"csrf": form}).status_code == 303
    for statement in (
        "SELECT patient_key_secret FROM site",
        "UPDATE study_priority SET urgency = 1",
        "UPDATE web_user SET password_hash = 'mine'",
        "DELETE FROM review",
        "DELETE FROM audit",
        "UPDATE policy SET active = false",
    ):
        assert denied(context.engine, statement), statement
    context.engine.dispose()
    with site.admin.begin() as connection:
        connection.execute(text("TRUNCATE study, run, policy, checkpoint, web_user CASCADE"))


def test_new_passwords_replace_the_old_ones(site: Site) -> None:
    roles.create_roles(site.admin, dict.fromkeys(roles.ROLES, "new"))
    with pytest.raises(OperationalError, match="password authentication failed"):
        site.as_role(roles.WORKER).connect()
    site.as_role(roles.WORKER, password="new").connect().close()
    roles.create_roles(site.admin, PASSWORDS)


def test_passwords_do_not_reach_the_server_s_log(site: Site) -> None:
    with site.admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ALTER SYSTEM SET log_statement = 'all'"))
        connection.execute(text("SELECT pg_reload_conf()"))
        wait_until(lambda: connection.scalar(text("SHOW log_statement")) == "all")
    roles.create_roles(site.admin, PASSWORDS)
    assert "ALTER ROLE" in site.server.log()
    assert "canary" not in site.server.log()


def test_upgrade_needs_no_roles(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    schema.upgrade(engine)
    assert schema.current_revision(engine) == schema.head_revision()
    engine.dispose()
