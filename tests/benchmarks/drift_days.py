"""How often drift alarms, and how often it should not: films of ../shared as DICOM, and random days drawn of them.

python -m tests.benchmarks.drift_days write hannover OUT
python -m tests.benchmarks.drift_days write nih OUT [--list RUN/test.txt]
NIGHTREAD_CHECKPOINT=... NIGHTREAD_DATABASE_URL=... nightread score OUT     (and nightread drift)
NIGHTREAD_CHECKPOINT=... NIGHTREAD_DATABASE_URL=... python -m tests.benchmarks.drift_days draw --films 200
    [--null | --other URL --share .2]
"""

import argparse
import csv
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from db import drift as facts
from db.session import read_scope
from tests.support.dicom_files import make_film
from training.findings import FINDINGS
from worker.context import Context
from worker.monitoring import drift
from worker.setting_groups import DriftSettings
from worker.settings import Settings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NOTHING = facts.Arrivals({key: {} for key in facts.ATTRIBUTES}, {}, {})
EVER = {"since": datetime(2000, 1, 1, tzinfo=UTC), "until": datetime(2100, 1, 1, tzinfo=UTC)}


def rows_of(source: str, listed: set[str] | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each frontal film's file, and its header attributes."""
    folder = DATA / f"{source}_films"
    with (folder / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            view = row.get("view") or row.get("view_position", "")
            if view not in ("AP", "PA") or (listed is not None and row["file"] not in listed):
                continue
            age = row["age"].split(".")[0]
            yield (
                folder / row["file"],
                {
                    "view_position": view,
                    "Modality": row.get("modality", "DX"),
                    "PatientID": f"{source}-{row['patient_id']}",
                    "PatientSex": row["sex"].upper(),
                    "PatientAge": f"{int(age):03d}Y" if age else "",
                    "Manufacturer": source,
                },
            )


def write(source: str, out: Path, listed: set[str] | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for number, (path, attributes) in enumerate(rows_of(source, listed)):
        with Image.open(path) as film:
            pixels = np.asarray(film.convert("L"))
        make_film(out / f"{number:05d}.dcm", pixels=pixels, AccessionNumber=f"{source}{number}", **attributes)


def scored(url: str | None) -> np.ndarray:
    """All scores (N, 11) of the live checkpoint in this database, or in the one that the settings name."""
    settings = Settings() if url is None else Settings(database_url=url)
    context = Context(settings)
    with read_scope(context.engine) as session:
        return np.array(facts.scores(session, checkpoint_id=context.live().checkpoint_id, **EVER))


def as_known(scores: np.ndarray, reference: Mapping[str, Any]) -> np.ndarray:
    """Each score moved to the same rank in the reference: nothing has drifted by construction, and the findings still
    move together as they do on real films."""
    shares = (scores.argsort(axis=0).argsort(axis=0) + 0.5) / len(scores)
    quantiles = [reference["probabilities"][finding] for finding in FINDINGS]
    return np.stack([np.interp(shares[:, i], reference["levels"], q) for i, q in enumerate(quantiles)], axis=1)


def draw(chosen: argparse.Namespace) -> None:
    """Judge random days by their scores alone; print how many were quiet, warned, and asked to act."""
    rules, rng = DriftSettings(min_films=min(chosen.films, 200)), np.random.default_rng(chosen.seed)
    reference = Context(Settings()).live().header.reference
    usual = scored(None)
    if chosen.null:
        usual = as_known(usual, reference)
    others = scored(chosen.other) if chosen.other else usual[:0]
    strange = round(chosen.share * chosen.films)
    levels = []
    for _ in range(chosen.days):  # without repeats: films twice in a day are more alike than a day's films are
        parts = rng.permutation(usual)[: chosen.films - strange], rng.permutation(others)[:strange]
        figures, _ = drift.judge(np.concatenate(parts), reference, NOTHING, NOTHING, rules=rules)
        levels.append(drift.worst(figure.level for figure in figures))
    counts = ", ".join(f"{level} {levels.count(level)}" for level in (drift.QUIET, drift.WARN, drift.ACT))
    print(f"{chosen.days} days of {chosen.films} films, {strange} of them from elsewhere: {counts}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = arguments.add_subparsers(dest="what", required=True)
    written = what.add_parser("write")
    written.add_argument("source", choices=("hannover", "nih"))
    written.add_argument("out", type=Path)
    written.add_argument("--list", type=Path, help="only the films named here, one a line, as a run's test.txt")
    drawn = what.add_parser("draw")
    drawn.add_argument("--films", type=int, default=200)
    drawn.add_argument("--days", type=int, default=1000)
    drawn.add_argument("--null", action="store_true", help="by scores that follow the reference exactly")
    drawn.add_argument("--other", help="URL of a database with films from elsewhere, scored by the same checkpoint")
    drawn.add_argument("--share", type=float, default=0.0, help="their share of a day")
    drawn.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    if chosen.what == "write":
        listed = None if chosen.list is None else set(chosen.list.read_text().split())
        write(chosen.source, chosen.out, listed)
    else:
        draw(chosen)


if __name__ == "__main__":
    main()
