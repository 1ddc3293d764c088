"""The tables. Names are a contract (docs/reference/sql.md): people query them with any SQL client.

Patients' names are never stored; a patient is a keyed hash (`study.patient_key`), enough to keep one patient's films
on one side of a split and worthless outside this database.
"""

from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import JSON, REAL, CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, short
from db.columns import BigKey

SettledState = Literal["scored", "skipped", "quarantined"]
StudyState = Literal["waiting", "claimed", SettledState]
InstanceState = Literal["waiting", SettledState]
CheckpointState = Literal["challenger", "shadow", "champion", "retired", "refused"]
Category = Literal["A", "B", "C", "D"]
Verdict = Literal["present", "absent", "not_assessed"]
TrainingState = Literal["running", "passed", "undecided", "refused", "ended", "failed"]
GateResult = Literal["passed", "undecided", "failed"]
DriftLevel = Literal["quiet", "warn", "act"]
DeliveryKind = Literal["sr", "sc", "oru", "fhir"]
DeliveryState = Literal["waiting", "sending", "sent", "confirmed", "superseded", "skipped", "failed"]
Role = Literal["viewer", "reader", "administrator"]

SETTLED: tuple[SettledState, ...] = get_args(SettledState)
CATEGORIES: tuple[Category, ...] = get_args(Category)
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
DRIFT_LEVELS: tuple[str, ...] = get_args(DriftLevel)
ROLES: tuple[Role, ...] = get_args(Role)  # each may what those before it may

# The columns of film_score, in the order of the vocabulary (training.findings.FINDINGS, lower case).
FINDING_COLUMNS = (
    "mass",
    "consolidation",
    "atelectasis",
    "pneumothorax",
    "edema",
    "emphysema",
    "fibrosis",
    "effusion",
    "pleural_thickening",
    "cardiomegaly",
    "hernia",
)


def _one_of(column: str, values: Any) -> CheckConstraint:
    """The constraint that holds a column to the words of a Literal type."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(word) for word in get_args(values))})", name=column)


def _index_of_path(name: str) -> Index:
    """Finds a file that the ledger refers to. Hashed on PostgreSQL: a path can be longer than a B-tree's entry may."""
    return Index(name, "path", postgresql_using="hash")


