"""A drawing surface for phantoms: shapes and strokes become maps of thickness, and a map becomes a film.

Lengths are in lung heights: x = 0 is the midline and grows towards the right of the picture (the patient's left),
y = 0 is the top of the lungs and y = 1 the right dome of the diaphragm. Maps are float32 (H, W) in [0, 1] unless said
otherwise. Pillow draws and blurs; eight bits of it are enough under a film's grain.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Map = NDArray[np.floating[Any]]  # float32
Points = NDArray[np.float64]
Point = tuple[float, float]
Stroke = tuple[Points, float, float]  # points (N, 2), width, strength in [0, 1]

_FINE = ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 4, 2, 1, 2, 1))
_CIRCLE = np.linspace(0, 2 * np.pi, 48)


@dataclass(frozen=True)
class Sheet:
    """A drawing surface: maps lung heights to pixels, with the small rotation that real films have."""

    height: int
    width: int
    scale: float  # pixels to one lung height
    centre: Point = (0.0, 0.52)
    tilt_degrees: float = 0.0

    @cached_property
    def turn(self) -> Points:
        cos, sin = np.cos(np.deg2rad(self.tilt_degrees)), np.sin(np.deg2rad(self.tilt_degrees))
        return np.array([[cos, sin], [-sin, cos]])

    def pixels(self, points: ArrayLike) -> Points:
        """Points (N, 2) in lung heights -> (N, 2) in pixels, x first."""
        moved = (np.asarray(points, float) - self.centre) @ (self.turn * self.scale)
        return np.asarray(moved + np.array([self.width / 2, self.height / 2]))

    @cached_property
    def grid(self) -> tuple[Map, Map]:
        """The coordinates x and y, in lung heights, of every pixel."""
        rows, columns = np.indices((self.height, self.width), dtype=np.float32)
        across, down = (columns - self.width / 2) / self.scale, (rows - self.height / 2) / self.scale
        (cos, sin), _ = self.turn.astype(np.float32)
        return across * cos + down * sin + self.centre[0], down * cos - across * sin + self.centre[1]

    def fill(self, *outlines: ArrayLike, soft: float = 0.0) -> Map:
        """Closed outlines -> a mask in [0, 1] whose edge is `soft` wide."""
        page = Image.new("L", (self.width, self.height))
        for outline in outlines:
            ImageDraw.Draw(page).polygon(self.pixels(outline).ravel().tolist(), fill=255)
        return _softened(page, soft * self.scale)

    def lines(self, strokes: Iterable[Stroke], *, soft: float = 0.0) -> Map:
        """Strokes, thin ones first -> a map in [0, 1]."""
        page = Image.new("L", (self.width * 2, self.height * 2))
        draw = ImageDraw.Draw(page)
        ordered = sorted(strokes, key=lambda stroke: stroke[1])
        paths = 2 * self.pixels(
            np.concatenate([points for points, _, _ in ordered])
        )  # all at once: there are thousands
        start = 0
        for points, width, strength in ordered:
            pen, end = max(1, round(width * self.scale * 2)), start + len(points)
            path, start = paths[start:end].ravel().tolist(), end
            draw.line(path, fill=round(255 * strength), width=pen, joint="curve" if pen > 6 else None)
        return _softened(page.reduce(2), soft * self.scale)

    def bone(self, outlines: Iterable[ArrayLike], *, cortex: float) -> Map:
        """Filled outlines with the bright rim of a bone, whose shell is denser than its inside."""
        mask = self.fill(*outlines, soft=0.0016)
        return mask * (0.4 + 1.3 * (1 - self.blur(mask, cortex)))

    def blur(self, image: Map, soft: float) -> Map:
        """Gaussian blur of a map in [0, 1]."""
        return _softened(Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)), soft * self.scale)

    def blob(self, centre: Point, radius: float) -> Map:
        """A round patch without an edge."""
        x, y = self.grid
        return np.asarray(np.exp(-((np.hypot(x - centre[0], 0.9 * (y - centre[1])) / radius) ** 3)))

    def clouds(self, rng: np.random.Generator, *, grain: float) -> Map:
        """Smooth noise in [0, 1] with blobs about `grain` across."""
        step = max(1, round(grain * self.scale))
        coarse = rng.integers(0, 256, (self.height // step + 3, self.width // step + 3), dtype=np.uint8)
        page = Image.fromarray(coarse).resize((self.width, self.height), Image.Resampling.BICUBIC)
        return np.asarray(page, np.float32) / 255


def _softened(page: Image.Image, sigma: float) -> Map:
    # A wide blur costs far less on a smaller page, and nobody sees the difference.
    shrink = 1 if sigma < 1.5 else 2 if sigma < 6 else 4 if sigma < 20 else 8
    blur = _FINE if sigma < 1 else ImageFilter.GaussianBlur(sigma / shrink)
    blurred = page.reduce(shrink).filter(blur).resize(page.size, Image.Resampling.BICUBIC)
    return np.asarray(blurred, np.float32) / 255


def places(text: str) -> Points:
    """Points (N, 2) from "x,y x,y ...", as outlines are easiest to read."""
    return np.array([[float(number) for number in place.split(",")] for place in text.split()])


def curve(points: ArrayLike, *, closed: bool = False, steps: int = 12) -> Points:
    """A Catmull-Rom spline through the points, (N * steps, 2)."""
    p = np.asarray(points, float)
    ends = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    p = np.concatenate([ends[0], p, ends[1]])
    a, b, c, d = (p[start : len(p) - 3 + start, None] for start in range(4))  # (spans, 1, 2)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    spans = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([spans.reshape(-1, 2), p[-2:-1]])


def ring(centre: ArrayLike, radius: ArrayLike) -> Points:
    """A closed circle of 48 points, (48, 2); a radius for each point makes it lobed, one for x and y an ellipse."""
    circle = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], 1)
    return np.asarray(np.asarray(centre, float) + np.asarray(radius, float) * circle)


def mirrored(points: ArrayLike, sign: float) -> Points:
    """Points drawn for the patient's left (sign 1), turned to the right for sign -1."""
    return np.asarray(points, float) * (sign, 1.0)


