"""Migrations on real servers: up, up again, and nothing left to generate."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from db import schema
from db.base import Base
from db.session import make_engine
from tests.support.side_by_side import at_once


def test_up_and_up_again_ends_at_the_head_with_every_table(empty_database_url):
    engine = make_engine(empty_database_url)
    assert schema.current_revision(engine) is None
    schema.upgrade(engine)
    schema.upgrade(engine)
    assert schema.current_revision(engine) == schema.head_revision()
    assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    engine.dispose()


def test_a_schema_of_an_unknown_version_is_refused_by_its_name(engine: Engine):
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(schema.UnknownRevision, match="0999"):
        schema.upgrade(engine)


def test_the_models_and_the_migrations_agree(engine: Engine):
    with warnings.catch_warnings(), engine.begin() as connection:
        warnings.simplefilter("ignore")  # what SQLite can't reflect is compared on PostgreSQL
        command.check(schema.alembic_config(connection))


def test_every_constraint_has_a_name(engine: Engine):
    found = inspect(engine)
    for table in Base.metadata.tables:
        constraints = [*found.get_foreign_keys(table), *found.get_unique_constraints(table)]
        constraints += [*found.get_check_constraints(table), found.get_pk_constraint(table)]
        assert all(constraint["name"] for constraint in constraints), table


def test_several_processes_may_upgrade_at_once(empty_database_url):
    def upgrade() -> None:
        own = make_engine(empty_database_url)
        try:
            schema.upgrade(own)
        finally:
            own.dispose()

    at_once(upgrade, upgrade, upgrade)


def test_several_processes_may_open_a_new_sqlite_database_at_once(tmp_path):
    def first_look(path: Path) -> None:
        engine = make_engine(f"sqlite:///{path}")
        together.wait()
        schema.current_revision(engine)
        engine.dispose()

    together = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        for number in range(100):
            looks = [threads.submit(first_look, tmp_path / f"{number}.db") for _ in range(8)]
            assert [look.exception() for look in looks] == [None] * 8


def test_every_site_draws_its_own_secret(engine: Engine):
    with engine.begin() as connection:
        secret = connection.execute(text("SELECT patient_key_secret FROM site")).scalar_one()
    assert len(bytes.fromhex(secret)) == 32


def test_a_category_that_contradicts_its_flag_is_refused(engine: Engine):
    insert = """INSERT INTO study_priority (study_id, stat, received_at, category, category_a, urgency, ranked_at)
        VALUES (1, false, '2026-01-01 00:00:00', 'B', true, 0, '2026-01-01 00:00:00')"""
    with pytest.raises(IntegrityError, match="ck_study_priority_category_a"), engine.begin() as connection:
        connection.execute(text(insert))
