"""Settings: read from the environment, frozen, and documented one by one."""

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.settings import Settings

CONFIGURATION = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


def documented() -> dict[str, tuple[str, str]]:
    """Variable -> (default, meaning), from the table in docs/reference/configuration.md."""
    rows = re.findall(r"^\| `(NIGHTREAD_\w+)` \| (.*?) \| (.*?) \|$", CONFIGURATION.read_text(), flags=re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in rows}


def test_every_setting_is_documented_with_its_default_and_its_meaning():
    expected = {f"NIGHTREAD_{name.upper()}": field for name, field in Settings.model_fields.items()}
    assert set(documented()) == set(expected)
    for variable, field in expected.items():
        default, meaning = documented()[variable]
        assert meaning == field.description, variable
        if field.default_factory is None:
            shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
            assert default == (f"`{shown}`" if shown not in (None, "") else "unset"), variable


def test_a_comma_separated_setting_becomes_a_tuple(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_MODALITIES", "CR, DX")
    assert Settings().modalities == ("CR", "DX")


def test_a_wrong_setting_is_refused_with_its_name(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_BATCH_SIZE", "0")
    with pytest.raises(ValidationError, match="batch_size"):
        Settings()


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().batch_size = 3


def test_secrets_do_not_show_in_the_text_of_the_settings(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", "postgresql+psycopg://u:canary@h/d")
    monkeypatch.setenv("NIGHTREAD_BROKER_URL", "redis://:canary@h/0")
    assert "canary" not in repr(Settings())


def test_only_settings_and_migrations_read_the_environment():
    root = Path(__file__).parents[2]
    readers = {
        path.relative_to(root).as_posix()
        for package in ("worker", "training", "db", "migrations")
        for path in (root / package).rglob("*.py")
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text())
    }
    assert readers <= {"worker/settings.py", "migrations/env.py"}, f"of {os.fspath(root)}"


def test_another_broker_than_redis_is_refused_without_its_password(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_BROKER_URL", "amqp://user:canary@h/0")
    with pytest.raises(ValidationError, match="only redis://") as refused:
        Settings()
    assert "canary" not in str(refused.value)
