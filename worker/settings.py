"""Every setting of the service; with migrations/env.py the only reader of the environment (prefix NIGHTREAD_).

The docstring under a field is its description; docker/.env.example and docs/reference/configuration.md repeat it with
the default, and a test keeps the three alike. Groups of settings stand in setting_groups.py.
"""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, FilePath, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from worker.setting_groups import (
    DecodeSettings,
    DeliverSettings,
    DriftSettings,
    GateSettings,
    Group,
    LogSettings,
    MetricsSettings,
    PullSettings,
    ReceiveSettings,
    RetrainSettings,
    ViewWords,
    WebSettings,
    words_in,
)
from worker.setting_peers import Peer, peers_in
from worker.setting_types import PREFIX, Commas, Device, Empty, Folder, Modality, TimeZone, ViewerUrl, sentence

SECRETS = Path("/run/secrets")  # where containers mount secrets: a file nightread_database_url sets database_url

# Named like settings, but none: docker/make-secrets' folder, and the files of `db roles` in the secrets' folder.
NOT_SETTINGS = {
    "NIGHTREAD_SECRETS", "NIGHTREAD_MIGRATE", "NIGHTREAD_WORKER", "NIGHTREAD_READER", "NIGHTREAD_WEB",
    "NIGHTREAD_SCALER",
}  # fmt: skip
# Kubernetes sets these in every container beside a service that is called nightread, or nightread-something.
OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")


class WrongSettings(Exception):
    """Settings that cannot be used; the text names each variable and says what to do."""


def _default_database_url() -> str:
    return f"sqlite:///{user_data_path('nightread') / 'nightread.db'}"


def _is_others(name: str) -> bool:
    """Whether a variable or a secret is named like a setting, and belongs to something else."""
    return name.upper() in NOT_SETTINGS or OF_KUBERNETES.search(name.upper()) is not None


