"""Pictures by their addresses: a film, its thumbnail, the heat map of a finding. Never kept by a browser."""

from collections.abc import Callable

from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import Response

from db import audit, morning, worklist
from db.lookup import instance_of, place_of, study_of
from db.models import Checkpoint, StudyPriority
from db.morning import Film
from db.session import read_scope, session_scope
from worker.report.pictures import NoHeatMaps
from worker.web.images import NoPicture
from worker.web.requests import Visit
from worker.web.visibility import can_be_shown, hidden_from, may_see_scores, without_map


def film(visit: Visit) -> Response:
    """A film; each look is noted."""
    with session_scope(visit.engine) as session:
        found, _, _ = _film(session, visit)
        audit.record(session, actor=visit.me.name, action="film viewed", study_ids=[found.study_id])
    return _picture(lambda: visit.site.pictures.film(found))


def thumbnail(visit: Visit) -> Response:
    """A small picture of a film, for the list."""
    with read_scope(visit.engine) as session:
        found, _, _ = _film(session, visit)
    return _picture(lambda: visit.site.pictures.thumbnail(found))


def heat(visit: Visit) -> Response:
    """A film under the heat map of a finding, for who may see what the model saw; each look is noted."""
    finding = visit.request.path_params["finding"]
    with session_scope(visit.engine) as session:
        found, place, checkpoint = _film(session, visit)
        hidden = hidden_from(session, visit, [found.study_id])
        if checkpoint is None or not may_see_scores(place) or hidden:
            raise HTTPException(404)
        parts = worklist.parts(session, found.study_id)
        if finding not in {part["finding"] for part in parts} - without_map(parts, checkpoint).keys():
            raise HTTPException(404)
        audit.record(session, actor=visit.me.name, action="heat map viewed", study_ids=[found.study_id])
    return _picture(lambda: visit.site.pictures.heat(found, finding, checkpoint))


def _film(session: Session, visit: Visit) -> tuple[Film, StudyPriority | None, Checkpoint | None]:
    """The film of the address, with the place of its study and the checkpoint that ranks it."""
    instance_id = visit.number("instance_id")
    instance = instance_of(session, instance_id)
    study = None if instance is None else study_of(session, instance.study_id)
    if study is None:
        raise HTTPException(404)
    found = [film for film in morning.films_of(session, [study.id])[study.id] if film.instance_id == instance_id]
    if not found or not can_be_shown(found[0]):
        raise HTTPException(404)
    place, _, checkpoint = place_of(session, study) or (None, None, None)
    return found[0], place, checkpoint


def _picture(draw: Callable[[], bytes]) -> Response:
    try:
        return Response(draw(), media_type="image/png")
    except (NoPicture, NoHeatMaps):
        raise HTTPException(404) from None
