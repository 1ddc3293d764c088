"""A thorax from the front, drawn the way X-rays see it: one sum of thickness along the beam.

Soft tissue, less the air in the lungs, plus vessels and bone. Disease changes the layers before they are summed (see
phantom_findings), so that a consolidation swallows its vessels and a pneumothorax has none. Nothing here is a patient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from worker.demo.canvas import Map, Point, Points, Sheet, Stroke, bone, branches, curve, mirrored, places, ribbon, tone

# Outlines of one half or one piece; widths that differ from person to person are in units of it.
TRACHEA = places("0,-.6 .002,-.1 -.006,.15 -.012,.33")
ARM = places(".62,-.03 .8,.05 .92,.4 1,1 .82,1 .74,.5 .62,.25")
RIB_BACK = places(".05,.08 .3,-.12 .62,.06 .88,.45 .99,1")  # x in half cages, y in drops from spine to flank
CLAVICLE = places(".05,.125 .16,.1 .3,.05 .45,-.015 .6,-.04")
HUMERUS = places(".69,.05 .75,.2 .82,.5 .88,.9")
BLADE = places(".47,-.03 .58,-.06 .65,.04 .61,.14 .57,.3 .515,.47 .495,.45 .47,.2")
VERTEBRA = places("-1,-.036 0,-.032 1,-.036 .88,0 1,.036 0,.032 -1,.036 -.88,0")  # x in halves of its width
SPINOUS_PROCESS = places("-.007,.02 .007,.02 .01,.065 0,.078 -.01,.065")
PEDICLE = places(".03,-.025 .038,-.012 .03,.001 .022,-.012")
GUT = places("-.04,0 0,-.03 .04,0 0,.025")
ARTERY_RIGHT = places("-.05,.4 -.11,.44 -.145,.51 -.155,.6 -.16,.68")
ARTERY_LEFT = places(".05,.4 .11,.385 .155,.43 .175,.51 .18,.6")
TURN = np.linspace(0, 2 * np.pi, 25)


@dataclass(frozen=True)
class Build:
    """One person's proportions."""

    cage: float = 0.52  # half the width of the rib cage
    heart_right: float = 0.115  # how far the heart reaches to either side
    heart_left: float = 0.29
    dome_rise: float = 0.13  # how high a dome of the diaphragm stands above its outer corner
    right_dome: float = 1.0
    left_dome: float = 1.035
    aeration: float = 1.0  # air in the lungs, 1 = a full breath of a healthy person
    vessels: float = 1.0  # how strongly the vessels show
    breasts: float = 0.0
    girth: float = 1.0  # soft tissue around the cage

    def wall(self, y: ArrayLike) -> Points:
        """Half the width of the rib cage's inside at height y."""
        t = np.clip((np.asarray(y, float) + 0.06) / 0.85, 0, 1)
        return self.cage * (0.34 + 0.66 * (1 - (1 - t) ** 3.4)) - 0.04 * np.clip(np.asarray(y, float) - 0.95, 0, 1)


@dataclass
class Thorax:
    """The layers of a frontal film before they are summed; findings change them in place."""

    sheet: Sheet
    build: Build
    rng: np.random.Generator
    film_rng: np.random.Generator = field(init=False)  # the film's own unevenness, whatever is drawn
    soft: Map = field(init=False)  # soft tissue in the beam, about 0..1.3
    air: Map = field(init=False)  # share of it that is lung, 0..1
    lungs: dict[str, Map] = field(init=False)  # "left", "right" -> mask
    vessels: Map = field(init=False)
    heart: Map = field(init=False)
    bones: Map = field(init=False)
    gas: Map = field(init=False)  # air in the stomach and gut
    extra: Map = field(init=False)  # what lies in front: breasts, tubes, and what findings add

    def __post_init__(self) -> None:
        (self.film_rng,) = self.rng.spawn(1)
        self.lungs = {side: self.sheet.fill(self.lung_outline(side), soft=0.004) for side in ("left", "right")}
        self.soft = _soft_tissue(self)
        self.heart = _mediastinum(self)
        self.air = _air(self)
        self.vessels = _vessels(self)
        self.bones = _bones(self)
        self.gas = _stomach(self)
        self.extra = _breasts(self)

    @property
    def lung(self) -> Map:
        return np.maximum(self.lungs["left"], self.lungs["right"])

    @cached_property
    def wall(self) -> Map:
        """Half the width of the rib cage at every pixel's height."""
        return self.build.wall(self.sheet.grid[1]).astype(np.float32)

    def dome(self, side: str) -> float:
        return self.build.left_dome if side == "left" else self.build.right_dome

    def lung_outline(self, side: str) -> Points:
        build, top = self.build, self.dome(side)
        floor = top + build.dome_rise
        y = np.linspace(floor - 0.03, 0.03, 24)
        wall = np.stack([build.wall(y), y], 1)
        c = build.cage
        apex = curve([tuple(wall[-1]), (0.38 * c, -0.01), (0.22 * c, 0.025), (0.14 * c, 0.12), (0.12 * c, 0.6)])
        rise = build.dome_rise
        base = curve([
            (0.12 * c, top + 0.35 * rise), (0.3 * c, top + 0.08 * rise), (0.48 * c, top), (0.7 * c, top + 0.22 * rise),
            (0.87 * c, top + 0.62 * rise), (0.965 * c, floor), tuple(wall[0]),
        ])  # fmt: skip
        return mirrored(np.concatenate([wall, apex, base]), sign_of(side))

    def render(self) -> Map:
        """Sum the layers along the beam and give the grey a film would show, in [0, 1], white = dense."""
        beam = self.soft * (1 - 0.68 * self.air - self.gas) + 0.17 * self.vessels * self.air + self.bones + self.extra
        return tone(beam, self.sheet, self.film_rng)


