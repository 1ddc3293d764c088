"""The health check of a worker's container looks at the head of the queue, and costs the same at any size."""

from sqlalchemy import event, insert

from db.base import database_now
from db.models import Study
from db.session import session_scope
from tests.support.contexts import MakeContext
from worker.doctor import examine_role


def test_the_worker_s_check_counts_no_study(make_context: MakeContext) -> None:
    context = make_context(checkpoint=None)
    with session_scope(context.engine) as session:
        now = database_now(session)
        session.execute(insert(Study).values(study_instance_uid="2.25.1", received_at=now, state="waiting"))
    asked: list[str] = []
    event.listen(context.engine, "before_cursor_execute", lambda *event: asked.append(event[2]))
    (check,) = examine_role(context, "worker")
    assert check.ok
    assert check.text.startswith("studies wait")
    assert [statement for statement in asked if "count(" in statement.lower()] == []
