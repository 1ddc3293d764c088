"""Pictures of what the network looks at on one film: a file, or a film that the database knows."""

import os
from pathlib import Path

from db import lookup
from db.session import read_scope
from training.checkpoint import load_checkpoint
from training.pixels import UnusablePixels, open_dataset, read_film
from worker.house import House


class NoFilm(LookupError):
    """There is no film to draw on; the text says why."""


def write_heatmaps(house: House, what: str, folder: Path, *, layers: bool) -> list[Path]:
    """Grad-CAM per finding, and with `layers` every filter of every layer, as PNG files in `folder`; their paths.

    `what` is a file, a SOP Instance UID, or a Study Instance UID (its first film). Raises NoFilm.
    """
    from training.explain import write_pictures

    live = house.live()
    checkpoint = load_checkpoint(live.path, expected_digest=live.digest)
    try:
        film = read_film(open_dataset(_path_of(house, what), limits=house.pixel_limits), limits=house.pixel_limits)
    except UnusablePixels as error:
        raise NoFilm(f"no picture can be drawn: {error}") from error
    square = checkpoint.preprocessing.image(film.image)
    return write_pictures(checkpoint, square, folder, layers=None if layers else ())


def _path_of(house: House, what: str) -> Path:
    if os.path.isfile(what):  # noqa: PTH113 - Path.is_file raises where a folder above is closed
        return Path(what)
    with read_scope(house.engine) as session:
        study = lookup.study_named(session, what)
        films = [] if study is None else [i for i in lookup.instances_of(session, study) if i.view is not None]
    named = [film for film in films if film.sop_instance_uid == what] or films
    if not named:
        raise NoFilm("there is no frontal film here to draw on")
    return Path(named[0].path)