def _partial_index(name: str, *columns: Any, where: str, unique: bool = False) -> Index:
    """An index of those rows only that the condition holds for."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


class Site(Base):
    """One row: the secret that makes this site's patient keys, drawn when the database is made, and the stop switch of
    all deliveries."""

    __tablename__ = "site"
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_key_secret: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    deliveries_paused: Mapped[bool] = mapped_column(server_default=text("false"))


class Study(Base):
    """A study in the ledger: what is known of it and where it stands."""

    __tablename__ = "study"
    __table_args__ = (
        _one_of("state", StudyState),
        Index("ix_study_accession_number", "accession_number"),
        Index("ix_study_run_id", "run_id"),
        Index("ix_study_received_at", "received_at"),
        Index("ix_study_patient_key", "patient_key"),
    )
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    accession_number: Mapped[str | None] = mapped_column(String(64))
    patient_key: Mapped[str | None] = mapped_column(String(64))
    patient_sex: Mapped[str | None] = mapped_column(String(1))
    patient_age_years: Mapped[int | None]
    stat: Mapped[bool] = mapped_column(default=False)
    acquired_at: Mapped[datetime | None]
    received_at: Mapped[datetime]
    state: Mapped[StudyState] = mapped_column(String(16), default="waiting")
    reason: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(default=1)
    attempts: Mapped[int] = mapped_column(default=0)
    suspect: Mapped[bool] = mapped_column(default=False)
    claimed_by: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    unavailable_since: Mapped[datetime | None]
    notified_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))


class Instance(Base):
    """One SOP instance of a study. A film is an instance whose view is AP or PA."""

    __tablename__ = "instance"
    __table_args__ = (
        _one_of("state", InstanceState),
        Index("ix_instance_study_id", "study_id"),
        Index("ix_instance_received_at", "received_at"),
        _index_of_path("ix_instance_path"),
    )
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    series_instance_uid: Mapped[str | None] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(Text)
    sop_class_uid: Mapped[str | None] = mapped_column(String(64))
    modality: Mapped[str | None] = mapped_column(String(16))
    transfer_syntax_uid: Mapped[str | None] = mapped_column(String(64))
    photometric_interpretation: Mapped[str | None] = mapped_column(String(16))
    rows: Mapped[int | None]
    columns: Mapped[int | None]
    manufacturer: Mapped[str | None] = mapped_column(String(64))
    view: Mapped[str | None] = mapped_column(String(8))
    state: Mapped[InstanceState] = mapped_column(String(16), default="waiting")
    reason: Mapped[str | None] = mapped_column(String(64))
    evidence: Mapped[str | None] = mapped_column(Text)
    flags: Mapped[str | None] = mapped_column(Text)
    in_scope: Mapped[bool] = mapped_column(default=True)
    pixel_digest: Mapped[str | None] = mapped_column(String(64))
    file_stamp: Mapped[str | None] = mapped_column(String(64))
    file_digest: Mapped[str | None] = mapped_column(String(64))
    decided_under: Mapped[str | None] = mapped_column(String(16))
    received_at: Mapped[datetime]


class InstanceVersion(Base):
    """An instance as it was before another file took its place, or before it was decided again. Append only."""

    __tablename__ = "instance_version"
    __table_args__ = (
        Index("ix_instance_version_instance_id", "instance_id"),
        _index_of_path("ix_instance_version_path"),
    )
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    instance_id: Mapped[int] = mapped_column(BigKey, ForeignKey("instance.id", ondelete="CASCADE"))
    path: Mapped[str] = mapped_column(Text)
    view: Mapped[str | None] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    evidence: Mapped[str | None] = mapped_column(Text)
    flags: Mapped[str | None] = mapped_column(Text)
    pixel_digest: Mapped[str | None] = mapped_column(String(64))
    file_digest: Mapped[str | None] = mapped_column(String(64))
    cause: Mapped[str] = mapped_column(String(16))
    replaced_at: Mapped[datetime]


class RejectedFile(Base):
    """A file that could not become an instance, and why: not DICOM, no usable UID, a UID taken by other pixels."""

    __tablename__ = "rejected_file"
    __table_args__ = (
        Index("ix_rejected_file_sop_instance_uid", "sop_instance_uid"),
        _index_of_path("ix_rejected_file_path"),
    )
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    path_digest: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(String(64))
    detail: Mapped[str | None] = mapped_column(Text)
    sop_instance_uid: Mapped[str | None] = mapped_column(String(64))  # of another copy of a film that is held
    received_at: Mapped[datetime]


class Checkpoint(Base):
    """A registered checkpoint, by the SHA-256 of its file."""

    __tablename__ = "checkpoint"
    __table_args__ = (
        _one_of("state", CheckpointState),
        _partial_index("uq_checkpoint_champion", "state", where="state = 'champion'", unique=True),
        _partial_index("uq_checkpoint_shadow", "state", where="state = 'shadow'", unique=True),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(Text)
    network: Mapped[str] = mapped_column(String(64))
    state: Mapped[CheckpointState] = mapped_column(String(16), default="challenger")
    state_changed_at: Mapped[datetime]
    state_changed_by: Mapped[str] = mapped_column(String(64))
    state_reason: Mapped[str | None] = mapped_column(Text)
    header: Mapped[dict[str, Any]] = mapped_column(JSON)
    registered_at: Mapped[datetime]

    @property
    def short(self) -> str:
        """Its digest as people and commands write it."""
        return short(self.digest)


class ReferenceFinding(Base):
    """The usual probability of a finding under a checkpoint: the mean over its reference films."""

    __tablename__ = "reference_finding"
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    finding: Mapped[str] = mapped_column(String(32), primary_key=True)
    mean: Mapped[float] = mapped_column(REAL)


class ReferenceShare(Base):
    """A step of a finding's reference distribution: at most `share` of the reference films reach `probability`."""

    __tablename__ = "reference_share"
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    finding: Mapped[str] = mapped_column(String(32), primary_key=True)
    probability: Mapped[float] = mapped_column(REAL, primary_key=True)
    share: Mapped[float] = mapped_column(REAL)


