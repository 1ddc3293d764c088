"""The views of revision 0002, as they were then: where a score came from, the gate, shadow ranks, drift."""

# A checkpoint that came as a file has no training_run here; its header says with which code it was made.
HEADER_COMMIT = {
    "postgresql": "c.header ->> 'code_commit'",
    "sqlite": "json_extract(c.header, '$.code_commit')",
}

# The reading order among unread studies, by what is `p`: what ranks, or what would.
ORDER = "s.stat DESC, {p}.category_a DESC, {p}.urgency DESC, s.received_at, s.study_id"


def views(dialect: str) -> dict[str, str]:
    """The views by name, in the order they must be created."""
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
                   row_number() OVER (PARTITION BY w.checkpoint_id ORDER BY {ORDER.format(p="s")}) AS priority_rank,
                   row_number() OVER (PARTITION BY w.checkpoint_id ORDER BY {ORDER.format(p="w")}) AS shadow_rank
            FROM shadow_priority w
            JOIN study_priority s ON s.study_id = w.study_id AND s.policy_id = w.policy_id AND s.read_at IS NULL
            JOIN study y ON y.id = w.study_id
            JOIN checkpoint c ON c.id = w.checkpoint_id""",  # noqa: S608
        "drift_log": """
            SELECT d.day, c.digest AS checkpoint_digest, d.measure, d.subject, d.value, d.reference, d.level, d.films
            FROM drift d
            JOIN checkpoint c ON c.id = d.checkpoint_id""",
    }
