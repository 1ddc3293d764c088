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


@dataclass(frozen=True)
class Sheet:
    """A drawing surface: maps lung heights to pixels, with the small rotation that real films have."""

    height: int
    width: int
    scale: float  # pixels to one lung height
    centre: Point = (0.0, 0.52)
    tilt_degrees: float = 0.0

    def pixels(self, points: ArrayLike) -> Points:
        """Points (N, 2) in lung heights -> (N, 2) in pixels, x first."""
        angle = np.deg2rad(self.tilt_degrees)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = (np.asarray(points, float) - self.centre) @ turn.T
        pixels: Points = moved * self.scale + (self.width / 2, self.height / 2)
        return pixels

    @cached_property
    def grid(self) -> tuple[Map, Map]:
        """The coordinates x and y, in lung heights, of every pixel."""
        angle = np.deg2rad(self.tilt_degrees)
        across = (np.arange(self.width, dtype=np.float32) - self.width / 2) / self.scale
        down = ((np.arange(self.height, dtype=np.float32) - self.height / 2) / self.scale)[:, None]
        x = across * np.cos(angle) + down * np.sin(angle) + self.centre[0]
        y = down * np.cos(angle) - across * np.sin(angle) + self.centre[1]
        return x.astype(np.float32), y.astype(np.float32)

    def fill(self, *outlines: ArrayLike, soft: float = 0.0) -> Map:
        """Closed outlines -> a mask in [0, 1] whose edge is `soft` wide."""
        page = Image.new("L", (self.width, self.height))
        draw = ImageDraw.Draw(page)
        for outline in outlines:
            draw.polygon(self.pixels(outline).ravel().tolist(), fill=255)
        return self._soften(page, soft * self.scale)

    def lines(self, strokes: Iterable[Stroke], *, soft: float = 0.0) -> Map:
        """Strokes of (points, width, strength in [0, 1]), thin ones first -> a map in [0, 1]."""
        page = Image.new("L", (self.width * 2, self.height * 2))
        draw = ImageDraw.Draw(page)
        ordered = sorted(strokes, key=lambda stroke: stroke[1])
        ends = np.cumsum([len(points) for points, _, _ in ordered])
        paths = np.split(2 * self.pixels(np.concatenate([points for points, _, _ in ordered])), ends[:-1])
        for (_, width, strength), points in zip(ordered, paths, strict=True):
            path = points.ravel().tolist()
            pen = max(1, round(width * self.scale * 2))
            draw.line(path, fill=round(255 * strength), width=pen, joint="curve" if pen > 6 else None)
        return self._soften(page.reduce(2), soft * self.scale)

    def blur(self, image: Map, soft: float) -> Map:
        """Gaussian blur of a map in [0, 1]."""
        return self._soften(Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)), soft * self.scale)

    def clouds(self, rng: np.random.Generator, *, grain: float) -> Map:
        """Smooth noise in [0, 1] with blobs about `grain` across."""
        step = max(1, round(grain * self.scale))
        coarse = rng.integers(0, 256, (self.height // step + 3, self.width // step + 3), dtype=np.uint8)
        page = Image.fromarray(coarse).resize((self.width, self.height), Image.Resampling.BICUBIC)
        return np.asarray(page, np.float32) / 255

    def _soften(self, page: Image.Image, sigma: float) -> Map:
        # A wide blur costs far less on a smaller page, and nobody sees the difference.
        if sigma < 1:
            page = page.filter(ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 4, 2, 1, 2, 1)))
            return np.asarray(page, np.float32) / 255
        shrink = 1 if sigma < 1.5 else 2 if sigma < 6 else 4 if sigma < 20 else 8
        blurred = page.reduce(shrink).filter(ImageFilter.GaussianBlur(sigma / shrink))
        return np.asarray(blurred.resize(page.size, Image.Resampling.BICUBIC), np.float32) / 255


def places(text: str) -> Points:
    """Points (N, 2) from "x,y x,y ...", as outlines are easiest to read."""
    return np.array([[float(number) for number in place.split(",")] for place in text.split()])


