"""Every setting of the service; with migrations/env.py the only reader of the environment (prefix NIGHTREAD_).

docker/.env.example and docs/reference/configuration.md list them with units and defaults; a test keeps the three alike.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

PREFIX = "NIGHTREAD_"
SECRETS = Path("/run/secrets")  # where containers mount secrets: a file nightread_database_url sets database_url

# Named like settings, but none: docker/make-secrets' folder, and the files of `db roles` in the secrets' folder.
NOT_SETTINGS = {"NIGHTREAD_SECRETS", "NIGHTREAD_MIGRATE", "NIGHTREAD_WORKER", "NIGHTREAD_READER"}
# Kubernetes sets these in every container beside a service that is called nightread, or nightread-something.
OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")


class WrongSettings(Exception):
    """Settings that cannot be used; the text names each variable and says what to do."""


def _default_database_url() -> str:
    return f"sqlite:///{user_data_path('nightread') / 'nightread.db'}"


def _crontab(value: str) -> str:
    """Empty, or five fields that Celery understands; it is imported only where a schedule is set."""
    if value:
        from celery.schedules import crontab

        if len(value.split()) != 5:
            raise ValueError("a schedule has five fields (minute hour day month weekday), such as 0 22 * * 6")
        crontab.from_string(value)  # raises ValueError, in Celery's words
    return value


def _time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # OSError: "Europe", which is a folder
        near = get_close_matches(value, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "one is called Europe/Berlin"
        raise ValueError(f"no such time zone; {hint}") from None
    return value


def _parts(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if value and not parts:  # for roots, an empty list would mean: anywhere
        raise ValueError("nothing stands between the commas")
    return parts


def _unset(value: object) -> object:
    return None if value == "" else value


def _modality(value: str) -> str:
    if not re.fullmatch("[A-Z0-9_]{1,16}", value):
        raise ValueError("a modality is written in capitals, such as DX")
    return value


def _word(value: str) -> str:
    if len(value) > 64 or sum(map(str.isalnum, value)) < 2 or "*" in value[:-1]:
        raise ValueError("a word has 2 to 64 characters, two letters or digits among them, and a star only at its end")
    return value


def _words_in(value: object) -> object:
    """The content of a file of view words; anything but its path as it is. Raises ValueError that names the entry."""
    if not isinstance(value, str):
        return value
    if not value:
        return None
    try:
        return ViewWords(**tomllib.loads(Path(value).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{value} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {_sentence(each['msg'])}" for each in error.errors())
        allowed = ", ".join(ViewWords.model_fields)
        raise ValueError(f"{value}: {wrong}; allowed are lists of words under {allowed}") from None
    except ValueError as error:
        raise ValueError(f"{value} is no TOML file: {error}") from None


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError("a device is auto, cpu, cuda, cuda:1 or mps")
    return value


def _absolute(value: str) -> str:
    if not Path(value).is_absolute():
        raise ValueError("a folder is named by its absolute path")
    return value


def _address(value: str) -> str:
    ipaddress.ip_address(value)  # raises ValueError with a sentence
    return value


def _network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


def _title(value: str) -> str:
    """An application entity title: PS3.5 table 6.2-1, VR AE."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", value) or value != value.strip():
        raise ValueError("an AE title has 1 to 16 characters and no backslash")
    return value


def _peer(value: str) -> str:
    if not re.fullmatch(PEER, value):
        raise ValueError("write a node like PACS@pacs.example:104 (AE title, host, port)")
    return value


PEER = r"(?P<title>[^@\\]{1,16})@(?P<host>\[[0-9A-Fa-f:]+\]|[^:\s@]+):(?P<port>[1-9]\d{0,4})"
Schedule = Annotated[str, AfterValidator(_crontab)]
Empty = BeforeValidator(_unset)  # an empty variable is an unset one
Commas = BeforeValidator(_parts)
Modality = Annotated[str, AfterValidator(_modality)]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
Title = Annotated[str, AfterValidator(_title)]
PeerText = Annotated[str, AfterValidator(_peer)]
Word = Annotated[str, AfterValidator(_word)]
Folder = Annotated[str, AfterValidator(_absolute)]


