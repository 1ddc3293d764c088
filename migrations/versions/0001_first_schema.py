"""The first schema: ledger, scores, priorities, policy, checkpoints, reviews, runs and the views people query."""

import secrets
from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

import db.base

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


TABLES_LAST_FIRST = (
    "film_score",
    "study_priority",
    "run_rank",
    "review",
    "instance",
    "study",
    "training_run",
    "run",
    "policy_finding",
    "site",
    "rejected_file",
    "policy",
    "checkpoint",
    "audit",
)

FINDINGS = (
    "Mass",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Hernia",
)

MAX_WAIT = "coalesce((SELECT max_wait_minutes FROM policy WHERE active), 720)"

# What was received before this moment has waited too long. A scalar, so that both databases can use it on an index.
OVERDUE_BEFORE = {
    "postgresql": f"(now() - make_interval(mins => {MAX_WAIT}))",
    # A subquery, or SQLite would read the clock and the policy again for every row.
    "sqlite": f"(SELECT strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || {MAX_WAIT} || ' minutes'))",
}

# Moments as people count them, in the time zone of the session (PostgreSQL) or of the machine (SQLite). A night has the
# date on which it began: it lasts from noon to noon.
TIME = {
    "postgresql": {
        "night": "to_char({0} - interval '12 hours', 'YYYY-MM-DD')",
        "hour": "CAST(extract(hour FROM {0}) AS integer)",
        "minutes": "CAST(extract(epoch FROM {1} - {0}) / 60 AS double precision)",
    },
    "sqlite": {
        "night": "strftime('%Y-%m-%d', {0}, 'localtime', '-12 hours')",
        "hour": "CAST(strftime('%H', {0}, 'localtime') AS integer)",
        "minutes": "((julianday({1}) - julianday({0})) * 1440)",
    },
}

# For study_place: minutes since an arrival, and the function that joins words.
PLACE = {
    "postgresql": {"waited": TIME["postgresql"]["minutes"].format("p.received_at", "now()"), "listed": "string_agg"},
    "sqlite": {"waited": TIME["sqlite"]["minutes"].format("p.received_at", "'now'"), "listed": "group_concat"},
}

# The threshold that a checkpoint brings for a finding, where the policy has none of its own.
CHECKPOINT_THRESHOLD = {
    "postgresql": "CAST(c.header -> 'thresholds' -> w.finding ->> 'flag_10' AS double precision)",
    "sqlite": "json_extract(c.header, '$.thresholds.' || w.finding || '.flag_10')",
}

# The highest probability of a finding among a study's films, under the checkpoint that ranks the study.
STUDY_PROBABILITY = """(
    SELECT max(f.probability) FROM instance i
    JOIN finding_score f ON f.instance_id = i.id AND f.checkpoint_id = p.checkpoint_id
    WHERE i.study_id = p.study_id AND i.state = 'scored' AND f.finding = w.finding)"""


class Order(NamedTuple):
    """An order within STAT or not STAT, and the table read along the index that has it."""

    columns: tuple[str, ...]
    table: str


def orders(dialect: str) -> tuple[Order, Order]:
    """The oldest first, for the overdue, and the most urgent first. SQLite is told the index: it guesses badly."""
    table = "study_priority q" + (" INDEXED BY {}" if dialect == "sqlite" else "")
    return (
        Order(OLDEST, table.format("ix_study_priority_oldest")),
        Order(URGENT, table.format("ix_study_priority_order")),
    )


OLDEST = ("received_at", "category_a DESC", "urgency DESC", "study_id")
URGENT = ("category_a DESC", "urgency DESC", "received_at", "study_id")

# The reading order: STAT, overdue (oldest first), category A, urgency, arrival; `study_id` makes it total.
ORDER = """p.stat DESC, p.overdue DESC, CASE WHEN p.overdue THEN p.received_at END,
    p.category_a DESC, p.urgency DESC, p.received_at, p.study_id"""

RANKED = """
    SELECT {rank} AS priority_rank, s.study_instance_uid, s.accession_number, p.category, p.urgency, p.top_finding,
           p.top_probability, s.acquired_at, p.received_at, p.overdue, p.stat, p.flag, c.digest AS checkpoint_digest,
           y.version AS policy_version, p.study_id
    FROM ({rows}) p
    JOIN study s ON s.id = p.study_id
    LEFT JOIN checkpoint c ON c.id = p.checkpoint_id
    LEFT JOIN policy y ON y.id = p.policy_id"""

