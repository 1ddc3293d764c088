"""The views of revision 0001, as they were then: what people query, and the two ends of the reading order."""

from typing import NamedTuple

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

# A checkpoint that came as a file has no training_run here; its header says with which code it was made.
HEADER_COMMIT = {
    "postgresql": "c.header ->> 'code_commit'",
    "sqlite": "json_extract(c.header, '$.code_commit')",
}

# Findings as rows. One look at film_score for all of them, so that a join finds a film's rows by its index; eleven
# selects in a UNION ALL are read whole by SQLite wherever they are joined.
FINDING_SCORE = f"""
    SELECT f.instance_id, f.checkpoint_id, n.finding,
           CASE n.finding {" ".join(f"WHEN '{f}' THEN f.{f.lower()}" for f in FINDINGS)} END AS probability
    FROM film_score f
    CROSS JOIN ({" UNION ALL ".join(f"SELECT '{f}' AS finding" for f in FINDINGS)}) n"""  # noqa: S608

# The highest probability of a finding among a study's films, under the checkpoint that ranks the study.
STUDY_PROBABILITY = """(
    SELECT max(f.probability) FROM instance i
    JOIN finding_score f ON f.instance_id = i.id AND f.checkpoint_id = p.checkpoint_id
    WHERE i.study_id = p.study_id AND i.state = 'scored' AND f.finding = w.finding)"""


def lift(finding: str, probability: str, *, checkpoint: str) -> str:
    """How many times the mean of the checkpoint's reference films a probability is; all three are SQL."""
    return f"""({probability} / (SELECT nullif(m.mean, 0) FROM reference_finding m
                 WHERE m.checkpoint_id = {checkpoint} AND m.finding = {finding}))"""  # noqa: S608


def share(finding: str, probability: str, *, checkpoint: str) -> str:
    """At most this share of the checkpoint's reference films reach a probability, in steps of 1 %."""
    return f"""(SELECT h.share FROM reference_share h
                WHERE h.checkpoint_id = {checkpoint} AND h.finding = {finding} AND h.probability <= {probability}
                ORDER BY h.probability DESC LIMIT 1)"""  # noqa: S608


TOP = f"""p.top_finding, p.top_probability,
           {lift("p.top_finding", "p.top_probability", checkpoint="p.checkpoint_id")} AS top_lift,
           {share("p.top_finding", "p.top_probability", checkpoint="p.checkpoint_id")} AS top_share"""


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

# An outer join, though every place has its study: what asks for no column of the study then does not look at it.
RANKED = f"""
    SELECT {{rank}} AS priority_rank, s.study_instance_uid, s.accession_number, p.category, p.urgency,
           {TOP}, s.acquired_at, p.received_at, p.overdue, p.stat,
           p.flag, c.digest AS checkpoint_digest, y.version AS policy_version, p.study_id
    FROM ({{rows}}) p
    LEFT JOIN study s ON s.id = p.study_id
    LEFT JOIN checkpoint c ON c.id = p.checkpoint_id
    LEFT JOIN policy y ON y.id = p.policy_id"""  # noqa: S608

# The reading order among unread studies, by what is `p`: what ranks, or what would.
BY_PLACE = "s.stat DESC, {p}.category_a DESC, {p}.urgency DESC, s.received_at, s.study_id"

NEXT = 50  # of next_to_read; each of the four ends of the order is read so far, so half as many cost half