class Group(BaseModel):
    """Settings that belong together: NIGHTREAD_RETRAIN_EPOCHS is `epochs` of the group `retrain`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class ViewWords(Group):
    """A site's own words for what its films show, added to the built-in ones (worker/intake/view_words.py)."""

    AP: tuple[Word, ...] = ()
    PA: tuple[Word, ...] = ()
    frontal: tuple[Word, ...] = ()
    """AP or PA, and the word does not say which."""
    lateral: tuple[Word, ...] = ()
    oblique: tuple[Word, ...] = ()
    special: tuple[Word, ...] = ()
    """Decubitus, lordotic, axial and other projections that are not scored."""
    bedside: tuple[Word, ...] = ()
    """Taken in bed: such a chest film is AP where nothing else names its view."""
    chest: tuple[Word, ...] = ()
    other: tuple[Word, ...] = ()
    """Another part of the body."""
    processed: tuple[Word, ...] = ()
    """Computed from a film, or a test image."""


class DecodeSettings(Group):
    """Bounds on one film's decoding."""

    timeout_seconds: float = Field(60.0, gt=0, le=3600)
    """A film that takes longer is abandoned and its decoder process is ended."""
    memory_mb: int = Field(4096, ge=512)
    """Address space of one decoder process."""


class RetrainSettings(Group):
    """Films, method and schedule of a retraining."""

    schedule: Schedule = "0 22 * * 6"
    """When beat starts a retraining, in crontab's five fields; empty: never."""
    base: Annotated[Path | None, Empty] = None
    """A folder made by `nightread train prepare`, mixed into what radiologists confirmed; unset: none."""
    base_ratio: float = Field(1.0, ge=0)
    """Base films to learn from per confirmed film, if the base has enough."""
    unconfirmed_is_absent: bool = False
    """A finding that nobody named in a study that was read counts as absent."""
    min_new_films: int = Field(50, ge=1)
    """Fewer films confirmed since the champion was trained end a retraining at once."""
    min_positives: int = Field(10, ge=1)
    """Films with a finding that training needs, for every finding that the champion scores."""
    max_unread: float = Field(0.1, ge=0, le=1)
    """Share of the confirmed films that may be gone or unreadable, above which a retraining ends."""
    recent_days: float = Field(90.0, gt=0, le=36500)
    """The window of recently confirmed films on which both checkpoints are judged too."""
    epochs: int = Field(8, ge=1)
    """Epochs of a retraining."""
    learning_rate: float = Field(1e-4, gt=0, le=1)
    """The highest learning rate of a retraining, which starts from the champion's weights."""
    batch_size: int = Field(32, ge=2)
    """Films per training step."""
    seed: int = 2026
    """Seed of all random draws of a retraining."""
    threads: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2), ge=1)
    """Processor threads of a retraining; it runs next to the scoring, at the lowest priority."""
    promotes: bool = False
    """A challenger that passed the gate becomes the champion without a person's decision."""


class GateSettings(Group):
    """Bounds that a challenger must keep against the champion."""

    macro_auroc: float = Field(-0.005, ge=-1, le=1)
    """Smallest allowed lower end (95 %, over patients) of the macro AUROC's difference to the champion's."""
    finding_auroc: float = Field(-0.02, ge=-1, le=1)
    """Smallest allowed difference of the AUROC of each finding of category A or B."""
    sensitivity: float = Field(-0.02, ge=-1, le=1)
    """Smallest allowed difference (whole 95 % interval) of the sensitivity for pneumothorax, a tenth flagged."""
    ece: float = Field(0.01, ge=0, le=1)
    """Largest allowed growth of the calibration error (macro ECE)."""
    gap: float = Field(0.03, ge=0, le=1)
    """Largest allowed growth of the gap in false negatives between sexes, age bands or views."""
    time_minutes: float = Field(0.0, ge=0)
    """Largest allowed growth (whole 95 % interval) of the simulated time to report of pneumothorax."""
    min_positives: int = Field(10, ge=1)
    """Films with a finding below which a check on it is undecided, which does not pass."""
    replicates: int = Field(1000, ge=100)
    """Bootstrap draws of patients."""