NEXT = 100  # how many studies the view next_to_read holds


def views(dialect: str) -> dict[str, str]:
    """The views by name, in the order they must be created."""
    oldest, urgent = orders(dialect)
    return {
        "finding_score": " UNION ALL ".join(
            f"SELECT instance_id, checkpoint_id, '{f}' AS finding, {f.lower()} AS probability FROM film_score"  # noqa: S608
            for f in FINDINGS
        ),
        "study_findings": f"""
            SELECT s.study_instance_uid, {", ".join(f"max(f.{f.lower()}) AS {f.lower()}" for f in FINDINGS)}
            FROM study s
            JOIN study_priority p ON p.study_id = s.id
            JOIN instance i ON i.study_id = s.id AND i.state = 'scored'
            JOIN film_score f ON f.instance_id = i.id AND f.checkpoint_id = p.checkpoint_id
            GROUP BY s.id, s.study_instance_uid""",  # noqa: S608
        "worklist": _worklist(OVERDUE_BEFORE[dialect]),
        "next_to_read": _next_to_read(OVERDUE_BEFORE[dialect], oldest, urgent),
        "study_log": _study_log(**TIME[dialect]),
        "film_log": _film_log(night=TIME[dialect]["night"], hour=TIME[dialect]["hour"]),
        "study_contribution": _study_contribution(CHECKPOINT_THRESHOLD[dialect]),
        "study_place": _study_place(OVERDUE_BEFORE[dialect], oldest, urgent, **PLACE[dialect]),
        "review_log": """
            SELECT r.study_id, s.study_instance_uid, s.accession_number, r.finding, r.verdict, r.reader, r.reviewed_at,
                   w.probability, w.threshold, w.counts AS flagged
            FROM review r
            JOIN study s ON s.id = r.study_id
            LEFT JOIN study_contribution w ON w.study_id = r.study_id AND w.finding = r.finding""",
        "run_order": """
            SELECT r.run_id, r.priority_rank, s.study_instance_uid, s.accession_number, r.category, r.urgency,
                   r.overdue, p.read_at
            FROM run_rank r
            JOIN study s ON s.id = r.study_id
            LEFT JOIN study_priority p ON p.study_id = r.study_id""",
    }


def _study_log(*, night: str, hour: str, minutes: str) -> str:
    """One row per study: what became of it, where it stood, when, and how long that took. Nothing of the patient."""
    return f"""
        SELECT s.id AS study_id, s.study_instance_uid, s.accession_number, s.stat, s.state, s.reason, s.attempts,
               s.acquired_at, s.received_at, s.settled_at, p.read_at, p.read_by,
               p.category, p.urgency, p.top_finding, p.top_probability, p.flag,
               c.digest AS checkpoint_digest, y.version AS policy_version, s.run_id,
               {night.format("s.received_at")} AS night, {hour.format("s.received_at")} AS hour,
               {minutes.format("s.received_at", "s.settled_at")} AS minutes_to_settle,
               {minutes.format("s.received_at", "p.read_at")} AS minutes_to_read
        FROM study s
        LEFT JOIN study_priority p ON p.study_id = s.id
        LEFT JOIN checkpoint c ON c.id = p.checkpoint_id
        LEFT JOIN policy y ON y.id = p.policy_id"""  # noqa: S608


def _film_log(*, night: str, hour: str) -> str:
    """One row per instance: what kind of picture it is and what became of it. No path, nothing of the patient."""
    return f"""
        SELECT i.id AS instance_id, i.study_id, s.study_instance_uid, i.sop_instance_uid, i.modality, i.manufacturer,
               i.transfer_syntax_uid, i.photometric_interpretation, i.view, i.state, i.reason, i.flags, i.in_scope,
               i.received_at, {night.format("i.received_at")} AS night, {hour.format("i.received_at")} AS hour
        FROM instance i
        JOIN study s ON s.id = i.study_id"""  # noqa: S608


def _study_contribution(checkpoint_threshold: str) -> str:
    """What each finding adds to a scored study's urgency, and whether it counts for its category."""
    return f"""
        SELECT x.*, x.weight * x.probability AS contribution, x.probability >= CAST(x.threshold AS real) AS counts
        FROM (
            SELECT s.id AS study_id, s.study_instance_uid, s.accession_number, w.finding, w.category, w.weight,
                   coalesce(w.threshold, {checkpoint_threshold}) AS threshold, {STUDY_PROBABILITY} AS probability
            FROM study_priority p
            JOIN study s ON s.id = p.study_id
            JOIN policy_finding w ON w.policy_id = p.policy_id
            JOIN checkpoint c ON c.id = p.checkpoint_id
        ) x
        WHERE x.probability IS NOT NULL"""  # noqa: S608


