"""Films and heat maps as PNG files: decoded as the scorer decodes them, kept in the state folder under digests.

A picture's address holds a row id: no path, no UID. Its bytes depend on the film's pixels, and a heat map's on the
checkpoint and the finding too; their digest is the file's name, after the study's id, by which `nightread prune` knows
whose picture it is.
"""

import hashlib
import io
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from db.base import DocumentedError
from db.models import Checkpoint as CheckpointRow
from db.morning import Film
from training.checkpoint import Checkpoint, CheckpointError, build, load_checkpoint
from training.imaging.preprocessing import Greys, Preprocessing, as_picture
from training.imaging.whole_file import write_whole
from worker.context import Context
from worker.report.pictures import NoHeatMaps, heat_overlay
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions, Failure

if TYPE_CHECKING:
    from torch import nn

FILM_PIXELS, THUMBNAIL_PIXELS = 1024, 96  # the longer side
HEAT_PIXELS = 768
DRAWING = "3"  # of the way pictures are made: another way makes other files
TIDIED_EVERY = 64  # pictures


class NoPicture(DocumentedError, LookupError):
    """The film cannot be shown: its file is gone, has changed, or cannot be decoded."""


@dataclass(frozen=True)
class _Loaded:
    digest: str
    checkpoint: Checkpoint
    network: "nn.Module"


class Pictures:
    """Pictures of one context. Its decoder processes start with the first picture that is not there yet."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._folder = context.pictures_folder
        self._decoders = DecoderPool(DecodeOptions.of(context, Preprocessing(size=FILM_PIXELS)), decoders=2)
        self._loaded: _Loaded | None = None
        # One film at a time, and one thumbnail, each with a decoder: scoring needs the processor more. Who opens a film
        # does not wait behind the thumbnails of a list, not even behind one that hangs its decoder.
        self._films, self._thumbnails = threading.Lock(), threading.Lock()
        self._drawn = 0

    def close(self) -> None:
        """End the decoder processes."""
        self._decoders.__exit__(None, None, None)

    def film(self, film: Film) -> bytes:
        """A film in grey, as large as it is kept. Raises NoPicture."""
        name = _name(film, "film")
        return self._kept(name, lambda: self._decoded(film, FILM_PIXELS), turn=self._films)

    def thumbnail(self, film: Film) -> bytes:
        """The same, small. Raises NoPicture."""
        name = _name(film, "thumbnail")
        return self._kept(name, lambda: self._decoded(film, THUMBNAIL_PIXELS), turn=self._thumbnails)

    def heat(self, film: Film, finding: str, row: CheckpointRow) -> bytes:
        """A film under the heat map of a finding, by the checkpoint that ranks its study.

        Raises NoPicture, also where nothing on the film speaks for the finding, and NoHeatMaps.
        """
        name = _name(film, "heat", row.digest, finding)
        return self._kept(name, lambda: self._warm(film, finding, row), turn=self._films)

    def _kept(self, name: str, draw: Callable[[], Image.Image], *, turn: threading.Lock) -> bytes:
        """The picture of this name, drawn first where it is not there yet."""
        path = self._path(name)
        with suppress(FileNotFoundError):
            return path.read_bytes()
        with turn:
            with suppress(FileNotFoundError):  # another request may have drawn it meanwhile
                return path.read_bytes()
            return self._write(path, draw())

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.png"

    def _write(self, path: Path, picture: Image.Image) -> bytes:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=3)
        write_whole(path, buffer.getvalue())
        self._drawn += 1
        if self._drawn % TIDIED_EVERY == 1:
            with suppress(FileNotFoundError):  # the other one tidies, or `nightread prune`
                self._tidy()
        return buffer.getvalue()

    def _tidy(self) -> None:
        """Remove the oldest pictures and morning pages that are more than the settings allow."""
        files = sorted(((file.stat(), file) for file in self._folder.glob("*")), key=lambda pair: -pair[0].st_mtime)
        used, allowed = 0, self._context.settings.web.pictures_mb * 2**20
        for stat, file in files:
            used += stat.st_size
            if used > allowed:
                file.unlink(missing_ok=True)

    def _decoded(self, film: Film, longer: int) -> Image.Image:
        image = self._network_input(film, Preprocessing(size=longer))
        return Image.fromarray(as_picture(image)).resize(_size(film, longer), Image.Resampling.BICUBIC)

    def _warm(self, film: Film, finding: str, row: CheckpointRow) -> Image.Image:
        loaded = self._load(row)
        image = self._network_input(film, loaded.checkpoint.preprocessing)
        heat = heat_overlay(loaded.checkpoint, loaded.network, image, finding)
        if heat is None:
            raise NoPicture("nothing on the film speaks for this finding")
        return Image.fromarray(heat).resize(_size(film, HEAT_PIXELS), Image.Resampling.BICUBIC)

    def _load(self, row: CheckpointRow) -> _Loaded:
        if self._loaded is None or self._loaded.digest != row.digest:
            try:
                checkpoint = load_checkpoint(self._context.file_of(row), expected_digest=row.digest)
                self._loaded = _Loaded(row.digest, checkpoint, build(checkpoint))
            except CheckpointError as error:
                raise NoHeatMaps("the checkpoint's file is not on this machine") from error
        return self._loaded

    def _network_input(self, film: Film, preprocessing: Preprocessing) -> Greys:
        decoded = self._decoders.picture(film, preprocessing)
        if isinstance(decoded, Failure):
            raise NoPicture
        return decoded.image


def _name(film: Film, *kind: str) -> str:
    digest = hashlib.sha256("\x1f".join((DRAWING, film.pixel_digest or "", *kind)).encode()).hexdigest()
    return f"{film.study_id}-{digest}"


def _size(film: Film, longer: int) -> tuple[int, int]:
    """Width and height of the film's picture: as wide and high as the film was, by its longer side."""
    rows, columns = film.rows or 1, film.columns or 1
    return max(1, longer * columns // max(rows, columns)), max(1, longer * rows // max(rows, columns))
