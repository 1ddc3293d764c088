"""The triggers of revision 0001, as they were then: every change of a study, an instance, a rejected file or a delivery
is noted in `total_change`, whose sums are the totals.

On PostgreSQL each statement appends its net changes, so that two writers never wait for each other; what was appended
is added up now and then (db/totals.py). SQLite has one writer, and keeps one row for each kind.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    """Columns of `total_change` as SQL over a row of a counted table."""

    counted: str
    state: str
    reason: str
    decided_under: str


COUNTED = {
    "study": (Kind("'study'", "{}state", "{}reason", "NULL"), ("state", "reason")),
    "instance": (
        Kind("'instance'", "{}state", "{}reason", "{}decided_under"),
        ("state", "reason", "decided_under"),
    ),
    "rejected_file": (Kind("'rejected_file'", "'rejected'", "{}reason", "NULL"), ("reason",)),
    "delivery": (Kind("'delivery'", "{}state", "{}kind", "NULL"), ("state", "kind")),
}
COLUMNS = ", ".join(Kind._fields)


def triggers(dialect: str) -> list[str]:
    """The statements that make them."""
    made = _on_postgresql if dialect == "postgresql" else _on_sqlite
    return [statement for table, (kind, watched) in COUNTED.items() for statement in made(table, kind, watched)]


def _on_postgresql(table: str, kind: Kind, _watched: tuple[str, ...]) -> list[str]:
    """A trigger with transition tables cannot watch columns: an update of others adds up to no change."""
    of_row = ", ".join(f"{value} AS {name}" for name, value in zip(Kind._fields, kind, strict=True)).replace("{}", "")
    removed, added = (f"SELECT {of_row}, {one} AS change FROM {rows}" for one, rows in ((-1, "was"), (1, "now_is")))  # noqa: S608 - names from above
    bodies = {"INSERT": added, "UPDATE": f"{removed} UNION ALL {added}", "DELETE": removed}
    tables = {
        "INSERT": "NEW TABLE AS now_is",
        "UPDATE": "OLD TABLE AS was NEW TABLE AS now_is",
        "DELETE": "OLD TABLE AS was",
    }
    return [
        statement
        for event, rows in bodies.items()
        for statement in (
            f"""
            CREATE FUNCTION note_{table}_{event.lower()}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO total_change ({COLUMNS}, change)
                SELECT {COLUMNS}, sum(change) FROM ({rows}) n GROUP BY {COLUMNS} HAVING sum(change) <> 0;
                RETURN NULL;
            END $$""",  # noqa: S608 - names from above
            f"CREATE TRIGGER totals_{event.lower()} AFTER {event} ON {table} REFERENCING {tables[event]} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION note_{table}_{event.lower()}()",
        )
    ]


def _on_sqlite(table: str, kind: Kind, watched: tuple[str, ...]) -> list[str]:
    removed, added = _noted(kind, "old.", -1), _noted(kind, "new.", 1)
    changed = " OR ".join(f"old.{column} IS NOT new.{column}" for column in watched)
    events = {
        "INSERT": added,
        f"UPDATE OF {', '.join(watched)}": removed + added,
        "DELETE": removed,
    }
    return [
        f"CREATE TRIGGER {table}_totals_{event.split()[0].lower()} AFTER {event} ON {table}"
        f"{f' WHEN {changed}' if body == removed + added else ''} BEGIN {body} END"
        for event, body in events.items()
    ]


def _noted(kind: Kind, row: str, change: int) -> str:
    values = [value.format(row) for value in kind]
    same = " AND ".join(f"{name} IS {value}" for name, value in zip(Kind._fields, values, strict=True))
    return f"""
        INSERT INTO total_change ({COLUMNS}, change) SELECT {", ".join(values)}, 0
        WHERE NOT EXISTS (SELECT 1 FROM total_change WHERE {same});
        UPDATE total_change SET change = change + {change} WHERE {same};"""  # noqa: S608 - names from above