def _worklist(overdue_before: str) -> str:
    """Every unread study with its rank, computed when it is read."""
    rows = f"SELECT sp.*, sp.received_at <= {overdue_before} AS overdue FROM study_priority sp WHERE sp.read_at IS NULL"  # noqa: S608
    return RANKED.format(rank=f"row_number() OVER (ORDER BY {ORDER})", rows=rows)


def _next_to_read(overdue_before: str, oldest: Order, urgent: Order) -> str:
    """The head of the worklist, each part of the order read from its own end of a partial index.

    `overdue` moves with the clock, so no single index holds the whole order; four short index scans do. The last one is
    skipped when overdue studies alone fill the head, else it would step over all of them. (SQLite sees a column of an
    index in `stat = true`, and not in `stat`.)
    """
    overdue, timely = f"q.received_at <= {overdue_before}", f"q.received_at > {overdue_before}"
    full = f"""(SELECT count(*) FROM (SELECT 1 FROM {oldest.table}
        WHERE q.read_at IS NULL AND q.stat = false AND {overdue} LIMIT {NEXT}) o) = {NEXT}"""  # noqa: S608
    parts = (
        (f"q.stat = true AND {overdue}", "true", oldest, f"{NEXT}"),
        (f"q.stat = true AND {timely}", "false", urgent, f"{NEXT}"),
        (f"q.stat = false AND {overdue}", "true", oldest, f"{NEXT}"),
        (f"q.stat = false AND {timely}", "false", urgent, f"(SELECT CASE WHEN {full} THEN 0 ELSE {NEXT} END)"),
    )
    # Only what the indexes hold until the head is cut: a row that does not make it costs no look-up in a table.
    parts_of_head = " UNION ALL ".join(
        f"""SELECT * FROM (
            SELECT q.study_id, q.stat, q.category_a, q.urgency, q.received_at, {is_overdue} AS overdue
            FROM {order.table} WHERE q.read_at IS NULL AND {where}
            ORDER BY {", ".join(order.columns)} LIMIT {limit}) part_{number}"""  # noqa: S608
        for number, (where, is_overdue, order, limit) in enumerate(parts)
    )
    head = f"""SELECT p.study_id, p.overdue, row_number() OVER (ORDER BY {ORDER}) AS priority_rank
        FROM ({parts_of_head}) p ORDER BY priority_rank LIMIT {NEXT}"""  # noqa: S608
    rows = f"""SELECT sp.*, head.overdue, head.priority_rank
        FROM ({head}) head JOIN study_priority sp ON sp.study_id = head.study_id"""  # noqa: S608
    return RANKED.format(rank="p.priority_rank", rows=rows) + " ORDER BY p.priority_rank"


