"""A prepared data set: the manifest, and every film as a small network input in one memory-mapped file per size.

manifest.csv      row, image, patient_id, age_years, sex, view_position, split, source, a column per finding
                  (255: unknown)
images-224.npy    float16 (films, 224, 224) in 0 to 255; a film's place is its `row`
bad_files.csv     image, reason, kept: what was left out, and what was kept with a remark
progress.csv      row, outcome: the films done so far; a run that was killed goes on from there
prepared.json     how the inputs were made
"""

import csv
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from training.errors import TrainingFailed
from training.findings import FINDINGS
from training.imaging.child_process import exit_with_parent
from training.imaging.dicom import ConstantImage, UnusablePixels, dataset_in
from training.imaging.look_ahead import look_ahead
from training.imaging.pixels import read_film, read_picture
from training.imaging.preprocessing import Greys, Preprocessing
from training.imaging.whole_file import whole_file, write_whole
from training.manifest import DESCRIPTION, OLDEST_YEARS, UNKNOWN, checked, findings_in
from training.sources import Encoded, encoded_films

READY: Final = "ready"
CONVERTED: Final = "converted_to_gray"
MISSING: Final = "missing"
DAMAGED_ARCHIVE: Final = "damaged_archive"
TOO_OLD: Final = f"age_over_{OLDEST_YEARS}_ignored"
_PICTURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how a PNG and a JPEG begin
_GRAY: Final = ("1", "L", "I", "I;16")
KEPT: Final = (READY, CONVERTED)
_FILMS_PER_SYNC: Final = 256
_NPY_HEADER_BYTES: Final = 128
_STORED: Final = np.dtype("<f2")  # the greys in the image files


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, opened for reading.

    manifest       one row per usable film. Its index is the film's place in `images`, and stays so through every
                   selection: `images[manifest[manifest["split"] == "train"].index]`. Places may have gaps (bad files).
    images         float16 (places, size, size) in 0 to 255, memory-mapped, read only
    preprocessing  what made the inputs; its size is the images' size
    """

    manifest: pd.DataFrame
    images: Greys
    preprocessing: Preprocessing

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings the manifest has labels for."""
        return findings_in(self.manifest)


class NotPrepared(TrainingFailed):
    """The folder holds no finished preparation, or one of other films or another size."""


class Decoded(NamedTuple):
    """One film's inputs, one per size (none when it is unusable), and what became of it: READY, or why not."""

    row: int
    outcome: str
    inputs: tuple[Greys, ...]


ReadFilms = Callable[[Mapping[str, int]], Iterable[Decoded]]
"""Reads the films of these rows (image name -> row) in a way of its own; what it leaves out is missing."""


def open_prepared(folder: Path, *, size: int | None = None) -> Prepared:
    """Open a prepared folder at one of its sizes (pixels; the only one, or else the smallest, if not said).

    Raises NotPrepared when the folder was not prepared to the end or not at this size, or is damaged.
    """
    if not (folder / "manifest.csv").is_file():
        raise NotPrepared(f"{folder} holds no manifest.csv: run `nightread train prepare` first, to its end")
    try:
        plan = json.loads((folder / "prepared.json").read_text())
        size = min(plan["sizes"]) if size is None else size
        if size not in plan["sizes"]:
            raise NotPrepared(f"{folder} holds the sizes {plan['sizes']}, not {size}")
        if plan["preprocessing"] != Preprocessing.name:
            raise NotPrepared(f"{folder} was prepared by another version of Nightread: prepare it again elsewhere")
        manifest = read_manifest(folder / "manifest.csv")
        images = np.load(_images_path(folder, size), mmap_mode="r")
        return Prepared(manifest, images, Preprocessing(size=size))
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotPrepared(
            f"{folder} is damaged ({type(error).__name__}): prepare it again in another folder"
        ) from error


def read_manifest(path: Path) -> pd.DataFrame:
    """A written manifest; its index is `row`, the film's place in the images. Patients are text, empty cells are ""."""
    text = ("image", "patient_id", "sex", "view_position", "split", "source")
    manifest = pd.read_csv(
        path, index_col="row", dtype=dict.fromkeys(text, "string"), keep_default_na=False, na_values={"age_years": [""]}
    )
    if "source" not in manifest:  # prepared before there was one
        manifest.insert(list(manifest).index("split") + 1, "source", pd.Series("", manifest.index, dtype="string"))
    return manifest.astype(dict.fromkeys(findings_in(manifest), "uint8"))