class FilmScore(Base):
    """Calibrated probabilities of one film under one checkpoint, one column per finding (REAL, 0..1)."""

    __tablename__ = "film_score"
    __table_args__ = (UniqueConstraint("instance_id", "checkpoint_id"),)
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id", ondelete="CASCADE"))
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    scored_at: Mapped[datetime]
    mass: Mapped[float] = mapped_column(REAL)
    consolidation: Mapped[float] = mapped_column(REAL)
    atelectasis: Mapped[float] = mapped_column(REAL)
    pneumothorax: Mapped[float] = mapped_column(REAL)
    edema: Mapped[float] = mapped_column(REAL)
    emphysema: Mapped[float] = mapped_column(REAL)
    fibrosis: Mapped[float] = mapped_column(REAL)
    effusion: Mapped[float] = mapped_column(REAL)
    pleural_thickening: Mapped[float] = mapped_column(REAL)
    cardiomegaly: Mapped[float] = mapped_column(REAL)
    hernia: Mapped[float] = mapped_column(REAL)


class StudyPriority(Base):
    """Every fact the reading order needs, in one row per study, so that two partial indexes hold the order.

    `stat` and `received_at` repeat the study's (they never change but for STAT, written in the same transaction):
    an index cannot span two tables. `read_at` NULL means unread; setting it takes the study off the list.
    """

    __tablename__ = "study_priority"
    __table_args__ = (
        _one_of("category", Category),
        CheckConstraint("category_a = (category = 'A')", name="category_a"),
    )
    study_id: Mapped[int] = mapped_column(BigKey, ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)
    stat: Mapped[bool] = mapped_column(default=False)
    received_at: Mapped[datetime]
    category: Mapped[str] = mapped_column(String(1))
    category_a: Mapped[bool]
    urgency: Mapped[float]
    top_finding: Mapped[str | None] = mapped_column(String(32))
    top_probability: Mapped[float | None] = mapped_column(REAL)
    flag: Mapped[str | None] = mapped_column(Text)
    checkpoint_id: Mapped[int | None] = mapped_column(ForeignKey("checkpoint.id"))
    policy_id: Mapped[int | None] = mapped_column(ForeignKey("policy.id"))
    ranked_at: Mapped[datetime]
    read_at: Mapped[datetime | None]
    read_by: Mapped[str | None] = mapped_column(String(64))