class DriftSettings(Group):
    """When the day's films count as drifted."""

    schedule: Schedule = "0 6 * * *"
    """When beat judges the day's drift, in crontab's five fields; empty: never."""
    min_films: int = Field(200, ge=50)
    """A day with fewer films is not judged for drift."""
    reference_days: int = Field(28, ge=1, le=3650)
    """Days before a day against which its shares and rates are judged."""
    psi_warn: float = Field(0.1, gt=0)
    """Population stability index, minus what chance alone gives, from which drift warns."""
    psi_act: float = Field(0.25, gt=0, validate_default=True)
    """The same, from which somebody must act."""
    ks_warn: float = Field(0.1, gt=0)
    """Kolmogorov and Smirnov's distance, minus what chance alone gives, from which drift warns."""
    ks_act: float = Field(0.2, gt=0, validate_default=True)
    """The same, from which somebody must act."""
    rate_warn: float = Field(0.05, gt=0)
    """Change of the share of skipped or quarantined studies from which drift warns."""
    rate_act: float = Field(0.15, gt=0, validate_default=True)
    """The same, from which somebody must act."""
    retrains: bool = False
    """Drift on which somebody must act also starts a retraining; it never promotes."""

    @field_validator("psi_act", "ks_act", "rate_act")
    @classmethod
    def _not_before_warning(cls, value: float, info: ValidationInfo) -> float:
        warning = f"{str(info.field_name).removesuffix('act')}warn"
        if value < info.data.get(warning, value):
            raise ValueError(f"must not be below {PREFIX}DRIFT_{warning.upper()}")
        return value


class ReceiveSettings(Group):
    """The DICOM receiver: who may send, from where, and what it may cost."""

    address: Address = "127.0.0.1"
    """The address the DICOM receiver listens on; 0.0.0.0 for all."""
    port: int = Field(11112, ge=0, le=65535)
    """The DICOM receiver's port; 0 takes a free one."""
    ae_title: Title = "NIGHTREAD"
    """The receiver's AE title; an association that calls another one is rejected."""
    folder: Annotated[Path | None, Empty] = None
    """Where received films are kept, best on a disk of their own; unset: `received` in the state folder."""
    calling_ae_titles: Annotated[tuple[Title, ...], NoDecode, Commas] = ()
    """AE titles that may send, comma-separated; empty: any."""
    networks: Annotated[tuple[Network, ...], NoDecode, Commas] = ()
    """Networks that may connect, such as 10.1.0.0/16, comma-separated; empty: any."""
    sop_classes: Annotated[tuple[str, ...], NoDecode, Commas] = ()
    """UIDs of storage classes to accept besides those of CR and DX, comma-separated."""
    associations_per_ae: int = Field(8, ge=1)
    """Associations of one AE title at a time, at most."""
    connections_per_address: int = Field(128, ge=1)
    """Connections from one address at a time, at most, with or without an association."""
    association_seconds: float = Field(5.0, gt=0, le=300)
    """A peer that connects and requests no association for this long is dropped."""
    idle_seconds: float = Field(60.0, gt=0, le=3600)
    """An association on which nothing comes for this long is ended."""
    pdu_kb: int = Field(256, ge=16, le=4096)
    """Longest PDU that a peer may send."""
    free_mb: int = Field(2048, ge=1)
    """Films are refused (status A700: send again later) while less than this is free on the folder's disk."""
    tls_certificate_file: Annotated[FilePath | None, Empty] = None
    """The receiver's certificate (PEM); unset: no TLS."""
    tls_key_file: Annotated[FilePath | None, Empty] = None
    """The key of that certificate; unset: it is in the certificate's file."""
    tls_client_ca_file: Annotated[FilePath | None, Empty] = None
    """The authority that must have signed a sender's certificate; unset: no client certificate is asked for."""