def curve(points: ArrayLike, *, closed: bool = False, steps: int = 12) -> Points:
    """A Catmull-Rom spline through the points, (N * steps, 2)."""
    p = np.asarray(points, float)
    ends = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    p = np.concatenate([ends[0], p, ends[1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    spans = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*spans, p[-2:-1]])


def mirrored(points: ArrayLike, sign: float) -> Points:
    """Points drawn for the patient's left (sign 1), turned to the right for sign -1."""
    return np.asarray(points, float) * (sign, 1.0)


def ribbon(path: Points, widths: ArrayLike) -> Points:
    """A band of the given widths along a path -> its closed outline."""
    direction = np.gradient(path, axis=0)
    normal = direction[:, ::-1] * (-1, 1) / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    half = np.broadcast_to(np.asarray(widths, float), len(path))[:, None] / 2
    return np.concatenate([path + normal * half, (path - normal * half)[::-1]])


def branches(
    rng: np.random.Generator, roots: ArrayLike, headings: ArrayLike, widths: ArrayLike, *, length: float, forks: int
) -> list[Stroke]:
    """Vessels that fork as they run outwards from their roots (N, 2) -> strokes, all of one generation at a time."""
    strokes: list[Stroke] = []
    start, heading, width = (np.array(each, float) for each in (roots, headings, widths))
    run = length * rng.uniform(0.8, 1.2, len(width))
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


def bone(sheet: Sheet, outlines: Iterable[ArrayLike], *, cortex: float) -> Map:
    """Filled outlines with the bright rim of a bone, whose shell is denser than its inside."""
    mask = sheet.fill(*outlines, soft=0.0016)
    return mask * (0.4 + 1.3 * (1 - sheet.blur(mask, cortex)))


def tone(beam: Map, sheet: Sheet, rng: np.random.Generator) -> Map:
    """Thickness along the beam -> grey: scatter, the processing's edge boost, and a film's S-shaped response."""
    lit = np.clip(beam, 0, 2) / 2
    haze = sheet.blur(lit, 0.035)
    wide = sheet.blur(lit, 0.12)
    crisp = lit + 0.45 * (lit - haze) - 0.18 * (wide - 0.5)
    crisp += 0.006 * (sheet.clouds(rng, grain=0.012) - 0.5) + 0.012 * (sheet.clouds(rng, grain=0.05) - 0.5)
    crisp += 0.02 * (sheet.clouds(rng, grain=0.15) - 0.5)
    return np.clip(1.04 / (1 + np.exp(-(crisp - 0.34) * 6.4)) - 0.06, 0, 1).astype(np.float32)


def expose(film: Map, *, rows: int, rng: np.random.Generator, grain: float = 0.012) -> Map:
    """Enlarge a drawing to the detector's rows and add its noise, which is strongest where few quanta arrive."""
    height, width = film.shape
    size = (round(rows * width / height), rows)
    large = np.asarray(Image.fromarray(film).resize(size, Image.Resampling.BICUBIC), np.float32)
    speckle = rng.standard_normal(large.shape, dtype=np.float32)
    return np.clip(large + speckle * (grain * (0.35 + 0.65 * large)), 0, 1)


def letter(film: Map, text: str, *, at: Point, size: float) -> Map:
    """A lead marker with a shade around it: its middle as fractions of the film, `size` of the film's height."""
    height, width = film.shape
    font = ImageFont.load_default(size=size * height)
    wide, tall = (round(reach) + 16 for reach in font.getbbox(text)[2:])
    lead, shade = (Image.new("L", (wide, tall)) for _ in range(2))
    ImageDraw.Draw(lead).text((wide / 2, tall / 2), text, fill=247, font=font, anchor="mm")
    ImageDraw.Draw(shade).text((wide / 2, tall / 2), text, fill=200, font=font, anchor="mm", stroke_width=3)
    left, top = round(at[0] * width - wide / 2), round(at[1] * height - tall / 2)
    marked, spot = film.copy(), np.s_[max(top, 0) : top + tall, max(left, 0) : left + wide]
    rows, columns = marked[spot].shape
    shaded = (
        marked[spot] * (1 - np.asarray(shade.filter(ImageFilter.GaussianBlur(2)), np.float32) / 255)[:rows, :columns]
    )
    marked[spot] = np.maximum(shaded, np.asarray(lead, np.float32)[:rows, :columns] / 255)
    return marked


def collimate(film: Map, *, margins: tuple[float, float, float, float]) -> Map:
    """Blacken what the shutters covered: left, top, right, bottom margins in fractions of the film."""
    height, width = film.shape
    left, top, right, bottom = margins
    open_field = np.zeros_like(film)
    rows = slice(round(top * height), round((1 - bottom) * height))
    open_field[rows, round(left * width) : round((1 - right) * width)] = 1
    return film * (0.02 + 0.98 * open_field)