def prepare(
    manifest: pd.DataFrame,
    sources: Sequence[Path] | ReadFilms,
    folder: Path,
    *,
    sizes: Sequence[int] = (224,),
    processes: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """Read the manifest's films from the sources into `folder`; how many there are of each outcome.

    Killed at any moment and started again it goes on where it stopped, and the files come out byte for byte as from an
    undisturbed run. Sources are folders and archives, which may arrive one by one, or a function that reads the films:
    those still missing are looked for at every run, and one that could not be used is tried again, in case its file was
    replaced. `processes` decode side by side (0: this one), where no function does; `progress` hears how many more
    films are done. Memory does not grow with the films.

    Raises NotPrepared when the folder was begun with other films or sizes, and what `encoded_films` raises.
    """
    manifest = checked(manifest).reset_index(drop=True)
    preprocessings = tuple(Preprocessing(size=size) for size in sorted(set(sizes)))
    _begin(folder, manifest, preprocessings)
    outcomes = _outcomes_so_far(folder)
    rows = {image: row for row, image in enumerate(manifest["image"]) if outcomes.get(row) not in KEPT}
    progress(len(manifest) - len(rows))
    damaged: list[Path] = []
    if callable(sources):
        decoded = sources(rows)
    else:
        films = encoded_films(sources, rows, on_damage=damaged.append)
        decoded = _side_by_side(partial(decode, preprocessings=preprocessings), films, processes=processes)
    with _Cache(folder, preprocessings) as cache:
        for film in decoded:
            cache.write(film)
            outcomes[film.row] = film.outcome
            progress(1)
    return _finish(folder, manifest, outcomes, damaged)


def combine(parts: Sequence[Prepared], folder: Path) -> Prepared:
    """The films of several prepared sets as one set in `folder`, in the parts' order, at places without gaps.

    A finding that a part has no labels for is unknown on its films. A kill leaves no set that is half the old one and
    half the new. The same parts give the same bytes. Memory does not grow with the films.

    Raises NotPrepared when the parts are not of one size, and ManifestError when two films go by one name.
    """
    sizes = {part.preprocessing.size for part in parts}
    if len(sizes) != 1:
        raise NotPrepared(f"only sets of one size can be combined, not of {sorted(sizes)}")
    (size,) = sizes
    findings = [finding for finding in FINDINGS if any(finding in part.findings for part in parts)]
    unknown = dict.fromkeys(findings, np.uint8(UNKNOWN))
    tables = [part.manifest.assign(**unknown | dict(part.manifest[list(part.findings)])) for part in parts]
    manifest = checked(pd.concat(tables, ignore_index=True)[[*DESCRIPTION, *findings]])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").unlink(missing_ok=True)  # it goes first and comes last: where it lies, all is complete
    _write_inputs(_images_path(folder, size), parts, (len(manifest), size, size))
    write_whole(folder / "prepared.json", _plan(manifest, [parts[0].preprocessing]))
    write_whole(folder / "manifest.csv", manifest.to_csv(index_label="row"))
    return open_prepared(folder, size=size)


def _write_inputs(path: Path, parts: Sequence[Prepared], shape: tuple[int, ...]) -> None:
    with whole_file(path) as unfinished:
        _lay_out(unfinished, shape)
        with unfinished.open("r+b") as opened:
            opened.seek(_NPY_HEADER_BYTES)
            for part in parts:
                places = part.manifest.index.to_numpy()
                for start in range(0, len(places), _FILMS_PER_SYNC):
                    opened.write(part.images[places[start : start + _FILMS_PER_SYNC]].astype(_STORED).tobytes())


def decode(film: Encoded, *, preprocessings: Sequence[Preprocessing]) -> Decoded:
    """One encoded film (PNG, JPEG or DICOM) as inputs, or the reason why not."""
    try:
        pixels = pixels_of(film.data)
    except UnusablePixels as unusable:
        return Decoded(film.row, unusable.reason, ())
    inputs = tuple(preprocessing.image(pixels) for preprocessing in preprocessings)
    return Decoded(film.row, CONVERTED if _is_coloured_picture(film.data) else READY, inputs)


def pixels_of(data: bytes) -> npt.NDArray[np.float32]:
    """PNG, JPEG or DICOM bytes as float32 (rows, columns) in [0, 1]. Raises UnusablePixels, also if blank."""
    pixels = read_picture(BytesIO(data)) if data.startswith(_PICTURES) else read_film(dataset_in(data)).image
    if pixels.min() == pixels.max():
        raise ConstantImage
    return pixels


def _is_coloured_picture(data: bytes) -> bool:
    if not data.startswith(_PICTURES):
        return False
    with Image.open(BytesIO(data)) as picture:
        return picture.mode not in _GRAY


def _side_by_side(work: Callable[[Encoded], Decoded], films: Iterable[Encoded], *, processes: int) -> Iterator[Decoded]:
    """`map`, over processes, with only a few films under way: the reader must not run ahead and fill the memory."""
    if processes == 0:
        yield from map(work, films)
        return
    # Spawned, not forked: the caller may have started threads, and a forked child would inherit their locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=exit_with_parent) as pool:
        for future in look_ahead(lambda film: pool.submit(work, film), films, depth=4 * processes):
            yield future.result()


class _Cache:
    """The image files and the record of progress, written so that the record never runs ahead of the images.

    Plain writes at an offset rather than through a memory map: written pages of a map count as this process's memory.
    """

    def __init__(self, folder: Path, preprocessings: Sequence[Preprocessing]) -> None:
        self._images: list[IO[bytes]] = [_images_path(folder, each.size).open("r+b") for each in preprocessings]
        self._progress: IO[str] = (folder / "progress.csv").open("a")
        self._waiting: list[str] = []

    def __enter__(self) -> "_Cache":
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        for opened in self._images:
            opened.close()
        self._progress.close()

    def write(self, film: Decoded) -> None:
        for opened, network_input in zip(
            self._images, film.inputs, strict=False
        ):  # a bad film has none: it stays black
            opened.seek(_NPY_HEADER_BYTES + film.row * network_input.nbytes)
            opened.write(network_input.tobytes())
        self._waiting.append(f"{film.row},{film.outcome}\n")
        if len(self._waiting) == _FILMS_PER_SYNC:
            self._sync()

    def _sync(self) -> None:
        for opened in self._images:
            opened.flush()
            os.fsync(opened.fileno())
        self._progress.writelines(self._waiting)
        self._progress.flush()
        os.fsync(self._progress.fileno())
        self._waiting.clear()


def _begin(folder: Path, manifest: pd.DataFrame, preprocessings: Sequence[Preprocessing]) -> None:
    """Lay out the folder, or make sure that it was laid out for these very films."""
    folder.mkdir(parents=True, exist_ok=True)
    plan, written = _plan(manifest, preprocessings), folder / "prepared.json"
    if written.is_file():
        if written.read_text() != plan:
            raise NotPrepared(
                f"{folder} was begun with other films or sizes, or by another version: take another folder or remove it"
            )
        return
    for each in preprocessings:
        _lay_out(_images_path(folder, each.size), (len(manifest), each.size, each.size))
    write_whole(written, plan)


def _plan(manifest: pd.DataFrame, preprocessings: Sequence[Preprocessing]) -> str:
    """Contents of prepared.json for these films."""
    plan = {
        "films": len(manifest),
        "sizes": [each.size for each in preprocessings],
        "preprocessing": preprocessings[0].name,
        "images_digest": hashlib.sha256("\n".join(manifest["image"]).encode()).hexdigest(),
    }
    return json.dumps(plan, indent=2) + "\n"


def _lay_out(path: Path, shape: tuple[int, ...]) -> None:
    """An .npy file of zeros that takes no room until it is written to."""
    header: dict[str, Any] = {"descr": _STORED.str, "fortran_order": False, "shape": shape}
    with path.open("wb") as opened:
        np.lib.format.write_array_header_1_0(opened, header)
        if opened.tell() != _NPY_HEADER_BYTES:
            raise AssertionError(f"numpy wrote a header of {opened.tell()} bytes")
        opened.truncate(_NPY_HEADER_BYTES + int(np.prod(shape)) * _STORED.itemsize)


def _outcomes_so_far(folder: Path) -> dict[int, str]:
    """row -> outcome of the films already done. A last line that was torn by a kill is cut off."""
    path = folder / "progress.csv"
    if not path.is_file():
        return {}
    whole = path.read_bytes()
    os.truncate(path, whole.rfind(b"\n") + 1)
    return {int(row): outcome for row, outcome in csv.reader(whole[: whole.rfind(b"\n") + 1].decode().splitlines())}


def _finish(folder: Path, manifest: pd.DataFrame, outcomes: dict[int, str], damaged: Sequence[Path]) -> Counter[str]:
    """Write the bad files and, last, the manifest of the usable films: where it lies, the folder is complete."""
    outcome = manifest.index.map(lambda row: outcomes.get(row, MISSING))
    usable = outcome.isin(KEPT)
    too_old = (manifest["age_years"] > OLDEST_YEARS) & usable
    bad = pd.concat(
        [
            pd.DataFrame({"image": manifest["image"], "reason": outcome, "kept": usable.astype(int)})[outcome != READY],
            pd.DataFrame({"image": manifest.loc[too_old, "image"], "reason": TOO_OLD, "kept": 1}),
            pd.DataFrame({"image": [path.name for path in damaged], "reason": DAMAGED_ARCHIVE, "kept": 0}),
        ]
    )
    write_whole(folder / "bad_files.csv", bad.to_csv(index=False))
    kept = manifest.assign(age_years=manifest["age_years"].mask(too_old))[usable]
    write_whole(folder / "manifest.csv", kept.to_csv(index_label="row"))
    counts = Counter(outcome.tolist())
    counts.update({TOO_OLD: int(too_old.sum()), DAMAGED_ARCHIVE: len(damaged)})
    return +counts


def left_out(folder: Path) -> Counter[str]:
    """How many films of a finished preparation could not be used, by reason."""
    bad = pd.read_csv(folder / "bad_files.csv")
    return Counter(bad.loc[bad["kept"] == 0, "reason"].tolist())


def _images_path(folder: Path, size: int) -> Path:
    return folder / f"images-{size}.npy"