def sign_of(side: str) -> float:
    """+1 for the patient's left, which is on the right of the picture."""
    return 1.0 if side == "left" else -1.0


def _soft_tissue(thorax: Thorax) -> Map:
    sheet, build = thorax.sheet, thorax.build
    g = build.girth
    flank = build.cage + 0.09 * g
    trunk = [(0.13, -0.6), (0.135, -0.28), (0.2, -0.17), (0.42, -0.1), (0.62, -0.03), (0.7, 0.12), (0.66, 0.3),
             (flank + 0.04, 0.42), (flank, 0.6), (flank, 1.0), (flank + 0.01, 1.6)]  # fmt: skip
    arm, half = curve(ARM), curve(trunk)
    body = np.concatenate([half, mirrored(half, -1)[::-1]])
    torso = sheet.fill(body, soft=0.004)
    core = sheet.blur(torso, 0.05)
    arms = sheet.fill(arm, mirrored(arm, -1), soft=0.012)
    x, y = sheet.grid
    depth = 0.62 + 0.5 / (1 + np.exp(-(y - 0.95) / 0.07)) + 0.1 / (1 + np.exp(-y / 0.1))
    middle = 0.34 * np.exp(-((x / 0.24) ** 2))
    soft = torso * (0.25 + 0.75 * core**1.6) * (depth + middle) * (0.85 + 0.15 * g) + 0.45 * arms * (1 - torso)
    return np.asarray(soft, np.float32)


def _breasts(thorax: Thorax) -> Map:
    x, y = thorax.sheet.grid
    breasts = np.zeros_like(x)
    if not thorax.build.breasts:
        return breasts
    for sign in (-1, 1):
        away = ((x - sign * 0.29) / 0.23) ** 2 + ((y - 0.72) / 0.29) ** 2
        breasts += np.clip(1 - away, 0, 1) ** 0.45 * (0.2 + 0.8 * np.clip((y - 0.55) / 0.35, 0, 1))
    return thorax.build.breasts * 0.1 * breasts


def _mediastinum(thorax: Thorax) -> Map:
    sheet, build = thorax.sheet, thorax.build
    hr, hl, base = build.heart_right, build.heart_left, build.left_dome
    left = curve([(0.055, -0.4), (0.06, -0.05), (0.072, 0.12), (0.1, 0.22), (0.108, 0.28), (0.088, 0.345),
                  (0.098, 0.41), (0.3 * hl + 0.04, 0.49), (0.66 * hl + 0.01, 0.6), (0.93 * hl, 0.75),
                  (hl, 0.88), (0.93 * hl, 0.98), (0.6 * hl, base + 0.07), (0.06, base + 0.12)])  # fmt: skip
    right = curve([(-0.05, base + 0.12), (-0.75 * hr, base), (-hr, 0.84), (-0.98 * hr, 0.7), (-0.7 * hr, 0.54),
                   (-0.07, 0.42), (-0.072, 0.2), (-0.065, 0.0), (-0.055, -0.4)])  # fmt: skip
    mask = sheet.fill(np.concatenate([left, right]), soft=0.005)
    core = sheet.blur(mask, 0.05)
    return np.clip(mask * (0.62 + 0.5 * core), 0, 1).astype(np.float32)


