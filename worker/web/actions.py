"""The actions of a reader: claim a study, mark it as read, review it. Kept as the commands keep them."""

from starlette.responses import Response

from db import audit, claims, lookup, reading
from db.models import VERDICTS, ReadingClaim
from db.reading import Opinion, Reading, record_opinions
from db.session import read_scope, session_scope
from training.findings import FINDINGS
from worker.web.requests import Visit, local_address, see_other
from worker.web.study import page_of, study_address, study_with
from worker.wording import clock

NOTHING = "Nothing is marked: choose present, absent or not assessed for at least one finding."


def claim(visit: Visit) -> Response:
    """ "I am reading this": the first who says so has it."""
    study_id, reader = visit.number("study_id"), visit.me.name
    with session_scope(visit.engine) as session:
        study_with(session, study_id)
        held = claims.claim(session, study_id, reader=reader)
    if held.reader != reader:
        return page_of(visit, study_id, problem=_held(visit, held), status=409)
    return see_other(study_address(visit, study_id))


def _held(visit: Visit, held: ReadingClaim) -> str:
    since, until = (clock(at, visit.settings.zone) for at in (held.claimed_at, held.lease_expires_at))
    return f"{held.reader} is reading this study since {since}, until {until} unless the time is renewed."


def take_over(visit: Visit) -> Response:
    """A study that another reader holds becomes this one's, with a reason that the other sees."""
    study_id, reason = visit.number("study_id"), " ".join(visit.form.get("reason", "").split())[:200]
    if not reason:
        return page_of(visit, study_id, problem="To take a study over, say why.", status=400)
    with session_scope(visit.engine) as session:
        study_with(session, study_id)
        claims.take_over(session, study_id, reader=visit.me.name, reason=reason)
    return see_other(study_address(visit, study_id))


def release(visit: Visit) -> Response:
    """The study is free again."""
    with session_scope(visit.engine) as session:
        claims.release(session, visit.number("study_id"), reader=visit.me.name)
    return see_other(local_address(visit.form.get("back")))


def renew(visit: Visit) -> Response:
    """A page that is open keeps its reader's claim; 409 tells it that the claim is lost."""
    with session_scope(visit.engine) as session:
        kept = claims.renew(session, visit.number("study_id"), reader=visit.me.name)
    return claim_state(visit, status=200 if kept else 409)


def claim_state(visit: Visit, *, status: int = 200) -> Response:
    """Who reads the study now, or has read it: for a page that is open, so that no two read it unknowingly."""
    with read_scope(visit.engine) as session:
        study = study_with(session, visit.number("study_id"))
        held, (priority, *_) = claims.holder(session, study.id), lookup.place_of(session, study) or (None,)
    return visit.page("claim_state.html.j2", status=status, claim=held, priority=priority)


def mark_read(visit: Visit) -> Response:
    """The study is read: off the list, unless another reader is at it."""
    study_id, reader = visit.number("study_id"), visit.me.name
    with session_scope(visit.engine) as session:
        study, held = study_with(session, study_id), claims.holder(session, study_id)
        if held is None or held.reader == reader:
            (answer,) = reading.mark_read(session, [Reading(study.study_instance_uid, read_by=reader)])
            if answer.changed:
                audit.record(session, actor=reader, action="study read", study_ids=[study_id])
            claims.release(session, study_id, reader=reader)
    if held is not None and held.reader != reader:
        return page_of(visit, study_id, problem=_held(visit, held), status=409)
    if answer.refused:
        return page_of(visit, study_id, problem=f"It was not marked: {answer.refused}.", status=409)
    if not answer.changed:
        return page_of(visit, study_id, problem="It was marked as read before.", status=409)
    back = local_address(visit.form.get("back"))
    return see_other(f"{back}{'&' if '?' in back else '?'}read={study_id}")


def mark_unread(visit: Visit) -> Response:
    """The study comes back to its place on the list."""
    study_id = visit.number("study_id")
    with session_scope(visit.engine) as session:
        study = study_with(session, study_id)
        (answer,) = reading.mark_unread(session, [study.study_instance_uid], by=visit.me.name)
    if answer.refused:
        return page_of(visit, study_id, problem=f"It was not brought back: {answer.refused}.", status=409)
    return see_other(study_address(visit, study_id))


def review(visit: Visit) -> Response:
    """Keep the verdicts of the form; `rest` says what a finding without one is."""
    study_id, reader = visit.number("study_id"), visit.me.name
    verdicts = {finding: word for finding in FINDINGS if (word := _verdict(visit, finding)) in VERDICTS}
    if not verdicts:
        return page_of(visit, study_id, problem=NOTHING, status=400)
    with session_scope(visit.engine) as session:
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
