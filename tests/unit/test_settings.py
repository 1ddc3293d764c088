"""Settings: read from the environment, frozen, and documented one by one."""

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from db.roles import ROLES
from tests.support.setting_texts import descriptions
from worker import settings as module
from worker.setting_groups import ViewWords
from worker.settings import Settings, WrongSettings, read_settings

CONFIGURATION = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


def documented() -> dict[str, tuple[str, str]]:
    """Variable -> (default, meaning), from the table in docs/reference/configuration.md."""
    rows = re.findall(r"^\| `(NIGHTREAD_\w+)` \| (.*?) \| (.*?) \|$", CONFIGURATION.read_text(), flags=re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in rows}


def test_every_setting_is_documented_with_its_default_and_its_meaning():
    expected = Settings.variables()
    texts = descriptions()
    assert set(documented()) == set(expected) == set(texts)
    for variable, field in expected.items():
        default, meaning = documented()[variable]
        assert meaning == texts[variable], variable
        if field.default_factory is None:
            shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
            assert default == (f"`{shown}`" if shown not in (None, "") else "unset"), variable


def test_a_comma_separated_setting_becomes_a_tuple(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_MODALITIES", "CR, DX")
    assert Settings().modalities == ("CR", "DX")


def test_a_file_of_view_words_becomes_its_words(monkeypatch, tmp_path):
    (tmp_path / "words.toml").write_text('AP = ["THORAX BETT", "Liegend*"]\nlateral = ["側位像"]\n')
    monkeypatch.setenv("NIGHTREAD_VIEW_WORDS", str(tmp_path / "words.toml"))
    assert read_settings().view_words == ViewWords(AP=("THORAX BETT", "Liegend*"), lateral=("側位像",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('Ap = ["BETT"]', "Ap: "),
        ('AP = "BETT"', "AP: "),
        ('PA = ["STAND", 7]', "PA.1: "),
        ('PA = ["-*"]', "PA.0: a word has 2 to 64 characters"),
        ('PA = ["ST*ND"]', "PA.0: a word has 2 to 64 characters"),
        ("[AP]\nBETT = 1", "AP: "),
        ("AP = [", "words.toml is no TOML file: "),
        (b"AP = ['\xff']", "words.toml is no TOML file: "),
        (None, "words.toml cannot be read: No such file"),
        ("AP = " + "[" * 5000, "no TOML file that can be read: its lists are nested too deeply"),
    ],
)
def test_a_file_of_view_words_that_cannot_be_used_is_named_with_its_entry(content, sentence, monkeypatch, tmp_path):
    if content is not None:
        (tmp_path / "words.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("NIGHTREAD_VIEW_WORDS", str(tmp_path / "words.toml"))
    with pytest.raises(WrongSettings) as refusal:
        read_settings()
    assert str(refusal.value).startswith(f"NIGHTREAD_VIEW_WORDS: {tmp_path / 'words.toml'}")
    assert sentence in str(refusal.value)
    if "TOML" not in sentence and content is not None:
        assert (
            "allowed are lists of words under AP, PA, frontal, lateral, oblique, special, bedside, chest, other"
            in str(refusal.value)
        )


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


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("TIME_ZONE", "Mars", "one is called Europe/Berlin"),
        ("TIME_ZONE", "Europe/Berlim", "did you mean Europe/Berlin?"),
        ("TIME_ZONE", "Europe", "no such time zone"),
        ("VIEWER_URL", "https://pacs.example/viewer", "{study_instance_uid}"),
        ("VIEWER_URL", "https://pacs.example/{patient_id}", "{accession_number}"),
        ("VIEWER_URL", "javascript:alert('{accession_number}')", "write it as https://"),
        ("RETRAIN_SCHEDULE", "every saturday", "five fields"),
        ("RETRAIN_SCHEDULE", "0 25 * * *", "25 > 23"),
        ("DRIFT_SCHEDULE", "0 6 31 2 *", "never occurs"),
        ("MODALITIES", "", "at least 1 item"),
        ("MODALITIES", ",", "nothing stands between"),
        ("ROOTS", " , ", "nothing stands between"),
        ("MODALITIES", "dx", "in capitals, such as DX"),
        ("ROOTS", "films", "absolute path"),
        ("DEVICE", "gpu", "cuda:1"),
        ("DATABASE_URL", "mysql://h/d", "only postgresql"),
        ("DATABASE_URL", "sqlite://", "only postgresql"),
        ("DATABASE_URL", "sqlite://relative/n.db", "three slashes"),
        ("DATABASE_URL", "sqlite:///:memory:", "no file on a disk"),
        ("DATABASE_URL", "sqlite:///file:n.db?uri=true", "no file on a disk"),
        ("BROKER_URL", "redis://h:port/0", "redis://:password@host"),
        ("BROKER_URL", "redis://h/films", "redis://:password@host"),
        ("BROKER_CA_FILE", "/nowhere/ca.pem", "not point to a file"),
        ("STATE_FOLDER", "", "name a folder"),
        ("LEASE_MINUTES", "nan", "finite"),
        ("LEASE_MINUTES", "inf", "finite"),
        ("LEASE_MINUTES", "1e300", "less than"),
        ("GATE_SENSITIVITY", "-2", "greater than"),
        ("DRIFT_PSI_WARN", "0.5", "not be below NIGHTREAD_DRIFT_PSI_WARN"),
        ("METRICS_ADDRESS", "all", "address"),
        ("LOG_LEVEL", "loud", "debug"),
        ("RETRAIN_EPOCHS", "0", "greater than"),
        ("BATCHSIZE", "8", "did you mean NIGHTREAD_BATCH_SIZE?"),
        ("RETRAIN_EPOCH", "8", "did you mean NIGHTREAD_RETRAIN_EPOCHS?"),
        ("RETRAIN", "{", "no such setting"),
        ("XYZ", "1", "configuration.md lists them"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_with_its_name_and_a_hint(monkeypatch, name, value, hint):
    monkeypatch.setenv(f"NIGHTREAD_{name}", value)
    with pytest.raises(WrongSettings, match=re.escape(hint)) as refused:
        read_settings()
    assert re.match(rf"NIGHTREAD_{name.replace('WARN', 'ACT')}: ", str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_mistyped_secret_is_refused_and_the_roles_passwords_are_not(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SECRETS", tmp_path)
    for role in ROLES:
        (tmp_path / role).touch()
    read_settings()
    (tmp_path / "nightread_databse_url").touch()
    with pytest.raises(WrongSettings, match="did you mean NIGHTREAD_DATABASE_URL"):
        read_settings()


def test_variables_that_others_set_are_not_taken_for_settings(monkeypatch):
    for name in ("SECRETS", "WEB_SERVICE_HOST", "WEB_SERVICE_PORT_HTTP", "WEB_PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(f"NIGHTREAD_{name}", "tcp://10.0.0.1:8000")
    read_settings()


def test_an_empty_variable_that_names_a_file_or_the_broker_is_unset(monkeypatch):
    for name in ("BROKER_URL", "BROKER_CA_FILE", "CHECKPOINT", "RETRAIN_BASE"):
        monkeypatch.setenv(f"NIGHTREAD_{name}", "")
    settings = read_settings()
    assert (settings.broker_url, settings.broker_ca_file, settings.checkpoint, settings.retrain.base) == (None,) * 4


def test_a_password_in_a_broken_url_is_not_shown(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_BROKER_URL", "redis://:canary/x@h/0")
    with pytest.raises(WrongSettings) as refused:
        read_settings()
    assert "canary" not in str(refused.value)


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().batch_size = 3  # type: ignore[misc]  # which is what is tested


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


def test_only_db_and_migrations_know_sql():
    root = Path(__file__).parents[2]
    asks = (
        r"from sqlalchemy import .*\b(select|text|insert|update|delete|func)\b"
        r"|session\.(execute|scalars?|get|get_one)\("
    )
    knowing = [
        path.relative_to(root).as_posix()
        for package in ("worker", "training")
        for path in (root / package).rglob("*.py")
        if re.search(asks, path.read_text())
    ]
    assert knowing == []


def test_another_broker_than_redis_is_refused_without_its_password(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_BROKER_URL", "amqp://user:canary@h/0")
    with pytest.raises(ValidationError, match="only redis://") as refused:
        Settings()
    assert "canary" not in str(refused.value)