def both(points: ArrayLike) -> tuple[Points, Points]:
    """Points drawn for the patient's left, and their mirror image."""
    return mirrored(points, 1), mirrored(points, -1)


def ribbon(path: Points, widths: ArrayLike) -> Points:
    """A band along a path -> its closed outline; widths one for all, or evenly spread over the way."""
    direction = np.gradient(path, axis=0)
    normal = direction[:, ::-1] * (-1, 1) / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    given = np.atleast_1d(np.asarray(widths, float))
    half = np.interp(np.linspace(0, 1, len(path)), np.linspace(0, 1, len(given)), given)[:, None] / 2
    return np.concatenate([path + normal * half, (path - normal * half)[::-1]])


def branches(
    rng: np.random.Generator, roots: ArrayLike, headings: ArrayLike, widths: ArrayLike, *, forks: int
) -> list[Stroke]:
    """Vessels that fork as they run outwards from their roots (N, 2) -> strokes, all of one generation at a time."""
    strokes: list[Stroke] = []
    start, heading, width = (np.array(each, float) for each in (roots, headings, widths))
    run = 0.1 * rng.uniform(0.8, 1.2, len(width))
    for _ in range(forks + 1):
        bend = rng.normal(0, 0.2, len(width))
        middle = start + 0.5 * run[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
        end = middle + 0.5 * run[:, None] * np.stack([np.cos(heading + bend), np.sin(heading + bend)], 1)
        paths = np.stack([start, middle, end], 1)
        strokes += zip(paths, width.tolist(), np.clip(width / 0.014, 0.2, 1).tolist(), strict=True)
        turn = rng.uniform(0.2, 0.42, len(width)) * rng.choice([-1.0, 1.0], len(width))
        heading = np.concatenate([heading + bend + 0.6 * turn, heading + bend - turn])
        start, run = np.concatenate([end, end]), np.concatenate([run, run]) * rng.uniform(0.74, 0.95, 2 * len(width))
        width = np.concatenate([0.86 * width, 0.66 * width])
    return strokes


def tone(beam: Map, sheet: Sheet, rng: np.random.Generator) -> Map:
    """Thickness along the beam -> grey: scatter, the processing's edge boost, and a film's S-shaped response."""
    lit = np.clip(beam, 0, 2) / 2
    crisp = lit + 0.45 * (lit - sheet.blur(lit, 0.035)) - 0.18 * (sheet.blur(lit, 0.12) - 0.5)
    for grain, strength in ((0.012, 0.006), (0.05, 0.012), (0.15, 0.02)):
        crisp += strength * (sheet.clouds(rng, grain=grain) - 0.5)
    return np.clip(1.04 / (1 + np.exp(-(crisp - 0.34) * 6.4)) - 0.06, 0, 1).astype(np.float32)


def expose(film: Map, *, rows: int, rng: np.random.Generator) -> Map:
    """Enlarge a drawing to the detector's rows and add its noise, which is strongest where few quanta arrive."""
    size = (round(rows * film.shape[1] / film.shape[0]), rows)
    large = np.asarray(Image.fromarray(film).resize(size, Image.Resampling.BICUBIC), np.float32)
    speckle = rng.standard_normal(large.shape, dtype=np.float32)
    return np.clip(large + speckle * (0.012 * (0.35 + 0.65 * large)), 0, 1)


def letter(film: Map, text: str, *, at: Point, size: float) -> Map:
    """A lead marker with a shade around it: its middle as fractions of the film, `size` of the film's height."""
    height, width = film.shape
    page = Image.fromarray(np.rint(film * 255).astype(np.uint8))
    place, font = (at[0] * width, at[1] * height), ImageFont.load_default(size=size * height)
    ImageDraw.Draw(page).text(place, text, fill=247, font=font, anchor="mm", stroke_width=2, stroke_fill=30)
    return np.asarray(page, np.float32) / 255


def collimate(film: Map, *, margins: tuple[float, float, float, float]) -> Map:
    """Blacken what the shutters covered: left, top, right, bottom margins in fractions of the film."""
    height, width = film.shape
    left, top, right, bottom = np.rint(np.array(margins) * (width, height, width, height)).astype(int)
    shut, open_field = 0.02 * film, np.s_[top : height - bottom, left : width - right]
    shut[open_field] = film[open_field]
    return shut