def views(dialect: str) -> dict[str, str]:
    """The views by name, in the order they must be created."""
    oldest, urgent = orders(dialect)
    return {
        "finding_score": FINDING_SCORE,
        "study_findings": f"""
            SELECT s.study_instance_uid, {", ".join(f"max(f.{f.lower()}) AS {f.lower()}" for f in FINDINGS)}
            FROM study s
            JOIN study_priority p ON p.study_id = s.id
            JOIN instance i ON i.study_id = s.id AND i.state = 'scored'
            JOIN film_score f ON f.instance_id = i.id AND f.checkpoint_id = p.checkpoint_id
            GROUP BY s.id, s.study_instance_uid""",  # noqa: S608
        "worklist": _worklist(OVERDUE_BEFORE[dialect]),
        "next_to_read": _next_to_read(dialect),
        # One row, from the totals as they are kept: at the same cost however many studies wait. For an autoscaler.
        "waiting_studies": """
            SELECT CAST(coalesce(sum(change), 0) AS bigint) AS studies FROM total_change
            WHERE counted = 'study' AND state = 'waiting'""",
        "study_log": _study_log(**TIME[dialect]),
        "film_log": _film_log(night=TIME[dialect]["night"], hour=TIME[dialect]["hour"]),
        # What an instance was before another file took its place, or before it was decided again. No path.
        "film_history": """
            SELECT v.id AS version_id, v.instance_id, i.study_id, s.study_instance_uid, i.sop_instance_uid, v.cause,
                   v.view, v.state, v.reason, v.flags, v.replaced_at
            FROM instance_version v
            JOIN instance i ON i.id = v.instance_id
            JOIN study s ON s.id = i.study_id""",
        "study_contribution": _study_contribution(CHECKPOINT_THRESHOLD[dialect]),
        "study_place": _study_place(OVERDUE_BEFORE[dialect], oldest, urgent, **PLACE[dialect]),
        "finding_rule": _finding_rule(CHECKPOINT_THRESHOLD[dialect]),
        "review_log": _review_log(CHECKPOINT_THRESHOLD[dialect]),
        "run_order": """
            SELECT r.run_id, r.priority_rank, s.study_instance_uid, s.accession_number, r.category, r.urgency,
                   r.overdue, p.read_at
            FROM run_rank r
            JOIN study s ON s.id = r.study_id
            LEFT JOIN study_priority p ON p.study_id = r.study_id""",
        "delivery_log": """
            SELECT d.id AS delivery_id, d.study_id, s.study_instance_uid, s.accession_number, d.kind, d.destination,
                   d.state, d.reason, d.revision, d.attempts, d.not_before, d.published_at, d.sent_at, d.object_uid,
                   c.digest AS checkpoint_digest, y.version AS policy_version
            FROM delivery d
            JOIN study s ON s.id = d.study_id
            JOIN checkpoint c ON c.id = d.checkpoint_id
            JOIN policy y ON y.id = d.policy_id""",
        **_retraining_views(dialect),
    }


def _retraining_views(dialect: str) -> dict[str, str]:
    """Where a score came from, the gate, shadow ranks, drift."""
    return {
        # Which checkpoint, trained when, on which data, by which code, said this of a film. Two runs can have made one
        # checkpoint, byte for byte (the second after the first's verdict failed): the first did.
        "film_lineage": f"""
            SELECT f.instance_id, f.checkpoint_id, f.run_id, f.scored_at, c.digest AS checkpoint_digest, c.network,
                   t.id AS training_run_id, t.started_at AS trained_at, t.data_digest,
                   coalesce(t.code_commit, {HEADER_COMMIT[dialect]}) AS code_commit,
                   parent.digest AS parent_digest
            FROM film_score f
            JOIN checkpoint c ON c.id = f.checkpoint_id
            LEFT JOIN training_run t ON t.id = (SELECT min(id) FROM training_run WHERE checkpoint_id = c.id)
            LEFT JOIN checkpoint parent ON parent.id = t.parent_checkpoint_id""",  # noqa: S608
        "training_log": """
            SELECT t.id AS training_run_id, t.state, t.stage, t.reason, t.cause, t.attempts, t.started_at,
                   t.finished_at, parent.digest AS parent_digest, c.digest AS checkpoint_digest, t.data_digest,
                   t.code_commit, t.settings, t.counts, t.metrics
            FROM training_run t
            LEFT JOIN checkpoint parent ON parent.id = t.parent_checkpoint_id
            LEFT JOIN checkpoint c ON c.id = t.checkpoint_id""",
        "gate_log": """
            SELECT v.id AS verdict_id, v.judged_at, challenger.digest AS challenger_digest,
                   champion.digest AS champion_digest, v.training_run_id, v.result = 'passed' AS verdict_passed,
                   v.result AS verdict_result, v.accepted_by, v.accepted_reason, k.number, k.films_from, k.name,
                   k.subject, k.champion, k.challenger, k.difference, k.low, k.high, k.bound,
                   k.result = 'passed' AS passed, k.result, k.positives_needed, k.note
            FROM gate_verdict v
            JOIN checkpoint challenger ON challenger.id = v.challenger_id
            JOIN checkpoint champion ON champion.id = v.champion_id
            JOIN gate_check k ON k.verdict_id = v.id""",
        # The unread studies that another checkpoint has placed too, by the same policy, ranked by both.
        "shadow_ranks": f"""
            SELECT c.digest AS shadow_digest, y.study_instance_uid, y.accession_number, s.study_id, s.received_at,
                   s.category, s.urgency, w.category AS shadow_category, w.urgency AS shadow_urgency,
                   row_number() OVER (PARTITION BY w.checkpoint_id ORDER BY {BY_PLACE.format(p="s")}) AS priority_rank,
                   row_number() OVER (PARTITION BY w.checkpoint_id ORDER BY {BY_PLACE.format(p="w")}) AS shadow_rank
            FROM shadow_priority w
            JOIN study_priority s ON s.study_id = w.study_id AND s.policy_id = w.policy_id AND s.read_at IS NULL
            JOIN study y ON y.id = w.study_id
            JOIN checkpoint c ON c.id = w.checkpoint_id""",  # noqa: S608
        "drift_log": """
            SELECT d.day, c.digest AS checkpoint_digest, d.measure, d.subject, d.value, d.reference, d.level, d.films
            FROM drift d
            JOIN checkpoint c ON c.id = d.checkpoint_id""",
    }