def _air(thorax: Thorax) -> Map:
    sheet, build = thorax.sheet, thorax.build
    lung = thorax.lung
    x, y = sheet.grid
    depth = lung * (0.55 + 0.45 * sheet.blur(lung, 0.04))
    # The lung goes on behind the dome, down to a sulcus that the frontal film shows as a fading shade.
    behind = np.clip((thorax.wall - np.abs(x)) / 0.05, 0, 1) * np.exp(-np.clip(y - 0.95, 0, 9) / 0.08) * (y > 0.85)
    depth = np.maximum(depth, 0.28 * behind * (1 - sheet.blur(lung, 0.002)))
    tubes = [(curve(TRACHEA), 0.046, 0.8)]
    for sign, reach in ((-1.0, 0.11), (1.0, 0.14)):
        bronchus = curve([(-0.012, 0.31), (sign * 0.05 - 0.01, 0.385), (sign * reach, 0.45)])
        tubes.append((bronchus, 0.03, 0.55))
    airway = sheet.lines(tubes, soft=0.008)
    heart = thorax.heart
    air = depth * (1 - 0.97 * heart) * (0.8 + 0.2 * np.clip(y / 0.3, 0, 1))
    return np.asarray(np.clip(build.aeration * air + 0.2 * airway, 0, 1.15), np.float32)


def _stomach(thorax: Thorax) -> Map:
    """The bubble under the left dome: its roof follows the dome, its floor is a level of fluid."""
    sheet, rng, dome = thorax.sheet, thorax.rng, thorax.build.left_dome
    middle, half = rng.uniform(0.17, 0.22), rng.uniform(0.06, 0.1)
    floor = dome + rng.uniform(0.13, 0.17)
    bubble = curve([(middle - half, floor), (middle - 0.9 * half, dome + 0.07), (middle, dome + 0.035),
                    (middle + half, dome + 0.075), (middle + 1.15 * half, floor)])  # fmt: skip
    gut = [curve(place + GUT, closed=True) for place in rng.uniform((0.2, dome + 0.2), (0.42, dome + 0.34), (3, 2))]
    return 0.17 * sheet.fill(bubble, soft=0.01) + 0.07 * sheet.fill(*gut, soft=0.016)


def _vessels(thorax: Thorax) -> Map:
    sheet, build, rng = thorax.sheet, thorax.build, thorax.rng
    strokes: list[Stroke] = []
    for side in ("left", "right"):
        sign = sign_of(side)
        angle = np.linspace(-1.5, 1.5, 15) + rng.normal(0, 0.08, 15)
        hilum = np.array([sign * 0.08, 0.42 if side == "left" else 0.46])
        roots = hilum + rng.normal(0, 0.014, (15, 2)) + np.stack([0.01 * np.abs(angle), 0.09 * angle], 1)
        widths = rng.uniform(0.009, 0.017, 15) * np.where(angle > 0, 1.2, 0.8)
        heading = angle if sign > 0 else np.pi - angle
        strokes += branches(rng, roots, heading, widths, length=0.1, forks=6)
    tree = sheet.lines(strokes, soft=0.0014)
    arteries = [_tapered(curve(ARTERY_RIGHT), 0.04, 0.012), _tapered(curve(ARTERY_LEFT), 0.044, 0.012)]
    tree = np.maximum(tree, 0.75 * sheet.fill(*arteries, soft=0.005))
    x, y = sheet.grid
    # Vessels thin out towards the wall, and in an upright person the lower half carries more blood.
    reach = np.clip((thorax.wall - np.abs(x)) / 0.12, 0, 1) * (0.55 + 0.45 * np.clip(y / 0.6, 0, 1))
    mesh = 1 - 2.5 * np.abs(sheet.clouds(rng, grain=0.013) - 0.5) + 0.8 * (sheet.clouds(rng, grain=0.03) - 0.5)
    hila = np.exp(-(((np.abs(x) - 0.13) / 0.05) ** 2 + ((y - 0.47) / 0.1) ** 2))
    markings = tree * reach + 0.16 * mesh * (0.4 + 0.6 * reach) + 0.4 * hila
    return np.asarray(build.vessels * markings, np.float32)


def rib_paths(build: Build, number: int, sign: float) -> tuple[Points, Points]:
    """Centre lines of one rib (1 is the highest): from the spine to the flank, and from there to the front."""
    top = 0.098 * number - 0.133
    flank = top + 0.1 + 0.016 * number
    low = flank + 0.07 + 0.014 * number
    out, out_low = float(build.wall(flank)), float(build.wall(low))
    # Horizontal places in shares of the cage's width, so that every build's ribs reach its wall.
    back = RIB_BACK * (out, 0.1 + 0.016 * number) + (0, top)
    front = [(0.99 * out, flank), (0.955 * out_low, low - 0.025), (0.78 * out, low + 0.05)]
    end = (0.5 * out, low + 0.115 + 0.006 * number)
    return mirrored(curve(back), sign), mirrored(curve([*front, end]), sign)


