"""Every setting of the service; with migrations/env.py the only reader of the environment (prefix NIGHTREAD_).

docker/.env.example and docs/configuration.md list them with units and defaults; a test keeps the three alike.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SECRETS = Path("/run/secrets")  # where containers mount secrets: a file nightread_database_url sets database_url

CommaList = Annotated[tuple[str, ...], NoDecode]


def _default_database_url() -> str:
    return f"sqlite:///{user_data_path('nightread') / 'nightread.db'}"


class Settings(BaseSettings):
    """Frozen once read. Durations and sizes end in their unit."""

    model_config = SettingsConfigDict(
        env_prefix="NIGHTREAD_",
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
    )

    database_url: str = Field(default_factory=_default_database_url, repr=False)
    """SQLAlchemy URL: postgresql+psycopg://user:password@host/name?sslmode=verify-full, or sqlite:///path."""
    broker_url: str | None = Field(default=None, repr=False)
    """Redis: redis://:password@host:6379/0, or rediss:// for TLS. Unset: no broker, `score` only."""
    broker_ca_file: Path | None = None
    """The authority that signed the TLS broker's certificate; unset: the system's authorities."""

    checkpoint: Path | None = None
    """A checkpoint file; unset: the registry's champion, else the one that ships."""
    state_folder: Path = Field(default_factory=lambda: user_data_path("nightread"))
    """Where registered checkpoints are kept, each under its digest; workers on several machines share it or copy it."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device such as cuda:1."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Films per prediction."""
    decoders: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=256)
    """Processes that read and decode films beside the network."""

    modalities: CommaList = ("CR", "DX", "DR")
    """Modalities (0008,0060) that can be chest films here, comma-separated."""
    allow_secondary_capture: bool = False
    """Score secondary captures that say they are frontal chest films (converted data sets)."""
    roots: CommaList = ()
    """Folders that received files must lie in, comma-separated; empty: anywhere."""

    max_file_mb: int = Field(512, ge=1)
    """A larger file is refused before it is read."""
    max_megapixels: int = Field(64, ge=1)
    """A film with more pixels (rows x columns) is refused before it is decoded."""
    decode_timeout_seconds: float = Field(60.0, gt=0)
    """A film that takes longer is given up and its decoder process ended."""
    decode_memory_mb: int = Field(4096, ge=512)
    """Address space of one decoder process."""
    straggler_seconds: float = Field(2.0, gt=0)
    """A batch that is not full waits this long for the next film."""

    lease_minutes: float = Field(1.0, gt=0)
    """A worker that says nothing for this long loses its studies to the others."""
    max_attempts: int = Field(3, ge=1)
    """A study whose worker died this often is quarantined."""
    unavailable_hours: float = Field(24.0, ge=0)
    """A study whose files cannot be reached for this long is quarantined."""
    sweep_seconds: float = Field(30.0, gt=0)
    """How often expired leases are released and forgotten studies rung for."""
    ring_again_minutes: float = Field(1.0, gt=0)
    """A study that still waits this long after its message is rung for again."""
    run_idle_minutes: float = Field(15.0, ge=0)
    """A night's run ends when nothing waits and nothing came for this long."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much the service says."""
    log_format: Literal["console", "json"] = "console"
    """console for people, json for machines; one line per event, on standard error."""
    metrics_port: int = Field(0, ge=0, le=65535)
    """Port of the Prometheus page of worker and beat; 0: none."""
    metrics_address: str = "127.0.0.1"
    """The address that page listens on; 0.0.0.0 for all, behind a firewall or on a container's internal network."""

    @field_validator("modalities", "roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