def _study_log(*, night: str, hour: str, minutes: str) -> str:
    """One row per study: what became of it, where it stood, when, and how long that took. Nothing of the patient."""
    return f"""
        SELECT s.id AS study_id, s.study_instance_uid, s.accession_number, s.stat, s.state, s.reason, s.attempts,
               s.acquired_at, s.received_at, s.settled_at, p.read_at, p.read_by,
               p.category, p.urgency, {TOP}, p.flag,
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
    """Each finding's part of a scored study's urgency, and whether it counts for its category."""
    return f"""
        SELECT x.study_id, x.study_instance_uid, x.accession_number, x.finding, x.category, x.weight, x.threshold,
               x.probability, x.weight * x.probability AS contribution,
               x.probability >= CAST(x.threshold AS real) AS counts,
               {lift("x.finding", "x.probability", checkpoint="x.checkpoint_id")} AS lift,
               {share("x.finding", "x.probability", checkpoint="x.checkpoint_id")} AS share
        FROM (
            SELECT s.id AS study_id, s.study_instance_uid, s.accession_number, w.finding, w.category, w.weight,
                   coalesce(w.threshold, {checkpoint_threshold}) AS threshold, {STUDY_PROBABILITY} AS probability,
                   p.checkpoint_id
            FROM study_priority p
            JOIN study s ON s.id = p.study_id
            JOIN policy_finding w ON w.policy_id = p.policy_id
            JOIN checkpoint c ON c.id = p.checkpoint_id
        ) x
        WHERE x.probability IS NOT NULL"""  # noqa: S608


def _finding_rule(checkpoint_threshold: str) -> str:
    """Each finding's rule by each version of the policy with each checkpoint, and what share of films it flags."""
    return f"""
        SELECT x.*, {share("x.finding", "CAST(x.threshold AS real)", checkpoint="x.checkpoint_id")} AS flagged_share
        FROM (
            SELECT w.finding, w.category, w.weight, coalesce(w.threshold, {checkpoint_threshold}) AS threshold,
                   m.mean AS usual_probability, y.active AND c.state = 'champion' AS in_force,
                   y.version AS policy_version, c.digest AS checkpoint_digest, w.policy_id, c.id AS checkpoint_id
            FROM policy_finding w
            JOIN policy y ON y.id = w.policy_id
            CROSS JOIN checkpoint c
            LEFT JOIN reference_finding m ON m.checkpoint_id = c.id AND m.finding = w.finding
        ) x"""  # noqa: S608


def _review_log(checkpoint_threshold: str) -> str:
    """One row per review, beside the model's probability. Not by study_contribution: SQLite makes all of it first."""
    return f"""
        SELECT x.study_id, x.study_instance_uid, x.accession_number, x.finding, x.verdict, x.reader, x.reviewed_at,
               x.probability, CASE WHEN x.probability IS NOT NULL THEN x.threshold END AS threshold,
               x.probability >= CAST(x.threshold AS real) AS flagged
        FROM (
            SELECT r.study_id, s.study_instance_uid, s.accession_number, r.finding, r.verdict, r.reader, r.reviewed_at,
                   coalesce(w.threshold, {checkpoint_threshold}) AS threshold, {STUDY_PROBABILITY} AS probability
            FROM review r
            JOIN study s ON s.id = r.study_id
            LEFT JOIN study_priority p ON p.study_id = r.study_id
            LEFT JOIN policy_finding w ON w.policy_id = p.policy_id AND w.finding = r.finding
            LEFT JOIN checkpoint c ON c.id = p.checkpoint_id
        ) x"""  # noqa: S608


def _worklist(overdue_before: str) -> str:
    """Every unread study with its rank, computed when it is read."""
    rows = f"SELECT sp.*, sp.received_at <= {overdue_before} AS overdue FROM study_priority sp WHERE sp.read_at IS NULL"  # noqa: S608
    return RANKED.format(rank=f"row_number() OVER (ORDER BY {ORDER})", rows=rows)


def _next_to_read(dialect: str) -> str:
    """The first NEXT of the worklist, each part of the order read from its own end of a partial index.

    `overdue` moves with the clock, so no single index holds the whole order; four short index scans do. The last one is
    skipped when overdue studies alone fill the head, else it would step over all of them. (SQLite sees a column of an
    index in `stat = true`, and not in `stat`.)
    """
    (oldest, urgent), overdue_before = orders(dialect), OVERDUE_BEFORE[dialect]
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
            ORDER BY {", ".join(order.columns)} LIMIT {most}) part_{number}"""  # noqa: S608
        for number, (where, is_overdue, order, most) in enumerate(parts)
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
               p.stat, p.overdue, p.category, p.urgency, {TOP}, p.flag,
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