class Environment(EnvSettingsSource):
    """Settings from the environment, without what others put there."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in super()._load_env_vars().items() if not _is_others(name)}


class Secrets(NestedSecretsSettingsSource):
    """Settings from the files of the secrets' folder that are named like them; other services' files stay closed."""

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        named = (file for file in path.iterdir() if file.name.upper().startswith(PREFIX) and file.is_file())
        ours = (file for file in named if not _is_others(file.name))
        return {file.name: file.read_text(encoding="utf-8").strip() for file in ours}


class Settings(BaseSettings):
    """Frozen once read. Durations and sizes end in their unit."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="_",  # a group's name, then its field's: NIGHTREAD_ RETRAIN _ BATCH_SIZE
        env_nested_max_split=1,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a URL holds a password
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, Environment(settings_cls), Secrets(file_secret_settings)

    database_url: str = Field(default_factory=_default_database_url, repr=False)
    """SQLAlchemy URL: postgresql+psycopg://user:password@host/name?sslmode=verify-full, or sqlite:///path."""
    broker_url: Annotated[str | None, Empty] = Field(default=None, repr=False)
    """Redis: redis://:password@host:6379/0, or rediss:// for TLS. Unset: no broker, `score` only."""
    broker_ca_file: Annotated[FilePath | None, Empty] = None
    """The authority that signed the TLS broker's certificate; unset: the system's authorities."""

    checkpoint: Annotated[Path | None, Empty] = None
    """A checkpoint file; unset: the registry's champion, else the one that ships."""
    state_folder: Path = Field(default_factory=lambda: user_data_path("nightread"))
    """Where registered checkpoints are kept, each under its digest; workers on several machines share it or copy it."""
    device: Device = "auto"
    """auto (cuda, else mps, else cpu), or a torch device such as cuda:1."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Films per prediction. A GPU computes them in one pass, a CPU one by one."""
    decoders: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=256)
    """Processes that decode films for the network."""

    modalities: Annotated[tuple[Modality, ...], NoDecode, Commas] = Field(("CR", "DX", "DR"), min_length=1)
    """Modalities (0008,0060) that can be chest films here, comma-separated."""
    allow_secondary_capture: bool = False
    """Score secondary captures that say they are frontal chest films (converted data sets)."""
    view_words: Annotated[ViewWords | None, NoDecode, BeforeValidator(words_in)] = None
    """A TOML file with this site's own words for views and body parts, added to the built-in ones; unset: none."""
    roots: Annotated[tuple[Folder, ...], NoDecode, Commas] = ()
    """Folders that received files must be in, comma-separated; empty: anywhere."""
    peers: Annotated[tuple[Peer, ...], NoDecode, BeforeValidator(peers_in)] = ()
    """A TOML file of the archives and other nodes that are called; unset: none."""

    max_file_mb: int = Field(512, ge=1)
    """A larger file is refused before it is read."""
    max_megapixels: int = Field(64, ge=1)
    """A film with more pixels (rows x columns) is refused before it is decoded."""
    decode: DecodeSettings = DecodeSettings()
    reduce_jpeg2000: bool = True
    """JPEG 2000 films are decoded at a half or a quarter of their resolution where 2.25 times the input remain."""
    straggler_seconds: float = Field(2.0, gt=0, le=3600)
    """A batch that is not full waits this long for the next film."""

    lease_minutes: float = Field(1.0, gt=0, le=1440)
    """A worker that does not renew its leases for this long loses its studies to the others."""
    max_attempts: int = Field(3, ge=1)
    """A study whose worker died this often is quarantined."""
    unavailable_hours: float = Field(24.0, ge=0, le=87600)
    """A study whose files cannot be reached for this long is quarantined."""
    sweep_seconds: float = Field(30.0, gt=0, le=3600)
    """How often expired leases are released and messages sent again."""
    renotify_minutes: float = Field(1.0, gt=0, le=1440)
    """A study that still waits this long after its message gets another one."""
    run_idle_minutes: float = Field(15.0, ge=0, le=10080)
    """A night's run ends when nothing waits and nothing came for this long."""
    recycle_hours: float = Field(0.0, ge=0, le=87600)
    """A worker that has run this long ends as after SIGTERM, for its supervisor to start a fresh one; 0: never."""

    blind_share: float = Field(0.0, ge=0, lt=1)
    """Share of studies listed as if no model had scored them, to measure what ranking changes."""

    time_zone: TimeZone = "UTC"
    """The time zone, such as Europe/Berlin; not set: UTC for the schedules, the machine's for pages and films."""
    viewer_url: Annotated[ViewerUrl | None, Empty] = None
    """The viewer's address for a study, with {study_instance_uid} or {accession_number} in it; unset: no link."""
    retrain: RetrainSettings = RetrainSettings()
    gate: GateSettings = GateSettings()
    drift: DriftSettings = DriftSettings()

    receive: ReceiveSettings = ReceiveSettings()
    pull: PullSettings = PullSettings()
    deliver: DeliverSettings = DeliverSettings()
    web: WebSettings = WebSettings()

    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def zone(self) -> ZoneInfo | None:
        """The time zone of pages, and of films that name none; None: this machine's."""
        return ZoneInfo(self.time_zone) if "time_zone" in self.model_fields_set else None

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        if scheme != "postgresql+psycopg" and not (scheme == "sqlite" and rest.strip("/")):
            raise ValueError("only postgresql+psycopg://user:password@host/name and sqlite:///path are supported")
        if scheme == "sqlite" and not rest.startswith("/"):
            raise ValueError("sqlite:///path has three slashes, and four before an absolute path")
        if scheme == "sqlite" and rest.startswith(("/:memory:", "/file:")):
            raise ValueError("a database that is no file on a disk would be empty in every command")
        return value

    @field_validator("broker_url")
    @classmethod
    def _is_redis(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("redis://", "rediss://")):
            raise ValueError("only redis:// and rediss:// are supported")
        try:
            url = urlsplit(value)
            usable = url.hostname and url.port != 0 and re.fullmatch(r"(/\d*)?", url.path)
        except ValueError:  # its text may hold a piece of the password
            usable = None
        if not usable:
            raise ValueError("write it as redis://:password@host:6379/0")
        return value

    @field_validator("state_folder", mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        if value == "":
            raise ValueError("name a folder, or leave the variable out")
        return value

    @classmethod
    def variables(cls) -> dict[str, FieldInfo]:
        """Environment variable -> the setting that it sets."""
        fields: dict[str, FieldInfo] = {}
        for name, field in cls.model_fields.items():
            group = field.annotation
            if isinstance(group, type) and issubclass(group, Group):
                fields |= {f"{name}_{inner}": each for inner, each in group.model_fields.items()}
            else:
                fields[name] = field
        return {PREFIX + name.upper(): field for name, field in fields.items()}

    def changed(self, **values: Any) -> Self:
        """A copy with other values, of a group as a mapping: changed(batch_size=8, retrain={"epochs": 2})."""
        update = {}
        for name, value in values.items():
            group = getattr(self, name)
            update[name] = type(group)(**(dict(group) | value)) if isinstance(group, Group) else value
        return self.model_copy(update=update)


def read_settings() -> Settings:
    """The settings of this process's environment. Raises WrongSettings."""
    try:
        if unknown := [_unknown(name) for name in _names() if name not in Settings.variables()]:
            raise WrongSettings("; ".join(unknown))
        return Settings()
    except ValidationError as error:
        raise WrongSettings("; ".join(_problem(*each["loc"], text=each["msg"]) for each in error.errors())) from None
    except SettingsError as error:
        raise WrongSettings(str(error)) from None


def _names() -> Iterator[str]:
    """Variables and secrets that are named like settings."""
    files = SECRETS.iterdir() if SECRETS.is_dir() else ()
    for name in sorted({name.upper() for name in (*os.environ, *(file.name for file in files))}):
        if name.startswith(PREFIX) and not _is_others(name):
            yield name


def _unknown(name: str) -> str:
    known = {each.removeprefix(PREFIX): each for each in Settings.variables()}
    near = get_close_matches(name.removeprefix(PREFIX), known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else "docs/reference/configuration.md lists them"
    return f"{name}: no such setting; {hint}"


def _problem(*place: str | int, text: str) -> str:
    name = "_".join(part for part in place if isinstance(part, str)).upper()
    return f"{PREFIX}{name}: {sentence(text)}"