def _study_place(overdue_before: str, oldest: Order, urgent: Order, *, waited: str, listed: str) -> str:
    """One unread study's place: its rank, the study behind it and why, what put it into its category.

    Nothing here looks at the whole list: the rank is counted along index ranges, the next study is the first of one. So
    ask it for a study or a few; all ranks at once are cheaper in worklist.
    """
    overdue, timely = f"q.received_at <= {overdue_before}", f"q.received_at > {overdue_before}"
    same = "q.stat = p.stat"
    ahead_overdue = " + ".join(_count(oldest, same, step) for step in _steps(oldest, behind=False))
    ahead_timely = " + ".join(_count(urgent, same, timely, step) for step in _steps(urgent, behind=False))
    behind_overdue = ", ".join(_first(oldest, same, overdue, step) for step in _steps(oldest, behind=True)[::-1])
    behind_timely = ", ".join(_first(urgent, same, timely, step) for step in _steps(urgent, behind=True)[::-1])
    return f"""
        SELECT s.study_instance_uid, s.accession_number,
               1 + CASE WHEN p.stat THEN 0 ELSE {_count(oldest, "q.stat = true")} END
                 + CASE WHEN p.overdue THEN {ahead_overdue}
                        ELSE {_count(oldest, same, overdue)} + {ahead_timely} END AS priority_rank,
               p.stat, p.overdue, p.category, p.urgency, p.top_finding, p.top_probability, p.flag,
               (SELECT {listed}(finding, ', ') FROM (
                    SELECT w.finding FROM study_contribution w
                    WHERE w.study_id = p.study_id AND w.counts AND w.category = p.category ORDER BY w.finding
                ) deciding) AS category_because,
               p.received_at, {waited} AS waited_minutes, c.digest AS checkpoint_digest, y.version AS policy_version,
               (SELECT CASE WHEN p.stat AND NOT n.stat THEN 'stat'
                            WHEN p.overdue AND n.received_at > {overdue_before} THEN 'overdue'
                            WHEN p.overdue AND p.received_at < n.received_at THEN 'waited_longer'
                            WHEN p.category_a AND NOT n.category_a THEN 'category_a'
                            WHEN p.urgency > n.urgency THEN 'urgency'
                            WHEN p.received_at < n.received_at THEN 'arrival'
                            ELSE 'number' END
                FROM study_priority n WHERE n.study_id = p.next_study_id) AS above_next_because,
               p.next_study_id, p.study_id
        FROM (
            SELECT p.*, coalesce(
                CASE WHEN p.overdue THEN coalesce({behind_overdue}, {_first(urgent, same, timely)})
                     ELSE coalesce({behind_timely}) END,
                CASE WHEN p.stat THEN coalesce({_first(oldest, "q.stat = false", overdue)},
                                               {_first(urgent, "q.stat = false", timely)}) END) AS next_study_id
            FROM (SELECT sp.*, sp.received_at <= {overdue_before} AS overdue FROM study_priority sp) p
            WHERE p.read_at IS NULL
        ) p
        JOIN study s ON s.id = p.study_id
        LEFT JOIN checkpoint c ON c.id = p.checkpoint_id
        LEFT JOIN policy y ON y.id = p.policy_id"""  # noqa: S608


def _steps(order: Order, *, behind: bool) -> list[str]:
    """Conditions on `q`, each one range of the index with this order, that together hold the rows before `p`."""
    steps, equal = [], ""
    for column in order.columns:
        name, _, descending = column.partition(" ")
        sign = ">" if bool(descending) != behind else "<"
        steps.append(f"{equal}q.{name} {sign} p.{name}")
        equal += f"q.{name} = p.{name} AND "
    return steps


def _count(order: Order, *conditions: str) -> str:
    return f"(SELECT count(*) FROM {order.table} WHERE q.read_at IS NULL AND {' AND '.join(conditions)})"  # noqa: S608


