"""The films with labels: what radiologists confirmed here, and the base data set, split alike by patient."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from db import confirmed
from db.base import DocumentedError, database_now
from db.bulk import in_parts
from db.confirmed import ConfirmedFilm
from db.lookup import FilmFile, film_files
from db.session import read_scope
from training.findings import FINDINGS
from training.imaging.preprocessing import Preprocessing
from training.imaging.whole_file import write_whole
from training.manifest import UNKNOWN
from training.prepared import READY, Decoded, Prepared, ReadFilms, left_out, open_prepared, prepare, read_manifest
from training.sampling import split_stable
from worker.context import Context
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, NetworkInput
from worker.settings import Settings

TABLE, MOMENTS = "confirmed.csv", "confirmed.json"
NAME = "film-"  # and the row's id: a film's name in a manifest; never its file's, which may be a patient's


class CannotJudge(Exception):
    """These films cannot be learned from or judged on; the text says why."""


class NothingConfirmed(DocumentedError, CannotJudge):
    """no film was confirmed yet: record opinions with `nightread review`"""


class Unread(CannotJudge):
    """Too many of the confirmed films cannot be read; the text says how many, and why."""


@dataclass(frozen=True)
class Confirmed:
    """The confirmed films as they were at a moment: their manifest with a split, and when each was confirmed."""

    manifest: pd.DataFrame
    confirmed_at: Mapping[str, datetime]
    until: datetime

    @property
    def images(self) -> Collection[str]:
        """Their names in the manifest."""
        return self.confirmed_at.keys()

    def since(self, first: datetime | None) -> set[str]:
        """The images that were confirmed from this moment on; all when it is None."""
        return {image for image, at in self.confirmed_at.items() if first is None or at > first}

    def recent(self, *, days: float) -> set[str]:
        """The images that were confirmed in the last days."""
        return self.since(self.until - timedelta(days=days))


def load_confirmed(context: Context, folder: Path) -> Confirmed:
    """The films confirmed up to now, queried once per folder: a resumed run finds them as they were.

    Raises NothingConfirmed.
    """
    if not (folder / MOMENTS).exists():
        _query_confirmed(context, folder)
    moments = json.loads((folder / MOMENTS).read_text())
    return Confirmed(
        manifest=read_manifest(folder / TABLE),
        confirmed_at={image: datetime.fromisoformat(at) for image, at in moments["confirmed_at"].items()},
        until=datetime.fromisoformat(moments["until"]),
    )


def _query_confirmed(context: Context, folder: Path) -> None:
    with read_scope(context.engine) as session:
        until = database_now(session)
        films = confirmed.confirmed_films(
            session, until=until, unconfirmed_is_absent=context.settings.retrain.unconfirmed_is_absent
        )
    if not films:
        raise NothingConfirmed
    manifest_of(films).to_csv(folder / TABLE, index_label="row")
    moments = {image_of(film.instance_id): film.confirmed_at.isoformat() for film in films}
    # Last: where it lies, the table is whole.
    write_whole(folder / MOMENTS, json.dumps({"until": until.isoformat(), "confirmed_at": moments}))


def manifest_of(films: list[ConfirmedFilm]) -> pd.DataFrame:
    """Confirmed films as a manifest, split by patient."""
    labels = np.array(
        [[UNKNOWN if label is None else label for label in film.labels] for film in films], dtype=np.uint8
    )
    return split_stable(
        pd.DataFrame(
            {
                "image": [image_of(film.instance_id) for film in films],
                "patient_id": [film.patient for film in films],
                "age_years": [film.patient_age_years for film in films],
                "sex": [film.patient_sex or "" for film in films],
                "view_position": [film.view for film in films],
                "split": "",
                **{finding: labels[:, k] for k, finding in enumerate(FINDINGS)},
            }
        )
    )


def inputs(context: Context, manifest: pd.DataFrame, folder: Path, *, size: int) -> Prepared:
    """Those of the confirmed films that can be read and still show what was scored, as inputs in `folder`.

    They are read once: a share that comes back while a retraining is under way must not change what it learns from.
    Raises Unread where more of them cannot be read than the settings allow, and reading.DecodersGone.
    """
    if not (folder / "manifest.csv").exists():
        prepare(manifest, decoding(context, size=size), folder, sizes=(size,))
    unread = left_out(folder)
    if unread.total() > context.settings.retrain.max_unread * len(manifest):
        why = ", ".join(f"{reason} {films}" for reason, films in unread.most_common())
        raise Unread(
            f"{unread.total()} of {len(manifest)} confirmed films cannot be read ({why}): is their share mounted here?"
        )
    return open_prepared(folder, size=size)


def decoding(context: Context, *, size: int) -> ReadFilms:
    """How films are read: as the worker reads them, in child processes, within limits of time and memory."""
    decoders, options = context.settings.retrain.threads, DecodeOptions.of(context, Preprocessing(size=size))

    def read(rows: Mapping[str, int]) -> Iterator[Decoded]:
        with DecoderPool(options, decoders=decoders) as pool:
            pool.begin_proof()()
            for film, outcome in pool.inputs(_files(context, rows), ahead=4 * decoders):
                row = rows[image_of(film.instance_id)]
                if isinstance(outcome, NetworkInput):
                    yield Decoded(row, READY, (outcome.image,))
                else:
                    yield Decoded(row, outcome.reason, ())

    return read


def image_of(instance_id: int) -> str:
    return f"{NAME}{instance_id}"


def _files(context: Context, images: Iterable[str]) -> Iterator[FilmFile]:
    for ids in in_parts([int(image.removeprefix(NAME)) for image in images]):
        with read_scope(context.engine) as session:
            files = film_files(session, ids)
        yield from files


def base_films(settings: Settings, *, size: int) -> Prepared | None:
    """The base at one size, split by patient as the site's films are; None without one. Raises NotPrepared."""
    if settings.retrain.base is None:
        return None
    base = open_prepared(settings.retrain.base, size=size)
    return replace(base, manifest=split_stable(base.manifest))
