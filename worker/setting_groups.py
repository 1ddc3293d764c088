"""Groups of settings, the fields of worker/settings.py that hold several: what each may be, and its default."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from worker.setting_types import (
    PREFIX,
    Address,
    Commas,
    Empty,
    Host,
    Issuer,
    Modality,
    Network,
    RateText,
    Schedule,
    Title,
    WindowText,
    Word,
    sentence,
)

T = TypeVar("T")
PeerNames = Annotated[tuple[str, ...], NoDecode, Commas]


class Group(BaseModel):
    """Settings that belong together: NIGHTREAD_RETRAIN_EPOCHS is `epochs` of the group `retrain`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


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


def words_in(value: object) -> object:
    """The content of a file of view words; anything but its path as it is. Raises ValueError that names the entry."""
    if not isinstance(value, str):
        return value
    allowed = ", ".join(ViewWords.model_fields)
    return from_toml(value, lambda words: ViewWords(**words), f"lists of words under {allowed}") if value else None


def from_toml(path: str, made: Callable[[dict[str, Any]], T], allowed: str) -> T:
    """The entries of a TOML file. Raises ValueError that names the file and the entry, and says what is allowed."""
    try:
        return made(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {sentence(each['msg'])}" for each in error.errors())
        raise ValueError(f"{path}: {wrong}; allowed are {allowed}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except RecursionError:  # the parser calls itself for each list in a list
        raise ValueError(f"{path} is no TOML file that can be read: its lists are nested too deeply") from None


class DecodeSettings(Group):
    """Bounds on one film's decoding."""

    timeout_seconds: float = Field(60.0, gt=0, le=3600)
    """A film that takes longer is abandoned and its decoder ended; of two tries the first has 10 seconds at most."""
    memory_mb: int = Field(4096, ge=512)
    """Address space of one decoder process; too little for any film is refused at the start."""


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
    """Processor threads of a retraining; it runs next to the scoring."""
    nice: int = Field(19, ge=0, le=19)
    """Niceness of a retraining: 19 is the lowest priority; 0 is that of all others, for a machine that only trains."""
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


class PullSettings(Group):
    """Films that are pulled from archives, by `nightread pull` and on a schedule."""

    peers: Annotated[tuple[str, ...], NoDecode, Commas] = ()
    """Names of the peers to pull from where a command names none, comma-separated."""
    schedule: Schedule = ""
    """When beat starts a pull from these peers, in crontab's five fields; empty: never."""
    modalities: Annotated[tuple[Modality, ...], NoDecode, Commas] = Field(("CR", "DX"), min_length=1)
    """Modalities whose series are asked for, comma-separated."""
    days: int = Field(2, ge=0, le=3650)
    """Days before the watermark that are asked for again, because studies may reach an archive late."""
    between: WindowText = ""
    """Pull only at these hours of the day, e.g. 22:00-06:00, in the schedules' time zone; empty: at any."""
    rate: RateText = ""
    """Maximum rate of films that are fetched, e.g. 120/min; empty: no limit."""


class DeliverSettings(Group):
    """Results that are sent: to which peers of NIGHTREAD_PEERS, and when."""

    sr: PeerNames = ()
    """Peers that get DICOM structured reports (C-STORE, or STOW-RS where one has no AE title), comma-separated."""
    sc: PeerNames = ()
    """Peers that get pictures with a heat map (DICOM Secondary Capture), in the same way."""
    oru: PeerNames = ()
    """Peers that get HL7 v2 messages (ORU^R01) at their mllp address."""
    fhir: PeerNames = ()
    """Peers that get FHIR R4 bundles at their fhir address."""
    quiet_seconds: float = Field(30.0, ge=0, le=3600)
    """A study's result is sent when nothing of the study came for this long."""
    longest_minutes: float = Field(15.0, gt=0, le=1440)
    """It is sent this long after the study's first film at the latest, once it is scored."""
    max_age_hours: float = Field(24.0, gt=0, le=87600)
    """Only studies scored within this time are sent, so that turning it on sends no history."""
    give_up_hours: float = Field(168.0, gt=0, le=87600)
    """A result that could not be sent for this long is given up."""
    max_refusals: int = Field(8, ge=1)
    """A result that was refused this often is given up."""

    @property
    def is_on(self) -> bool:
        """Whether anything is sent to anybody."""
        return any((self.sr, self.sc, self.oru, self.fhir))


class WebSettings(Group):
    """The web page: how it is reached, who signs in, what a reader sees first."""

    hosts: Annotated[tuple[Host, ...], NoDecode, Commas] = ()
    """Host names by which browsers reach the web page, besides localhost, comma-separated; they need TLS."""
    proxies: Annotated[tuple[Network, ...], NoDecode, Commas] = ()
    """Addresses or networks of TLS proxies whose X-Forwarded headers are believed, comma-separated; empty: none."""
    tls_certificate_file: Annotated[FilePath | None, Empty] = None
    """The web page's certificate (PEM), where no proxy brings TLS; unset: no TLS."""
    tls_key_file: Annotated[FilePath | None, Empty] = None
    """The key of that certificate; unset: it is in the certificate's file."""
    session_hours: float = Field(12.0, gt=0, le=168)
    """A browser is signed out this long after it signed in."""
    refresh_seconds: float = Field(10.0, ge=2, le=3600)
    """How often an open worklist asks for what is new."""
    review_first: bool = False
    """A reader sees no score of a study before their own review of it is saved."""
    pictures_mb: int = Field(2048, ge=16)
    """Disk space for pictures of films in the state folder; the oldest go first."""
    oidc_issuer: Annotated[Issuer | None, Empty] = None
    """The OpenID provider's issuer; unset: users of this site alone."""
    oidc_client_id: Annotated[str | None, Empty] = None
    """This site's client at the provider."""
    oidc_client_secret: Annotated[str | None, Empty] = Field(default=None, repr=False)
    """That client's secret."""
    oidc_role_claim: str = "roles"
    """The claim that holds viewer, reader or administrator; dots lead into it, as realm_access.roles."""


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