class LogSettings(Group):
    """Logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """How much the service logs."""
    format: Literal["console", "json"] = "console"
    """console for people, json for machines; one line per event, on standard error."""


class MetricsSettings(Group):
    """The Prometheus page of worker and beat."""

    port: int = Field(0, ge=0, le=65535)
    """Port of the Prometheus page of worker and beat; 0: none."""
    address: Address = "127.0.0.1"
    """The address that page listens on; 0.0.0.0 for all, behind a firewall or on a container's internal network."""


class Secrets(NestedSecretsSettingsSource):
    """Settings from the files of the secrets' folder that are named like them; other services' files stay closed."""

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        ours = (file for file in path.iterdir() if file.name.upper().startswith(PREFIX) and file.is_file())
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
        use_attribute_docstrings=True,
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, Secrets(file_secret_settings)

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
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """auto (cuda, else mps, else cpu), or a torch device such as cuda:1."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Films per prediction."""
    decoders: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=256)
    """Processes that decode films for the network."""

    modalities: Annotated[tuple[Modality, ...], NoDecode, Commas] = Field(("CR", "DX", "DR"), min_length=1)
    """Modalities (0008,0060) that can be chest films here, comma-separated."""
    allow_secondary_capture: bool = False
    """Score secondary captures that say they are frontal chest films (converted data sets)."""
    view_words: Annotated[ViewWords | None, NoDecode, BeforeValidator(_words_in)] = None
    """A TOML file with this site's own words for views and body parts, added to the built-in ones; unset: none."""
    roots: Annotated[tuple[Folder, ...], NoDecode, Commas] = ()
    """Folders that received files must be in, comma-separated; empty: anywhere."""
    peers: Annotated[tuple[PeerText, ...], NoDecode, Commas] = ()
    """DICOM nodes that are called, as TITLE@host:port, comma-separated."""

    max_file_mb: int = Field(512, ge=1)
    """A larger file is refused before it is read."""
    max_megapixels: int = Field(64, ge=1)
    """A film with more pixels (rows x columns) is refused before it is decoded."""
    decode: DecodeSettings = DecodeSettings()
    halve_jpeg2000: bool = True
    """JPEG 2000 films with sides of twelve times the network's input or more are decoded at half their resolution."""
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

    time_zone: Annotated[str, AfterValidator(_time_zone)] = "UTC"
    """The schedules' time zone, such as Europe/Berlin."""
    retrain: RetrainSettings = RetrainSettings()
    gate: GateSettings = GateSettings()
    drift: DriftSettings = DriftSettings()

    receive: ReceiveSettings = ReceiveSettings()

    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        if scheme != "postgresql+psycopg" and not (scheme == "sqlite" and rest.strip("/")):
            raise ValueError("only postgresql+psycopg://user:password@host/name and sqlite:///path are supported")
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
        if name.startswith(PREFIX) and name not in NOT_SETTINGS and not OF_KUBERNETES.search(name):
            yield name


def _unknown(name: str) -> str:
    known = {each.removeprefix(PREFIX): each for each in Settings.variables()}
    near = get_close_matches(name.removeprefix(PREFIX), known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else "docs/reference/configuration.md lists them"
    return f"{name}: no such setting; {hint}"


def _problem(*place: str | int, text: str) -> str:
    name = "_".join(part for part in place if isinstance(part, str)).upper()
    return f"{PREFIX}{name}: {_sentence(text)}"


def _sentence(text: str) -> str:
    return text.removeprefix("Value error, ")
