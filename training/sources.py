"""Where the films lie: in folders, zip files or tar archives, read where they are and never unpacked."""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_DAMAGE = (tarfile.ReadError, zipfile.BadZipFile, zlib.error, EOFError, OSError)


class Encoded(NamedTuple):
    """One film as it lies in its file; `data` is empty where the file could not be read."""

    row: int
    data: bytes


class AmbiguousImage(ValueError):
    """Two files answer to one name in the table: name the folder that holds the right one."""


def encoded_films(
    sources: Iterable[Path], rows: Mapping[str, int], *, on_damage: Callable[[Path], None]
) -> Iterator[Encoded]:
    """Every film of `rows` (image name -> row) found in the sources, each row at most once, in the order they lie.

    A source is a folder (read through all its depths, archives in it included), a .zip, a .tar or a .tar.gz. A file
    answers to an image when its path ends in the image's name: "images_001/images/1_000.png" is "1_000.png".
    `on_damage` hears of an archive that broke off; what lay before the break has been read.

    Raises FileNotFoundError for a source that is not there and AmbiguousImage when two files answer to one image.
    """
    left = dict(rows)  # it shrinks as films are found, so that a second copy in a later source is passed over
    for source in sources:
        yield from _films_of(source, left, on_damage)


def _content(path: Path) -> bytes:
    """A file's bytes, none where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _films_of(source: Path, left: dict[str, int], on_damage: Callable[[Path], None]) -> Iterator[Encoded]:
    if source.is_dir():
        yield from _in_folder(source, left)
        for archive in sorted(path for path in source.rglob("*") if _is_archive(path)):
            yield from _films_of(archive, left, on_damage)
        return
    if not source.exists():
        raise FileNotFoundError(f"no images at {source}")
    try:
        yield from _in_zip(source, left) if source.suffix == ".zip" else _in_tar(source, left)
    except _DAMAGE:
        on_damage(source)


def _in_folder(folder: Path, left: dict[str, int]) -> Iterator[Encoded]:
    paths = (Path(at, name) for at, _, names in os.walk(folder) for name in sorted(names))
    names = (path.relative_to(folder).as_posix() for path in paths)
    for image, name in _located(names, left).items():
        yield Encoded(left.pop(image), _content(folder / name))


def _in_zip(archive: Path, left: dict[str, int]) -> Iterator[Encoded]:
    with zipfile.ZipFile(archive) as opened:
        for image, name in _located(opened.namelist(), left).items():
            try:
                data = opened.read(name)
            except (zipfile.BadZipFile, zlib.error, EOFError):  # this member is damaged; its neighbours need not be
                data = b""
            yield Encoded(left.pop(image), data)


def _in_tar(archive: Path, left: dict[str, int]) -> Iterator[Encoded]:
    # A gzip stream has no index: it is read once from end to end, and the list of members that tarfile keeps is emptied
    # on the way, which is what keeps memory flat over 112,120 of them.
    with tarfile.open(archive, mode="r|*") as stream:
        while left and (member := stream.next()) is not None:
            image = _image_of(member.name, left)
            if image is not None and member.isfile() and (opened := stream.extractfile(member)) is not None:
                data = opened.read()
                yield Encoded(left.pop(image), data)
            stream.members.clear()  # type: ignore[attr-defined]  # typeshed does not know the list


def _located(names: Iterable[str], left: Mapping[str, int]) -> dict[str, str]:
    """image -> the one name that answers to it, in the order of the names; an exact name goes before a mere ending."""
    found: dict[str, str] = {}
    for name in names:
        image = _image_of(name, left)
        if image is None or found.get(image) == image:
            continue
        if image in found and name != image:
            raise AmbiguousImage(f"{found[image]} and {name} both answer to {image}")
        found[image] = name
    return found


def _image_of(name: str, wanted: Mapping[str, int]) -> str | None:
    """The wanted image that this path ends in, the longest first."""
    parts = PurePosixPath(name).parts
    return next((end for start in range(len(parts)) if (end := "/".join(parts[start:])) in wanted), None)


def _is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVES) and path.is_file()
