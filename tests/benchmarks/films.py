"""The benchmark's films: the transfer syntaxes that archives hold, at the sizes and with the texture of real films."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    generate_uid,
)

from tests.support.dicom_files import make_film, save, texture

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "nih_films" / "originals_1024"
SIDES_PIXELS = (2000, 3500)
GRAIN = 12.0  # standard deviation of a detector's noise, in steps of 12 bits

# Twenty films; either half holds about what the whole does.
SV1, J2K, NATIVE = JPEGLosslessSV1, JPEG2000Lossless, ExplicitVRLittleEndian
HALVES = [(SV1, J2K, SV1, NATIVE, SV1, rare, SV1, J2K, SV1, NATIVE) for rare in (JPEGLSLossless, HTJ2KLossless)]
MIX: tuple[UID, ...] = (*HALVES[0], *HALVES[1])
SYNTAXES: dict[str, UID] = {
    "JPEG Lossless": SV1,
    "uncompressed": NATIVE,
    "JPEG-LS": JPEGLSLossless,
    "HTJ2K": HTJ2KLossless,
    "JPEG 2000": J2K,
}
# name of a set of films -> which of the twenty it takes
SETS: dict[str, tuple[UID, ...]] = {
    "mix": tuple(dict.fromkeys(MIX)),
    **{name: (SYNTAXES[name],) for name in ("JPEG Lossless", "JPEG 2000")},
}
STUDIES = {"mix": 100, "JPEG Lossless": 60, "JPEG 2000": 60}


@dataclass(frozen=True)
class Films:
    """Folders of single-film studies, one per set, and one path of each different film of the mix."""

    folder: Path
    different: tuple[Path, ...]

    def of(self, name: str) -> Path:
        return self.folder / name.replace(" ", "_")


def write_films(folder: Path, *, seed: int = 0, only: Collection[str] = SETS) -> Films:
    """Twenty different films, each written many times under UIDs of its own: a study is a study by its UID.

    only: the sets to write, by name.
    """
    films = Films(folder, tuple(folder / "mix" / f"000-{i:02d}.dcm" for i in range(len(MIX))))
    drawn = list(_drawn(np.random.default_rng(seed)))
    for name, syntaxes in ((name, SETS[name]) for name in only):
        films.of(name).mkdir(parents=True)
        chosen = [(i, film) for i, film in enumerate(drawn) if film.file_meta.TransferSyntaxUID in syntaxes]
        for count in range(STUDIES[name]):
            i, film = chosen[count % len(chosen)]
            film.StudyInstanceUID, film.SOPInstanceUID = generate_uid(), generate_uid()
            save(film, films.of(name) / f"{count // len(chosen):03d}-{i:02d}.dcm")
    return films


def source() -> str:
    """Where the texture comes from."""
    return "real films, upscaled, with grain" if SHARED.is_dir() else "generated texture"


def _drawn(rng: np.random.Generator) -> Iterator[Dataset]:
    """One DX film per entry of the mix: 12 bits in 16, sides of 2000 to 3500 pixels, a window in the header."""
    for i, syntax in enumerate(MIX):
        rows, columns = (int(side) // 2 * 2 for side in rng.uniform(*SIDES_PIXELS, size=2))
        pixels = textured(i, rows, columns, rng)
        yield make_film(pixels=pixels, bits=12, transfer_syntax=syntax, WindowCenter=2048, WindowWidth=3800)


def textured(number: int, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """12-bit pixels (rows, columns) with the texture of the real film of this number, or a generated one."""
    originals = sorted(SHARED.glob("*.png")) if SHARED.is_dir() else []
    if originals:
        return upscaled(originals[number % len(originals)], rows, columns, rng)
    return texture(rows, columns, seed=number)


def upscaled(original: Path, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """A real film at another size. Enlarged alone it would compress as no film does: a codec has to carry grain."""
    with Image.open(original) as png:
        smooth = np.asarray(png.convert("F").resize((columns, rows), Image.Resampling.BICUBIC)) * 16
    grain = rng.normal(0, GRAIN, smooth.shape)
    return np.clip(np.rint(smooth + grain), 0, 4095).astype(np.uint16)
