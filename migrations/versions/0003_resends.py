"""Files that are sent again: how a changed one is known, what was held before, and a refused film's better copy."""

import sqlalchemy as sa
from alembic import op

import db.base

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = db.base.UtcDateTime(timezone=True)


def upgrade() -> None:
    op.add_column("instance", sa.Column("file_stamp", sa.String(length=64), nullable=True))
    op.add_column("instance", sa.Column("file_digest", sa.String(length=64), nullable=True))
    op.add_column("instance", sa.Column("decided_under", sa.String(length=16), nullable=True))
    op.add_column("rejected_file", sa.Column("sop_instance_uid", sa.String(length=64), nullable=True))
    op.create_index("ix_rejected_file_sop_instance_uid", "rejected_file", ["sop_instance_uid"])
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


def downgrade() -> None:
    op.drop_table("instance_version")
    op.drop_index("ix_rejected_file_sop_instance_uid", "rejected_file")
    op.drop_column("rejected_file", "sop_instance_uid")
    for name in ("decided_under", "file_digest", "file_stamp"):
        op.drop_column("instance", name)