def _bones(thorax: Thorax) -> Map:
    sheet, build = thorax.sheet, thorax.build
    back, front = [], []
    for sign in (-1.0, 1.0):
        for number in range(1, 11):
            behind, before = rib_paths(build, number, sign)
            shift = (0.0, thorax.rng.normal(0, 0.004))
            back.append(ribbon(behind + shift, _taper(behind, [(0, 0.022), (0.3, 0.034), (0.9, 0.031), (1, 0.016)])))
            if number <= 7:
                front.append(ribbon(before + shift, np.linspace(0.03, 0.04, len(before))))
    x, y = sheet.grid
    cartilage = np.clip((np.abs(x) / build.cage - 0.42) / 0.3, 0, 1)  # towards the breastbone ribs are not bone
    ribs = 0.11 * bone(sheet, back, cortex=0.009) * (1 - 0.5 * thorax.heart)
    ribs += 0.085 * cartilage * bone(sheet, front, cortex=0.011)
    ribs *= 0.3 + 0.7 * np.clip(np.abs(x) / 0.12, 0, 1)
    ribs *= 1 - 0.55 * np.clip((y - 0.98) / 0.08, 0, 1)  # little of a rib comes through the liver
    return ribs + _girdle(sheet) + _spine(sheet) * (1 - 0.55 * thorax.heart)


def _taper(path: Points, widths: Sequence[Point]) -> Points:
    """Widths along a path from (share of the way, width) pairs."""
    shares, values = zip(*widths, strict=True)
    return np.asarray(np.interp(np.linspace(0, 1, len(path)), shares, values))


def _tapered(path: Points, start: float, end: float) -> Points:
    return ribbon(path, np.linspace(start, end, len(path)))


def _girdle(sheet: Sheet) -> Map:
    """Clavicles, shoulder blades and arm bones."""
    clavicle, humerus = curve(CLAVICLE), curve(HUMERUS)
    collar = ribbon(clavicle, _taper(clavicle, [(0, 0.024), (0.03, 0.05), (0.15, 0.044), (0.6, 0.034), (1, 0.026)]))
    arm = ribbon(humerus, _taper(humerus, [(0, 0.1), (0.1, 0.12), (0.3, 0.07), (1, 0.06)]))
    blade = curve(BLADE, closed=True)
    long = [mirrored(each, sign) for each in (collar, arm) for sign in (-1.0, 1.0)]
    flat = [mirrored(blade, sign) for sign in (-1.0, 1.0)]
    return 0.11 * bone(sheet, long, cortex=0.012) + 0.045 * bone(sheet, flat, cortex=0.012)


def _spine(sheet: Sheet) -> Map:
    blocks, arches = [], []
    for level in range(-4, 14):
        at = (0, 0.093 * level - 0.06)
        blocks.append(curve(VERTEBRA * (0.042 + 0.0012 * level, 1) + at, closed=True))
        arches.append(curve(SPINOUS_PROCESS + at, closed=True))
        arches += [curve(mirrored(PEDICLE, sign) + at, closed=True) for sign in (-1.0, 1.0)]
    return 0.075 * bone(sheet, blocks, cortex=0.01) + 0.045 * bone(sheet, arches, cortex=0.008)


def bedside_wires(thorax: Thorax) -> None:
    """Objects on a patient in bed: electrodes and their wires, and now and then a central line."""
    sheet, rng = thorax.sheet, thorax.rng
    strokes: list[Stroke] = []
    for sign, height in ((-1.0, 0.18), (1.0, 0.2), (1.0, 0.86)):
        x, y = sign * rng.uniform(0.26, 0.42), height + rng.normal(0, 0.05)
        wire = curve(
            [
                (x, y),
                (x + sign * 0.1, y + rng.normal(0, 0.12)),
                (sign * rng.uniform(0.1, 0.5), y + 0.4),
                (sign * 0.62, 1.4),
            ]
        )
        disc = np.array([(x, y)]) + 0.017 * np.stack([np.cos(TURN), np.sin(TURN)], 1)
        strokes += [(wire, 0.0055, 0.5), (disc, 0.008, 1.0), (np.array([(x - 0.006, y), (x + 0.006, y)]), 0.012, 1.0)]
    if rng.random() < 0.5:
        line = curve([(-0.5, 0.02), (-0.3, 0.06), (-0.12, 0.12), (-0.06, 0.25), (-0.065, 0.42)])
        strokes.append((line, 0.007, 0.6))
    thorax.extra += 0.3 * sheet.lines(strokes, soft=0.0012)