def _first(order: Order, *conditions: str) -> str:
    where, columns = " AND ".join(conditions), ", ".join(f"q.{column}" for column in order.columns)
    return f"""(SELECT q.study_id FROM {order.table} WHERE q.read_at IS NULL AND {where}
        ORDER BY {columns} LIMIT 1)"""  # noqa: S608


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", db.base.UtcDateTime(timezone=True), nullable=False),
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
        sa.Column("state_changed_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("state_changed_by", sa.String(length=64), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("header", sa.JSON(), nullable=False),
        sa.Column("registered_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('challenger', 'shadow', 'champion', 'retired', 'refused')", name=op.f("ck_checkpoint_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint")),
        sa.UniqueConstraint("digest", name=op.f("uq_checkpoint_digest")),
    )
    op.create_index(
        "uq_checkpoint_champion",
        "checkpoint",
        ["state"],
        unique=True,
        postgresql_where=sa.text("state = 'champion'"),
        sqlite_where=sa.text("state = 'champion'"),
    )

    op.create_table(
        "policy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("max_wait_minutes", sa.Integer(), nullable=False),
        sa.Column("category_a_share", sa.Double(), nullable=False),
        sa.Column("created_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("activated_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("activated_by", sa.String(length=64), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.CheckConstraint("category_a_share > 0 AND category_a_share < 1", name=op.f("ck_policy_category_a_share")),
        sa.CheckConstraint("max_wait_minutes > 0", name=op.f("ck_policy_max_wait_minutes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
        sa.UniqueConstraint("version", name=op.f("uq_policy_version")),
    )
    op.create_index(
        "uq_policy_active",
        "policy",
        ["active"],
        unique=True,
        postgresql_where=sa.text("active"),
        sqlite_where=sa.text("active"),
    )

    op.create_table(
        "rejected_file",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("path_digest", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("received_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_file")),
        sa.UniqueConstraint("path_digest", name=op.f("uq_rejected_file_path_digest")),
    )
    op.create_table(
        "site",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("patient_key_secret", sa.String(length=64), nullable=False),
        sa.Column("created_at", db.base.UtcDateTime(timezone=True), nullable=False),
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
        sa.Column("started_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_settled_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("policy_id", sa.Integer(), nullable=True),
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
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
        sqlite_where=sa.text("finished_at IS NULL"),
    )

    op.create_table(
        "training_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("started_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("parent_checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("data_digest", sa.String(length=64), nullable=True),
        sa.Column("code_commit", sa.String(length=64), nullable=True),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_training_run_checkpoint_id")),
        sa.ForeignKeyConstraint(
            ["parent_checkpoint_id"], ["checkpoint.id"], name=op.f("fk_training_run_parent_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_run")),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("accession_number", sa.String(length=64), nullable=True),
        sa.Column("patient_key", sa.String(length=64), nullable=True),
        sa.Column("patient_sex", sa.String(length=1), nullable=True),
        sa.Column("patient_age_years", sa.Integer(), nullable=True),
        sa.Column("stat", sa.Boolean(), nullable=False),
        sa.Column("acquired_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("received_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("suspect", sa.Boolean(), nullable=False),
        sa.Column("claimed_by", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("not_before", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("unavailable_since", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("rung_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("settled_at", db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'claimed', 'scored', 'skipped', 'quarantined')", name=op.f("ck_study_state")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_study_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_study_study_instance_uid")),
    )
    op.create_index("ix_study_accession_number", "study", ["accession_number"], unique=False)
    op.create_index(
        "ix_study_claimed",
        "study",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("state = 'claimed'"),
        sqlite_where=sa.text("state = 'claimed'"),
    )
    op.create_index("ix_study_received_at", "study", ["received_at"], unique=False)
    op.create_index("ix_study_run_id", "study", ["run_id"], unique=False)

    op.create_table(
        "instance",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
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
        sa.Column("received_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('waiting', 'scored', 'skipped', 'quarantined')", name=op.f("ck_instance_state")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_instance_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_instance_sop_instance_uid")),
    )
    op.create_index("ix_instance_study_id", "instance", ["study_id"], unique=False)

    op.create_table(
        "review",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("finding", sa.String(length=32), nullable=False),
        sa.Column("verdict", sa.String(length=12), nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("reviewed_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint("verdict IN ('present', 'absent', 'not_assessed')", name=op.f("ck_review_verdict")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_review_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review")),
        sa.UniqueConstraint("study_id", "finding", "reader", name=op.f("uq_review_study_id_finding_reader")),
    )
    op.create_table(
        "run_rank",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("priority_rank", sa.Integer(), nullable=False),
        sa.Column("category", sa.String(length=1), nullable=False),
        sa.Column("urgency", sa.Double(), nullable=False),
        sa.Column("overdue", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_rank_run_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_run_rank_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "study_id", name=op.f("pk_run_rank")),
    )
    op.create_table(
        "study_priority",
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stat", sa.Boolean(), nullable=False),
        sa.Column("received_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("category", sa.String(length=1), nullable=False),
        sa.Column("category_a", sa.Boolean(), nullable=False),
        sa.Column("urgency", sa.Double(), nullable=False),
        sa.Column("top_finding", sa.String(length=32), nullable=True),
        sa.Column("top_probability", sa.REAL(), nullable=True),
        sa.Column("flag", sa.Text(), nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("policy_id", sa.Integer(), nullable=True),
        sa.Column("ranked_at", db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("read_at", db.base.UtcDateTime(timezone=True), nullable=True),
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
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("instance_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("scored_at", db.base.UtcDateTime(timezone=True), nullable=False),
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
    site = sa.table(
        "site", sa.column("id"), sa.column("patient_key_secret"), sa.column("created_at", db.base.UtcDateTime)
    )
    row = {"id": 1, "patient_key_secret": secrets.token_hex(32), "created_at": datetime.now(UTC)}
    op.execute(site.insert().values(row))
    for name, body in views(op.get_bind().dialect.name).items():
        op.execute(f"CREATE VIEW {name} AS {body}")


def downgrade() -> None:
    for name in reversed(views(op.get_bind().dialect.name)):
        op.execute(f"DROP VIEW {name}")
    for table in TABLES_LAST_FIRST:
        op.drop_table(table)
