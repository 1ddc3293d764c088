"""Retraining: its lock, the gate's verdicts, shadow ranks, drift, and the views that show them."""

import sqlalchemy as sa
from alembic import op

import db.base
from migrations.views_0001 import NEXT, next_to_read
from migrations.views_0002 import views

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = db.base.UtcDateTime(timezone=True)
NEW_COLUMNS = ("stage", "cause", "attempts", "held_by", "lease_expires_at")
NEXT_NOW = 50  # what one looks at; each of the four ends of the order is read so far, so half as many cost half
TABLES_LAST_FIRST = ("drift", "shadow_priority", "gate_check", "gate_verdict")


def upgrade() -> None:
    with op.batch_alter_table("training_run") as table:
        table.add_column(sa.Column("stage", sa.String(length=16), nullable=True))
        table.add_column(sa.Column("cause", sa.String(length=16), nullable=False, server_default="hand"))
        table.add_column(sa.Column("attempts", sa.Integer(), nullable=False, server_default="1"))
        table.add_column(sa.Column("held_by", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("lease_expires_at", MOMENT, nullable=True))
        table.create_check_constraint(
            op.f("ck_training_run_state"), "state IN ('running', 'passed', 'undecided', 'refused', 'ended', 'failed')"
        )
    op.create_index("ix_training_run_checkpoint_id", "training_run", ["checkpoint_id"])
    _at_most_one("uq_training_run_running", "training_run", "state = 'running'")
    _at_most_one("uq_checkpoint_shadow", "checkpoint", "state = 'shadow'")
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
    for name, body in views(op.get_bind().dialect.name).items():
        op.execute(f"CREATE VIEW {name} AS {body}")
    _next_to_read(NEXT_NOW)


def _next_to_read(limit: int) -> None:
    op.execute("DROP VIEW next_to_read")
    op.execute(f"CREATE VIEW next_to_read AS {next_to_read(op.get_bind().dialect.name, limit=limit)}")


def _at_most_one(name: str, table: str, where: str) -> None:
    op.create_index(name, table, ["state"], unique=True, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def downgrade() -> None:
    _next_to_read(NEXT)
    for name in reversed(views(op.get_bind().dialect.name)):
        op.execute(f"DROP VIEW {name}")
    for name in TABLES_LAST_FIRST:
        op.drop_table(name)
    op.drop_index("uq_checkpoint_shadow", "checkpoint")
    op.drop_index("uq_training_run_running", "training_run")
    op.drop_index("ix_training_run_checkpoint_id", "training_run")
    with op.batch_alter_table("training_run") as table:
        table.drop_constraint(op.f("ck_training_run_state"), type_="check")
        for column in NEW_COLUMNS:
            table.drop_column(column)