class PolicyRow(Base):
    """A version of the urgency policy. Versions are never edited: a change is a new version."""

    __tablename__ = "policy"
    __table_args__ = (
        _partial_index("uq_policy_active", "active", where="active", unique=True),
        CheckConstraint("max_wait_minutes > 0", name="max_wait_minutes"),
        CheckConstraint("category_a_share > 0 AND category_a_share < 1", name="category_a_share"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(unique=True)
    active: Mapped[bool] = mapped_column(default=False)
    max_wait_minutes: Mapped[int]
    category_a_share: Mapped[float]
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(64))
    activated_at: Mapped[datetime | None]
    activated_by: Mapped[str | None] = mapped_column(String(64))
    note: Mapped[str | None] = mapped_column(Text)


class PolicyFindingRow(Base):
    """One finding's line in a policy version."""

    __tablename__ = "policy_finding"
    __table_args__ = (
        UniqueConstraint("policy_id", "finding"),
        _one_of("category", Category),
        CheckConstraint("weight >= 0", name="weight"),
        CheckConstraint("threshold > 0 AND threshold <= 1", name="threshold"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    policy_id: Mapped[int] = mapped_column(ForeignKey("policy.id", ondelete="CASCADE"))
    finding: Mapped[str] = mapped_column(String(32))
    category: Mapped[str] = mapped_column(String(1))
    weight: Mapped[float]
    threshold: Mapped[float | None]
    snomed_ct: Mapped[str | None] = mapped_column(String(18))
    radlex: Mapped[str | None] = mapped_column(String(16))


class Review(Base):
    """Confirmed findings of a study, one row each: the only labels that retraining trusts."""

    __tablename__ = "review"
    __table_args__ = (_one_of("verdict", Verdict), UniqueConstraint("study_id", "finding", "reader"))
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    finding: Mapped[str] = mapped_column(String(32))
    verdict: Mapped[Verdict] = mapped_column(String(12))
    reader: Mapped[str] = mapped_column(String(64))
    reviewed_at: Mapped[datetime]


class Run(Base):
    """One run over the waiting studies (a night, or one `nightread score`): when, how many, with what."""

    __tablename__ = "run"
    __table_args__ = (_partial_index("ix_run_open", "id", where="finished_at IS NULL"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime]
    last_settled_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    policy_id: Mapped[int] = mapped_column(ForeignKey("policy.id"))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    scored: Mapped[int] = mapped_column(default=0)
    skipped: Mapped[int] = mapped_column(default=0)
    quarantined: Mapped[int] = mapped_column(default=0)
    films: Mapped[int] = mapped_column(default=0)


class RunRank(Base):
    """The reading order as it stood when a run ended: its head, and what the run settled."""

    __tablename__ = "run_rank"
    __table_args__ = (Index("ix_run_rank_study_id", "study_id"),)  # else pruning a study scans every run's ranks
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    study_id: Mapped[int] = mapped_column(BigKey, ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)
    priority_rank: Mapped[int]
    category: Mapped[str] = mapped_column(String(1))
    urgency: Mapped[float]
    overdue: Mapped[bool]


class RunCategory(Base):
    """How many unread studies of one category were on the list when a run ended, and what stood out of them."""

    __tablename__ = "run_category"
    __table_args__ = (_one_of("category", Category),)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    category: Mapped[str] = mapped_column(String(1), primary_key=True)
    studies: Mapped[int]
    stat: Mapped[int]
    overdue: Mapped[int]
    flagged: Mapped[int]
    oldest_received_at: Mapped[datetime]


class TotalChange(Base):
    """A part of the totals: how many studies, instances, rejected files or deliveries of one kind there are more (or
    fewer).

    Written by triggers with what it counts, in one transaction; the sums are what there is. `reason`: of a delivery,
    its kind. `decided_under`: the settings by which an instance was decided.
    """

    __tablename__ = "total_change"
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    counted: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    decided_under: Mapped[str | None] = mapped_column(String(16))
    change: Mapped[int] = mapped_column(BigKey)


class TrainingRun(Base):
    """One retraining: from which data and code, with which outcome and evidence.

    States: running; passed, undecided or refused (by the gate); ended (there was nothing to train, `reason` says why);
    failed. The running row is also the lock: there is one at most, and whoever finds its lease expired resumes it.
    """

    __tablename__ = "training_run"
    __table_args__ = (
        _one_of("state", TrainingState),
        _partial_index("uq_training_run_running", "state", where="state = 'running'", unique=True),
        Index("ix_training_run_checkpoint_id", "checkpoint_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[TrainingState] = mapped_column(String(16))
    stage: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    cause: Mapped[str] = mapped_column(String(16), server_default="hand")
    attempts: Mapped[int] = mapped_column(server_default="1")
    held_by: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    parent_checkpoint_id: Mapped[int | None] = mapped_column(ForeignKey("checkpoint.id"))
    checkpoint_id: Mapped[int | None] = mapped_column(ForeignKey("checkpoint.id"))
    data_digest: Mapped[str | None] = mapped_column(String(64))
    code_commit: Mapped[str | None] = mapped_column(String(64))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    counts: Mapped[dict[str, Any]] = mapped_column(JSON)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)


class GateVerdict(Base):
    """A challenger judged beside the champion of that day: `result` is what promotion asks for.

    One that is undecided goes live only by a person's word, which is kept: who accepted it, when and why.
    """

    __tablename__ = "gate_verdict"
    __table_args__ = (_one_of("result", GateResult), Index("ix_gate_verdict_challenger_id", "challenger_id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    challenger_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    champion_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    training_run_id: Mapped[int | None] = mapped_column(ForeignKey("training_run.id"))
    result: Mapped[str] = mapped_column(String(16))
    gold_digest: Mapped[str] = mapped_column(String(64))
    films: Mapped[int]
    patients: Mapped[int]
    rules: Mapped[dict[str, Any]] = mapped_column(JSON)
    judged_at: Mapped[datetime]
    judged_by: Mapped[str] = mapped_column(String(64))
    accepted_at: Mapped[datetime | None]
    accepted_by: Mapped[str | None] = mapped_column(String(64))
    accepted_reason: Mapped[str | None] = mapped_column(Text)


class GateCheck(Base):
    """One line of a verdict: a figure of both checkpoints, their difference with its 95 % interval, and the bound.

    `positives_needed`: about how many films with the finding would decide what is undecided.
    """

    __tablename__ = "gate_check"
    __table_args__ = (_one_of("result", GateResult), UniqueConstraint("verdict_id", "number"))
    id: Mapped[int] = mapped_column(primary_key=True)
    verdict_id: Mapped[int] = mapped_column(ForeignKey("gate_verdict.id", ondelete="CASCADE"))
    number: Mapped[int]
    films_from: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(32))
    champion: Mapped[float | None]
    challenger: Mapped[float | None]
    difference: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    bound: Mapped[float | None]
    result: Mapped[str] = mapped_column(String(16))
    positives_needed: Mapped[int | None]
    note: Mapped[str | None] = mapped_column(Text)


class ShadowPriority(Base):
    """Where a study would stand under a checkpoint that does not rank: in shadow, or looked at before it goes live."""

    __tablename__ = "shadow_priority"
    __table_args__ = (_one_of("category", Category), Index("ix_shadow_priority_checkpoint_id", "checkpoint_id"))
    study_id: Mapped[int] = mapped_column(BigKey, ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    category: Mapped[str] = mapped_column(String(1))
    category_a: Mapped[bool]
    urgency: Mapped[float]
    flag: Mapped[str | None] = mapped_column(Text)
    top_finding: Mapped[str | None] = mapped_column(String(32))
    top_probability: Mapped[float | None] = mapped_column(REAL)
    policy_id: Mapped[int | None] = mapped_column(ForeignKey("policy.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    ranked_at: Mapped[datetime]


class Drift(Base):
    """One figure of one day beside its reference: how far what comes in has moved from what the checkpoint knows.

    Measures: psi and ks per finding (of the champion's scores), shares per attribute (psi over its values), rates
    (skipped, quarantined, view_unknown). `value` is how far it moved, `reference` from what: what chance gives for a
    distance, the share before for a rate; none where there was nothing to compare with. `level` is by the settings of
    that day.
    """

    __tablename__ = "drift"
    __table_args__ = (
        _one_of("level", DriftLevel),
        UniqueConstraint("day", "checkpoint_id", "measure", "subject"),
    )
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    day: Mapped[str] = mapped_column(String(10))
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    measure: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(64))
    value: Mapped[float]
    reference: Mapped[float | None]
    level: Mapped[str] = mapped_column(String(8))
    films: Mapped[int]
    computed_at: Mapped[datetime]


class PullWatermark(Base):
    """The day up to which one peer was pulled: each film of it is here, or its study is an UnpulledStudy.

    `day` is NULL until the first one; `updated_at`: when it last rose or a pull last came to its end, at first when one
    began.
    """

    __tablename__ = "pull_watermark"
    peer: Mapped[str] = mapped_column(String(32), primary_key=True)
    day: Mapped[str | None] = mapped_column(String(10))
    updated_at: Mapped[datetime]


class UnpulledStudy(Base):
    """A study of an archive of which films could not be fetched when it was last tried.

    An empty UID stands for all studies of the day whose UID is illegal. `reason` is the most frequent one.
    """

    __tablename__ = "unpulled_study"
    peer: Mapped[str] = mapped_column(String(32), primary_key=True)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    reason: Mapped[str] = mapped_column(String(64))
    failures: Mapped[int]
    first_failed_at: Mapped[datetime]
    last_failed_at: Mapped[datetime]


class Delivery(Base):
    """One result of one study for one destination: the outbox.

    States: waiting (until `not_before`), sending (by `held_by`, until its lease ends), sent, confirmed (the archive
    promised to keep it), superseded (what it says is out of date: not sent), skipped (must not be sent, `reason` says
    why), failed (given up). `object_uid` names the object or message, which is the same however often it is made.
    """

    __tablename__ = "delivery"
    __table_args__ = (
        _one_of("kind", DeliveryKind),
        _one_of("state", DeliveryState),
        UniqueConstraint("study_id", "checkpoint_id", "policy_id", "revision", "destination", "kind",
                         name="uq_delivery_once"),
        Index("ix_delivery_object_uid", "object_uid"),
    )  # fmt: skip
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    study_id: Mapped[int] = mapped_column(BigKey, ForeignKey("study.id", ondelete="CASCADE"))
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    policy_id: Mapped[int] = mapped_column(ForeignKey("policy.id"))
    revision: Mapped[int]
    destination: Mapped[str] = mapped_column(String(32))
    kind: Mapped[DeliveryKind] = mapped_column(String(4))
    state: Mapped[DeliveryState] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    object_uid: Mapped[str] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(server_default="0")
    refusals: Mapped[int] = mapped_column(server_default="0")  # the attempts that were answered, or ended their worker
    not_before: Mapped[datetime | None]
    held_by: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    published_at: Mapped[datetime]
    queued_at: Mapped[datetime]  # when it was published, or last asked for again
    sent_at: Mapped[datetime | None]


class Audit(Base):
    """Changes and views of studies, with person and time. Append only."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


# ------------------------------------------------------------------------------------------------------ the web page


class WebUser(Base):
    """A person who may sign in: with a password of this site (argon2id), or by an OpenID provider."""

    __tablename__ = "web_user"
    __table_args__ = (_one_of("role", Role), UniqueConstraint("name"), UniqueConstraint("oidc_subject"))
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[Role] = mapped_column(String(16))
    password_hash: Mapped[str | None] = mapped_column(Text)
    oidc_subject: Mapped[str | None] = mapped_column(String(512))  # issuer and subject
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(64))
    disabled_at: Mapped[datetime | None]


class WebSession(Base):
    """A browser that is signed in, by the SHA-256 of its cookie; the cookie itself is kept nowhere."""

    __tablename__ = "web_session"
    __table_args__ = (Index("ix_web_session_user_id", "user_id"),)
    token_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("web_user.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class ApiToken(Base):
    """A token for a program that reads the list, by its SHA-256; it may what its user may."""

    __tablename__ = "api_token"
    __table_args__ = (UniqueConstraint("token_digest"), UniqueConstraint("user_id", "name"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("web_user.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(64))
    token_digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[datetime | None]


class LoginFailure(Base):
    """A sign-in that failed, for a while: name and address as SHA-256, for a name may be a password typed amiss."""

    __tablename__ = "login_failure"
    __table_args__ = (Index("ix_login_failure_at", "at"),)
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    name_digest: Mapped[str] = mapped_column(String(64))
    address_digest: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]


class ReadingClaim(Base):
    """A claim on a study by the user who reads it now, until its lease ends; one per study."""

    __tablename__ = "reading_claim"
    study_id: Mapped[int] = mapped_column(BigKey, ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)
    reader: Mapped[str] = mapped_column(String(64))
    claimed_at: Mapped[datetime]
    lease_expires_at: Mapped[datetime]
    taken_from: Mapped[str | None] = mapped_column(String(64))
    taken_because: Mapped[str | None] = mapped_column(Text)


# The claim: the most pressing waiting studies, found without touching the settled ones.
_partial_index("ix_study_waiting", Study.stat.desc(), Study.received_at, Study.id, where="state = 'waiting'")
# Films that nobody has decoded yet: among settled studies there must be none.
_partial_index("ix_instance_waiting", Instance.study_id, where="state = 'waiting' AND view IS NOT NULL")
# Publishing: what was scored lately.
_partial_index("ix_study_scored", Study.settled_at, where="state = 'scored'")
# Whether a film that nobody has decoded is a waiting study's.
_partial_index("ix_study_unsettled", Study.id, where="state IN ('waiting', 'claimed')")
# What people look for among millions that went well: what failed, and what was read since.
_partial_index("ix_study_quarantined", Study.settled_at, where="state = 'quarantined'")
_partial_index("ix_instance_quarantined", Instance.study_id, where="state = 'quarantined'")
_partial_index("ix_study_priority_read_at", StudyPriority.read_at, where="read_at IS NOT NULL")
_partial_index("ix_delivery_not_sent", Delivery.id, where="state IN ('waiting', 'sending', 'failed')")
# Sending: what is on its way, and what is due, the oldest first.
_partial_index("ix_delivery_sending", Delivery.study_id, where="state = 'sending'")
_partial_index("ix_delivery_waiting", Delivery.published_at, Delivery.id, where="state = 'waiting'")
# The sweep: leases that ran out.
_partial_index("ix_study_claimed", Study.lease_expires_at, where="state = 'claimed'")
# The reading order has two ends that move: the most urgent, and the longest waiting. `read_at` is NULL in all of both;
# SQLite, unless the index holds it, looks it up in the table to be sure.
_partial_index(
    "ix_study_priority_order",
    StudyPriority.stat.desc(),
    StudyPriority.category_a.desc(),
    StudyPriority.urgency.desc(),
    StudyPriority.received_at,
    StudyPriority.study_id,
    StudyPriority.read_at,
    where="read_at IS NULL",
)
_partial_index(
    "ix_study_priority_oldest",
    StudyPriority.stat.desc(),
    StudyPriority.received_at,
    StudyPriority.category_a.desc(),
    StudyPriority.urgency.desc(),
    StudyPriority.study_id,
    StudyPriority.read_at,
    where="read_at IS NULL",
)
