"""What a reader confirms of a study: kept as `nightread review` keeps it."""

from starlette.responses import Response

from db import audit
from db.models import VERDICTS
from db.reading import Opinion, record_opinions
from db.session import session_scope
from training.findings import FINDINGS
from worker.web.requests import Visit, see_other
from worker.web.study import page_of, study_address, study_with

NOTHING = "Nothing is marked: choose present, absent or not assessed for at least one finding."


def save(visit: Visit) -> Response:
    """Keep the verdicts of the form; `rest` says what a finding without one is."""
    study_id, reader = visit.number("study_id"), visit.me.name
    verdicts = {finding: word for finding in FINDINGS if (word := _verdict(visit, finding)) in VERDICTS}
    if not verdicts:
        return page_of(visit, study_id, problem=NOTHING, status=400)
    with session_scope(visit.site.context.engine) as session:
        uid = study_with(session, study_id).study_instance_uid
        answers = record_opinions(session, [Opinion(uid, finding, word, reader) for finding, word in verdicts.items()])
        refused = {answer.refused for answer in answers if answer.refused}
        if not refused:
            audit.record(session, actor=reader, action="study reviewed", study_ids=[study_id], findings=len(verdicts))
    if refused:
        return page_of(visit, study_id, problem=f"Not saved: {'; '.join(refused)}.", status=409)
    return see_other(study_address(visit, study_id, saved=1))


def _verdict(visit: Visit, finding: str) -> str | None:
    return visit.form.get(f"verdict-{finding}") or visit.form.get("rest")
