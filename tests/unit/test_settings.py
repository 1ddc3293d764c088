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
    expected = Settings.variables()
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


def test_a_group_of_settings_is_read_field_by_field(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_RETRAIN_BATCH_SIZE", "8")
    settings = Settings()
    assert settings.retrain.batch_size == 8
    assert (settings.batch_size, settings.retrain.epochs) == (16, 8), (
        "nothing else of the group, or of that name, moves"
    )


def test_a_file_of_the_secrets_folder_sets_a_setting_of_a_group_too_and_others_stay_closed(monkeypatch, tmp_path):
    (tmp_path / "nightread_broker_url").write_text("redis://:canary@h/0\n")
    (tmp_path / "nightread_retrain_epochs").write_text("3")
    (tmp_path / "tls.key").write_bytes(b"\xff")
    monkeypatch.setitem(Settings.model_config, "secrets_dir", tmp_path)
    settings = Settings()
    assert (settings.broker_url, settings.retrain.epochs) == ("redis://:canary@h/0", 3)


def test_settings_with_some_changed_keep_the_rest_of_a_group():
    settings = Settings(retrain={"epochs": 3}).changed(batch_size=2, retrain={"base": "/base"}, gate={"ece": 0.5})
    assert (settings.batch_size, settings.gate.ece) == (2, 0.5)
    assert (settings.retrain.epochs, settings.retrain.base) == (3, Path("/base"))


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
    assert readers <= {"worker/settings.py", "worker/retraining/devices.py", "migrations/env.py"}, (
        f"of {os.fspath(root)}"
    )


def test_another_broker_than_redis_is_refused_without_its_password(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_BROKER_URL", "amqp://user:canary@h/0")
    with pytest.raises(ValidationError, match="only redis://") as refused:
        Settings()
    assert "canary" not in str(refused.value)
