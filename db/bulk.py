"""Many rows in one statement.

PostgreSQL takes them as one JSON value, so that a batch costs one parse and one round trip whatever its length; SQLite,
where a round trip costs nothing, takes them one after the other.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import JSON, TableValuedAlias, Text, cast, column, func, literal, select, update
from sqlalchemy.orm import Session

from db.base import Base
from db.upsert import insert

Rows = Sequence[Mapping[str, Any]]
One = TypeVar("One")
AT_ONCE = 5_000  # in one statement


def in_parts(all_of_them: Sequence[One]) -> Iterator[Sequence[One]]:
    """Ids or rows in parts that one statement can hold."""
    return (all_of_them[i : i + AT_ONCE] for i in range(0, len(all_of_them), AT_ONCE))


def update_many(session: Session, table: type[Base], rows: Rows, *, key: str, same: Mapping[str, Any]) -> None:
    """Update each row by its `key` column; all rows name the same columns, and `same` is set in every one of them."""
    if not rows:
        return
    if session.get_bind().dialect.name != "postgresql":
        session.execute(update(table), [{**row, **same} for row in rows])
        return
    given = _given(table, rows)
    values = {name: given.c[name] for name in rows[0] if name != key}
    statement = update(table).where(table.__table__.c[key] == given.c[key]).values({**values, **same})
    session.execute(statement, execution_options={"synchronize_session": False})


def upsert_many(
    session: Session, table: type[Base], rows: Rows, *, unique: Sequence[str], same: Mapping[str, Any]
) -> None:
    """Insert rows, or replace those that agree in the columns `unique`; `same` is set in every one of them."""
    if not rows:
        return
    names = [*rows[0], *same]
    statement = insert(session, table)
    replaced = {name: statement.excluded[name] for name in names if name not in unique}
    if session.get_bind().dialect.name != "postgresql":
        upsert = statement.on_conflict_do_update(index_elements=unique, set_=replaced)
        session.execute(upsert, [{**row, **same} for row in rows])
        return
    given = _given(table, rows)
    constants = [literal(value, table.__table__.c[name].type) for name, value in same.items()]
    source = select(*(given.c[name] for name in rows[0]), *constants)
    session.execute(statement.from_select(names, source).on_conflict_do_update(index_elements=unique, set_=replaced))


def _given(table: type[Base], rows: Rows) -> TableValuedAlias:
    """The rows as a table expression, its columns typed like the table's."""
    columns = (column(name, table.__table__.c[name].type) for name in rows[0])
    text = json.dumps(rows, default=datetime.isoformat)
    source = func.json_to_recordset(cast(literal(text, Text), JSON))
    return source.table_valued(*columns).render_derived(name="given", with_types=True)
