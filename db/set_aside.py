"""Single instances, and whole studies, that were skipped or quarantined."""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import RowMapping, Text, cast, null, select
from sqlalchemy.orm import Session

from db.models import Instance, Study


def set_aside(
    session: Session, state: Literal["skipped", "quarantined"], *, limit: int | None = None
) -> Sequence[RowMapping]:
    """Every instance in this state with its study, file, reason and evidence, newest first; and a line without a file
    for each study that is in this state as a whole, by no fault of one instance. With `limit`: the first of them."""
    study = (Study.study_instance_uid, Study.accession_number)
    instances = (
        select(
            *study,
            Instance.sop_instance_uid,
            Instance.path,
            Instance.reason,
            Instance.evidence.label("detail"),
            Instance.received_at,
        )
        .join(Study, Study.id == Instance.study_id)
        .where(Instance.state == state)
    )
    of_study = select(Instance.id).where(Instance.study_id == Study.id, Instance.state == state)
    nothing = cast(null(), Text)
    studies = select(
        *study, nothing.label("sop_instance_uid"), nothing.label("path"), Study.reason, Study.detail, Study.received_at
    ).where(Study.state == state, ~of_study.exists())
    both = instances.union_all(studies).subquery()
    newest = (both.c.received_at.desc(), both.c.study_instance_uid, both.c.sop_instance_uid)
    return session.execute(select(both).order_by(*newest).limit(limit)).mappings().all()
