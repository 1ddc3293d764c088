"""The films with labels: what radiologists confirmed here, and the base data set, split alike by patient."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from db import confirmed
from db.base import database_now
from db.confirmed import ConfirmedFilm
from db.session import read_scope
from training.findings import FINDINGS
from training.manifest import UNKNOWN
from training.prepared import Prepared, open_prepared, read_manifest
from training.sampling import split_stable
from worker.house import House
from worker.settings import Settings

TABLE, PLACES = "confirmed.csv", "confirmed.json"


class NothingConfirmed(LookupError):
    """no film was confirmed yet: record opinions with `nightread review`"""


@dataclass(frozen=True)
class Confirmed:
    """The confirmed films as they were at a moment: their manifest with a split, each one's file and confirmation."""

    manifest: pd.DataFrame
    files: Mapping[str, Path]
    confirmed_at: Mapping[str, datetime]
    until: datetime

    def since(self, first: datetime | None) -> set[str]:
        """The images that were confirmed from this moment on; all when it is None."""
        return {image for image, at in self.confirmed_at.items() if first is None or at > first}

    def recent(self, *, days: float) -> set[str]:
        """The images that were confirmed in the last days."""
        return self.since(self.until - timedelta(days=days))


def kept(house: House, folder: Path) -> Confirmed:
    """The films confirmed up to now, asked of the database once per folder: who comes again finds them as they were.

    Raises NothingConfirmed.
    """
    if not (folder / PLACES).exists():
        _ask(house, folder)
    told = json.loads((folder / PLACES).read_text())
    films = told["films"]
    return Confirmed(
        manifest=read_manifest(folder / TABLE),
        files={image: Path(film["path"]) for image, film in films.items()},
        confirmed_at={image: datetime.fromisoformat(film["confirmed_at"]) for image, film in films.items()},
        until=datetime.fromisoformat(told["until"]),
    )


def _ask(house: House, folder: Path) -> None:
    with read_scope(house.engine) as session:
        until = database_now(session)
        films = confirmed.confirmed_films(
            session, until=until, unconfirmed_is_absent=house.settings.retrain_unconfirmed_is_absent
        )
    if not films:
        raise NothingConfirmed(NothingConfirmed.__doc__)
    manifest_of(films).to_csv(folder / TABLE, index_label="row")
    places = {image_of(film): {"path": film.path, "confirmed_at": film.confirmed_at.isoformat()} for film in films}
    part = folder / f"{PLACES}.part"
    part.write_text(json.dumps({"until": until.isoformat(), "films": places}))
    part.replace(folder / PLACES)  # last: where it lies, the table is whole


def image_of(film: ConfirmedFilm) -> str:
    """What a film is called in a manifest: by its row, never by its file, whose name may be a patient's."""
    return f"film-{film.instance_id}"


def manifest_of(films: list[ConfirmedFilm]) -> pd.DataFrame:
    """Confirmed films as a manifest, split by patient."""
    said = np.array([[UNKNOWN if label is None else label for label in film.labels] for film in films], dtype=np.uint8)
    return split_stable(
        pd.DataFrame(
            {
                "image": [image_of(film) for film in films],
                "patient_id": [film.patient for film in films],
                "age_years": [film.patient_age_years for film in films],
                "sex": [film.patient_sex or "" for film in films],
                "view_position": [film.view for film in films],
                "split": "",
                **{finding: said[:, k] for k, finding in enumerate(FINDINGS)},
            }
        )
    )


def base_films(settings: Settings, *, size: int) -> Prepared | None:
    """The base at one size, split by patient as the site's films are; None without one. Raises NotPrepared."""
    if settings.retrain_base is None:
        return None
    base = open_prepared(settings.retrain_base, size=size)
    return replace(base, manifest=split_stable(base.manifest))
