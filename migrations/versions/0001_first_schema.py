"""The first schema: ledger, scores, priorities, policy, checkpoints, reviews, runs, retraining, drift, views."""

import secrets
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

import db.columns
from migrations.totals_0001 import triggers
from migrations.views_0001 import views

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = db.columns.UtcDateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("network", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_changed_at", MOMENT, nullable=False),
        sa.Column("state_changed_by", sa.String(length=64), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("header", sa.JSON(), nullable=False),
        sa.Column("registered_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "state IN ('challenger', 'shadow', 'champion', 'retired', 'refused')", name=op.f("ck_checkpoint_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint")),
        sa.UniqueConstraint("digest", name=op.f("uq_checkpoint_digest")),
    )
    _at_most_one("uq_checkpoint_champion", "checkpoint", "state", where="state = 'champion'")
    _at_most_one("uq_checkpoint_shadow", "checkpoint", "state", where="state = 'shadow'")
    op.create_table(
        "reference_finding",
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("finding", sa.String(length=32), nullable=False),
        sa.Column("mean", sa.REAL(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_reference_finding_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", "finding", name=op.f("pk_reference_finding")),
    )
    op.create_table(
        "reference_share",
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("finding", sa.String(length=32), nullable=False),
        sa.Column("probability", sa.REAL(), nullable=False),
        sa.Column("share", sa.REAL(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_reference_share_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", "finding", "probability", name=op.f("pk_reference_share")),
    )
    op.create_table(
        "policy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("max_wait_minutes", sa.Integer(), nullable=False),
        sa.Column("category_a_share", sa.Double(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("activated_at", MOMENT, nullable=True),
        sa.Column("activated_by", sa.String(length=64), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.CheckConstraint("category_a_share > 0 AND category_a_share < 1", name=op.f("ck_policy_category_a_share")),
        sa.CheckConstraint("max_wait_minutes > 0", name=op.f("ck_policy_max_wait_minutes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
        sa.UniqueConstraint("version", name=op.f("uq_policy_version")),
    )
    _at_most_one("uq_policy_active", "policy", "active", where="active")
    op.create_table(
        "rejected_file",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("path_digest", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_file")),
        sa.UniqueConstraint("path_digest", name=op.f("uq_rejected_file_path_digest")),
    )
    op.create_index("ix_rejected_file_sop_instance_uid", "rejected_file", ["sop_instance_uid"])
    op.create_index("ix_rejected_file_path", "rejected_file", ["path"], postgresql_using="hash")
    op.create_table(
        "site",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("patient_key_secret", sa.String(length=64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("deliveries_paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site")),
    )
    op.create_table(
        "policy_finding",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("policy_id", sa.Integer(), nullable=False),
        sa.Column("finding", sa.String(length=32), nullable=False),
        sa.Column("category", sa.String(length=1), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("snomed_ct", sa.String(length=18), nullable=True),
        sa.Column("radlex", sa.String(length=16), nullable=True),
        sa.CheckConstraint("category IN ('A', 'B', 'C', 'D')", name=op.f("ck_policy_finding_category")),
        sa.CheckConstraint("threshold > 0 AND threshold <= 1", name=op.f("ck_policy_finding_threshold")),
        sa.CheckConstraint("weight >= 0", name=op.f("ck_policy_finding_weight")),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["policy.id"], name=op.f("fk_policy_finding_policy_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_finding")),
        sa.UniqueConstraint("policy_id", "finding", name=op.f("uq_policy_finding_policy_id_finding")),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("last_settled_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("policy_id", sa.Integer(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("scored", sa.Integer(), nullable=False),
        sa.Column("skipped", sa.Integer(), nullable=False),
        sa.Column("quarantined", sa.Integer(), nullable=False),
        sa.Column("films", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_run_checkpoint_id")),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_run_policy_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
    )
    op.create_index(
        "ix_run_open",
        "run",
        ["id"],
        postgresql_where=sa.text("finished_at IS NULL"),
        sqlite_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "training_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("parent_checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("data_digest", sa.String(length=64), nullable=True),
        sa.Column("code_commit", sa.String(length=64), nullable=True),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=True),
        sa.Column("cause", sa.String(length=16), nullable=False, server_default="hand"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("held_by", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", MOMENT, nullable=True),
        sa.CheckConstraint(
            "state IN ('running', 'passed', 'undecided', 'refused', 'ended', 'failed')",
            name=op.f("ck_training_run_state"),
        ),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_training_run_checkpoint_id")),
        sa.ForeignKeyConstraint(
            ["parent_checkpoint_id"], ["checkpoint.id"], name=op.f("fk_training_run_parent_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_run")),
    )
    op.create_index("ix_training_run_checkpoint_id", "training_run", ["checkpoint_id"])
    _at_most_one("uq_training_run_running", "training_run", "state", where="state = 'running'")
    op.create_table(
        "study",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("accession_number", sa.String(length=64), nullable=True),
        sa.Column("patient_key", sa.String(length=64), nullable=True),
        sa.Column("patient_sex", sa.String(length=1), nullable=True),
        sa.Column("patient_age_years", sa.Integer(), nullable=True),
        sa.Column("stat", sa.Boolean(), nullable=False),
        sa.Column("acquired_at", MOMENT, nullable=True),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("suspect", sa.Boolean(), nullable=False),
        sa.Column("claimed_by", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", MOMENT, nullable=True),
        sa.Column("not_before", MOMENT, nullable=True),
        sa.Column("unavailable_since", MOMENT, nullable=True),
        sa.Column("notified_at", MOMENT, nullable=True),
        sa.Column("settled_at", MOMENT, nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'claimed', 'scored', 'skipped', 'quarantined')", name=op.f("ck_study_state")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_study_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_study_study_instance_uid")),
    )
    op.create_index("ix_study_accession_number", "study", ["accession_number"])
    op.create_index(
        "ix_study_claimed",
        "study",
        ["lease_expires_at"],
        postgresql_where=sa.text("state = 'claimed'"),
        sqlite_where=sa.text("state = 'claimed'"),
    )
    op.create_index("ix_study_received_at", "study", ["received_at"])
    op.create_index("ix_study_patient_key", "study", ["patient_key"])
    op.create_index("ix_study_run_id", "study", ["run_id"])
    op.create_table(
        "instance",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("study_id", BIG_KEY, nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=True),
        sa.Column("modality", sa.String(length=16), nullable=True),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=True),
        sa.Column("photometric_interpretation", sa.String(length=16), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("columns", sa.Integer(), nullable=True),
        sa.Column("manufacturer", sa.String(length=64), nullable=True),
        sa.Column("view", sa.String(length=8), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("evidence", sa.Text(), nullable=True),
        sa.Column("flags", sa.Text(), nullable=True),
        sa.Column("in_scope", sa.Boolean(), nullable=False),
        sa.Column("pixel_digest", sa.String(length=64), nullable=True),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("file_stamp", sa.String(length=64), nullable=True),
        sa.Column("file_digest", sa.String(length=64), nullable=True),
        sa.Column("decided_under", sa.String(length=16), nullable=True),
        sa.CheckConstraint("state IN ('waiting', 'scored', 'skipped', 'quarantined')", name=op.f("ck_instance_state")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_instance_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_instance_sop_instance_uid")),
    )
    op.create_index("ix_instance_study_id", "instance", ["study_id"])
    op.create_index("ix_instance_received_at", "instance", ["received_at"])
    op.create_index("ix_instance_path", "instance", ["path"], postgresql_using="hash")
    op.create_table(
        "instance_version",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("instance_id", BIG_KEY, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("view", sa.String(length=8), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("evidence", sa.Text(), nullable=True),
        sa.Column("flags", sa.Text(), nullable=True),
        sa.Column("pixel_digest", sa.String(length=64), nullable=True),
        sa.Column("file_digest", sa.String(length=64), nullable=True),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("replaced_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_instance_version_instance_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance_version")),
    )
    op.create_index("ix_instance_version_instance_id", "instance_version", ["instance_id"])
    op.create_index("ix_instance_version_path", "instance_version", ["path"], postgresql_using="hash")
    op.create_table(
        "review",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("study_id", BIG_KEY, nullable=False),
        sa.Column("finding", sa.String(length=32), nullable=False),
        sa.Column("verdict", sa.String(length=12), nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("reviewed_at", MOMENT, nullable=False),
        sa.CheckConstraint("verdict IN ('present', 'absent', 'not_assessed')", name=op.f("ck_review_verdict")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_review_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review")),
        sa.UniqueConstraint("study_id", "finding", "reader", name=op.f("uq_review_study_id_finding_reader")),
    )
    op.create_table(
        "run_rank",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("study_id", BIG_KEY, nullable=False),
        sa.Column("priority_rank", sa.Integer(), nullable=False),
        sa.Column("category", sa.String(length=1), nullable=False),
        sa.Column("urgency", sa.Double(), nullable=False),
        sa.Column("overdue", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_rank_run_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_run_rank_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "study_id", name=op.f("pk_run_rank")),
    )
    op.create_index("ix_run_rank_study_id", "run_rank", ["study_id"])
    op.create_table(
        "run_category",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("category", sa.String(length=1), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("studies", "stat", "overdue", "flagged")),
        sa.Column("oldest_received_at", MOMENT, nullable=False),
        sa.CheckConstraint("category IN ('A', 'B', 'C', 'D')", name=op.f("ck_run_category_category")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_category_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "category", name=op.f("pk_run_category")),
    )
    op.create_table(
        "total_change",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("counted", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("decided_under", sa.String(length=16), nullable=True),
        sa.Column("change", BIG_KEY, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_total_change")),
    )
    op.create_table(
        "study_priority",
        sa.Column("study_id", BIG_KEY, nullable=False),
        sa.Column("stat", sa.Boolean(), nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("category", sa.String(length=1), nullable=False),
        sa.Column("category_a", sa.Boolean(), nullable=False),
        sa.Column("urgency", sa.Double(), nullable=False),
        sa.Column("top_finding", sa.String(length=32), nullable=True),
        sa.Column("top_probability", sa.REAL(), nullable=True),
        sa.Column("flag", sa.Text(), nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("policy_id", sa.Integer(), nullable=True),
        sa.Column("ranked_at", MOMENT, nullable=False),
        sa.Column("read_at", MOMENT, nullable=True),
        sa.Column("read_by", sa.String(length=64), nullable=True),
        sa.CheckConstraint("category_a = (category = 'A')", name=op.f("ck_study_priority_category_a")),
        sa.CheckConstraint("category IN ('A', 'B', 'C', 'D')", name=op.f("ck_study_priority_category")),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_study_priority_checkpoint_id")),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_study_priority_policy_id")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name=op.f("fk_study_priority_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_study_priority")),
    )
    op.create_table(
        "film_score",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("instance_id", BIG_KEY, nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("scored_at", MOMENT, nullable=False),
        sa.Column("mass", sa.REAL(), nullable=False),
        sa.Column("consolidation", sa.REAL(), nullable=False),
        sa.Column("atelectasis", sa.REAL(), nullable=False),
        sa.Column("pneumothorax", sa.REAL(), nullable=False),
        sa.Column("edema", sa.REAL(), nullable=False),
        sa.Column("emphysema", sa.REAL(), nullable=False),
        sa.Column("fibrosis", sa.REAL(), nullable=False),
        sa.Column("effusion", sa.REAL(), nullable=False),
        sa.Column("pleural_thickening", sa.REAL(), nullable=False),
        sa.Column("cardiomegaly", sa.REAL(), nullable=False),
        sa.Column("hernia", sa.REAL(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_film_score_checkpoint_id")),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_film_score_instance_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_film_score_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_film_score")),
        sa.UniqueConstraint("instance_id", "checkpoint_id", name=op.f("uq_film_score_instance_id_checkpoint_id")),
    )
    op.create_table(
        "gate_verdict",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("challenger_id", sa.Integer(), nullable=False),
        sa.Column("champion_id", sa.Integer(), nullable=False),
        sa.Column("training_run_id", sa.Integer(), nullable=True),
        sa.Column("result", sa.String(length=16), nullable=False),
        sa.Column("gold_digest", sa.String(length=64), nullable=False),
        sa.Column("films", sa.Integer(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("judged_at", MOMENT, nullable=False),
        sa.Column("judged_by", sa.String(length=64), nullable=False),
        sa.Column("accepted_at", MOMENT, nullable=True),
        sa.Column("accepted_by", sa.String(length=64), nullable=True),
        sa.Column("accepted_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("result IN ('passed', 'undecided', 'failed')", name=op.f("ck_gate_verdict_result")),
        sa.ForeignKeyConstraint(["challenger_id"], ["checkpoint.id"], name=op.f("fk_gate_verdict_challenger_id")),
        sa.ForeignKeyConstraint(["champion_id"], ["checkpoint.id"], name=op.f("fk_gate_verdict_champion_id")),
        sa.ForeignKeyConstraint(["training_run_id"], ["training_run.id"], name=op.f("fk_gate_verdict_training_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate_verdict")),
    )
    op.create_index("ix_gate_verdict_challenger_id", "gate_verdict", ["challenger_id"])
    op.create_table(
        "gate_check",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("verdict_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("films_from", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=32), nullable=False),
        *(
            sa.Column(name, sa.Double(), nullable=True)
            for name in ("champion", "challenger", "difference", "low", "high", "bound")
        ),
        sa.Column("result", sa.String(length=16), nullable=False),
        sa.Column("positives_needed", sa.Integer(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.CheckConstraint("result IN ('passed', 'undecided', 'failed')", name=op.f("ck_gate_check_result")),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["gate_verdict.id"], name=op.f("fk_gate_check_verdict_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate_check")),
        sa.UniqueConstraint("verdict_id", "number", name=op.f("uq_gate_check_verdict_id_number")),
    )
    op.create_table(
        "shadow_priority",
        sa.Column("study_id", BIG_KEY, nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("category", sa.String(length=1), nullable=False),
        sa.Column("category_a", sa.Boolean(), nullable=False),
        sa.Column("urgency", sa.Double(), nullable=False),
        sa.Column("flag", sa.Text(), nullable=True),
        sa.Column("top_finding", sa.String(length=32), nullable=True),
        sa.Column("top_probability", sa.REAL(), nullable=True),
        sa.Column("policy_id", sa.Integer(), nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("ranked_at", MOMENT, nullable=False),
        sa.CheckConstraint("category IN ('A', 'B', 'C', 'D')", name=op.f("ck_shadow_priority_category")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name=op.f("fk_shadow_priority_study_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_shadow_priority_checkpoint_id")),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_shadow_priority_policy_id")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_shadow_priority_run_id")),
        sa.PrimaryKeyConstraint("study_id", "checkpoint_id", name=op.f("pk_shadow_priority")),
    )
    op.create_index("ix_shadow_priority_checkpoint_id", "shadow_priority", ["checkpoint_id"])
    op.create_table(
        "drift",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("measure", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("reference", sa.Double(), nullable=True),
        sa.Column("level", sa.String(length=8), nullable=False),
        sa.Column("films", sa.Integer(), nullable=False),
        sa.Column("computed_at", MOMENT, nullable=False),
        sa.CheckConstraint("level IN ('quiet', 'warn', 'act')", name=op.f("ck_drift_level")),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_drift_checkpoint_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drift")),
        sa.UniqueConstraint(
            "day", "checkpoint_id", "measure", "subject", name=op.f("uq_drift_day_checkpoint_id_measure_subject")
        ),
    )
    op.create_table(
        "pull_watermark",
        sa.Column("peer", sa.String(length=32), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=True),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("peer", name=op.f("pk_pull_watermark")),
    )
    op.create_table(
        "unpulled_study",
        sa.Column("peer", sa.String(length=32), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("first_failed_at", MOMENT, nullable=False),
        sa.Column("last_failed_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("peer", "day", "study_instance_uid", name=op.f("pk_unpulled_study")),
    )
    op.create_table(
        "delivery",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("study_id", BIG_KEY, nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("policy_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=4), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("object_uid", sa.String(length=64), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("refusals", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", MOMENT, nullable=True),
        sa.Column("held_by", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", MOMENT, nullable=True),
        sa.Column("published_at", MOMENT, nullable=False),
        sa.Column("queued_at", MOMENT, nullable=False),
        sa.Column("sent_at", MOMENT, nullable=True),
        sa.CheckConstraint("kind IN ('sr', 'sc', 'oru', 'fhir')", name=op.f("ck_delivery_kind")),
        sa.CheckConstraint(
            "state IN ('waiting', 'sending', 'sent', 'confirmed', 'superseded', 'skipped', 'failed')",
            name=op.f("ck_delivery_state"),
        ),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_delivery_checkpoint_id")),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_delivery_policy_id")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_delivery_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint(
            "study_id", "checkpoint_id", "policy_id", "revision", "destination", "kind", name="uq_delivery_once"
        ),
    )
    op.create_index("ix_delivery_object_uid", "delivery", ["object_uid"])
    op.create_index(
        "ix_delivery_waiting",
        "delivery",
        ["published_at", "id"],
        postgresql_where=sa.text("state = 'waiting'"),
        sqlite_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_study_scored",
        "study",
        ["settled_at"],
        postgresql_where=sa.text("state = 'scored'"),
        sqlite_where=sa.text("state = 'scored'"),
    )
    for name, table, column, where in (
        ("ix_study_unsettled", "study", "id", "state IN ('waiting', 'claimed')"),
        ("ix_study_quarantined", "study", "settled_at", "state = 'quarantined'"),
        ("ix_instance_quarantined", "instance", "study_id", "state = 'quarantined'"),
        ("ix_study_priority_read_at", "study_priority", "read_at", "read_at IS NOT NULL"),
        ("ix_delivery_sending", "delivery", "study_id", "state = 'sending'"),
        ("ix_delivery_not_sent", "delivery", "id", "state IN ('waiting', 'sending', 'failed')"),
    ):
        op.create_index(name, table, [column], postgresql_where=sa.text(where), sqlite_where=sa.text(where))
    _create_web_tables()
    op.create_index(
        "ix_study_waiting",
        "study",
        [sa.text("stat DESC"), "received_at", "id"],
        postgresql_where=sa.text("state = 'waiting'"),
        sqlite_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_study_priority_order",
        "study_priority",
        [
            sa.text("stat DESC"),
            sa.text("category_a DESC"),
            sa.text("urgency DESC"),
            "received_at",
            "study_id",
            "read_at",
        ],
        postgresql_where=sa.text("read_at IS NULL"),
        sqlite_where=sa.text("read_at IS NULL"),
    )
    op.create_index(
        "ix_study_priority_oldest",
        "study_priority",
        [
            sa.text("stat DESC"),
            "received_at",
            sa.text("category_a DESC"),
            sa.text("urgency DESC"),
            "study_id",
            "read_at",
        ],
        postgresql_where=sa.text("read_at IS NULL"),
        sqlite_where=sa.text("read_at IS NULL"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # A read study leaves a dead entry at the head of both indexes, which every look at the list steps over until a
        # vacuum. By default that comes after a fifth of the table, which for an archive is years of reading.
        op.execute(
            "ALTER TABLE study_priority SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, "
            "vacuum_index_cleanup = on)"
        )
    op.create_index(
        "ix_instance_waiting",
        "instance",
        ["study_id"],
        postgresql_where=sa.text("state = 'waiting' AND view IS NOT NULL"),
        sqlite_where=sa.text("state = 'waiting' AND view IS NOT NULL"),
    )
    for statement in triggers(op.get_bind().dialect.name):
        op.execute(statement)
    site = sa.table(
        "site", sa.column("id"), sa.column("patient_key_secret"), sa.column("created_at", db.columns.UtcDateTime)
    )
    row = {"id": 1, "patient_key_secret": secrets.token_hex(32), "created_at": datetime.now(UTC)}
    op.execute(site.insert().values(row))
    for name, body in views(op.get_bind().dialect.name).items():
        op.execute(f"CREATE VIEW {name} AS {body}")


def _create_web_tables() -> None:
    op.create_table(
        "web_user",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("oidc_subject", sa.String(length=512), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("disabled_at", MOMENT, nullable=True),
        sa.CheckConstraint("role IN ('viewer', 'reader', 'administrator')", name=op.f("ck_web_user_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_web_user")),
        sa.UniqueConstraint("name", name=op.f("uq_web_user_name")),
        sa.UniqueConstraint("oidc_subject", name=op.f("uq_web_user_oidc_subject")),
    )
    op.create_table(
        "web_session",
        sa.Column("token_digest", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["web_user.id"], name=op.f("fk_web_session_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_digest", name=op.f("pk_web_session")),
    )
    op.create_index("ix_web_session_user_id", "web_session", ["user_id"])
    op.create_table(
        "api_token",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("token_digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["web_user.id"], name=op.f("fk_api_token_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("token_digest", name=op.f("uq_api_token_token_digest")),
        sa.UniqueConstraint("user_id", "name", name=op.f("uq_api_token_user_id_name")),
    )
    op.create_table(
        "login_failure",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("name_digest", sa.String(length=64), nullable=False),
        sa.Column("address_digest", sa.String(length=64), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_failure")),
    )
    op.create_index("ix_login_failure_at", "login_failure", ["at"])
    op.create_table(
        "reading_claim",
        sa.Column("study_id", BIG_KEY, nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("claimed_at", MOMENT, nullable=False),
        sa.Column("lease_expires_at", MOMENT, nullable=False),
        sa.Column("taken_from", sa.String(length=64), nullable=True),
        sa.Column("taken_because", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_reading_claim_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_reading_claim")),
    )


def _at_most_one(name: str, table: str, column: str, *, where: str) -> None:
    op.create_index(name, table, [column], unique=True, postgresql_where=sa.text(where), sqlite_where=sa.text(where))
