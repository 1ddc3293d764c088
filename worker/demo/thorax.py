"""A thorax from the front, drawn the way X-rays see it: one sum of thickness along the beam.

Soft tissue, less the air in the lungs, plus vessels and bone. Disease changes the layers before they are summed (see
findings.py), so that a consolidation swallows its vessels and a pneumothorax has none. Nothing here is a patient.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from worker.demo.canvas import Map, Points, Sheet, Stroke, both, branches, curve, mirrored, places, ribbon, ring, tone

# Outlines of one half or one piece; widths that differ from person to person are in units of it.
LUNG_APEX = places(".38,-.01 .22,.025 .14,.12 .12,.6")  # x in half cages
LUNG_BASE = places(".12,.35 .3,.08 .48,0 .7,.22 .87,.62 .965,1")  # x in half cages, y in rises of the dome
MEDIASTINUM_TOP = places(".055,-.4 .06,-.05 .072,.12 .1,.22 .108,.28 .088,.345 .098,.41")  # aortic knob, artery
HEART_LEFT = places(".66,.6 .93,.75 1,.88 .93,.98")  # x in reaches of the heart to that side
HEART_RIGHT = places(".75,1 1,.84 .98,.7 .7,.54")
MEDIASTINUM_RIGHT = places("-.07,.42 -.072,.2 -.065,0 -.055,-.4")
TRACHEA = curve(places("0,-.6 .002,-.1 -.006,.15 -.012,.33"))
TRUNK = places(".13,-.6 .135,-.28 .2,-.17 .42,-.1 .62,-.03 .7,.12 .66,.3")
ARM = curve(places(".62,-.03 .8,.05 .92,.4 1,1 .82,1 .74,.5 .62,.25"))
RIB_BACK = curve(places(".05,.08 .3,-.12 .62,.06 .88,.45 .99,1"))  # x in half cages, y in drops from spine to flank
CLAVICLE = curve(places(".05,.125 .16,.1 .3,.05 .45,-.015 .6,-.04"))
HUMERUS = curve(places(".69,.05 .75,.2 .82,.5 .88,.9"))
BLADE = curve(places(".47,-.03 .58,-.06 .65,.04 .61,.14 .57,.3 .515,.47 .495,.45 .47,.2"), closed=True)
VERTEBRA = curve(
    places("-1,-.036 0,-.032 1,-.036 .88,0 1,.036 0,.032 -1,.036 -.88,0"), closed=True
)  # x in halves of its width
SPINOUS_PROCESS = curve(places("-.007,.02 .007,.02 .01,.065 0,.078 -.01,.065"), closed=True)
PEDICLE = curve(places(".03,-.025 .038,-.012 .03,.001 .022,-.012"), closed=True)
STOMACH = curve(places("-1,1 -.9,.45 0,.2 1,.45 1.15,1"))  # x in halves of its width, y in its height below the dome
GUT = curve(places("-.04,0 0,-.03 .04,0 0,.025"), closed=True)
ARTERY_RIGHT = curve(places("-.05,.4 -.11,.44 -.145,.51 -.155,.6 -.16,.68"))
ARTERY_LEFT = curve(places(".05,.4 .11,.385 .155,.43 .175,.51 .18,.6"))
CENTRAL_LINE = curve(places("-.5,.02 -.3,.06 -.12,.12 -.06,.25 -.065,.42"))


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

    def dome(self, side: str) -> float:
        return self.left_dome if side == "left" else self.right_dome


class Thorax:
    """The layers of a frontal film before they are summed; findings change them in place."""

    def __init__(self, sheet: Sheet, build: Build, rng: np.random.Generator) -> None:
        self.sheet, self.build, self.rng = sheet, build, rng
        (self.film_rng,) = rng.spawn(1)  # the film's own unevenness, whatever is drawn
        self.lungs = {side: sheet.fill(self.lung_outline(side), soft=0.004) for side in ("left", "right")}
        self.lung = np.maximum(self.lungs["left"], self.lungs["right"])
        self.soft = self._soft_tissue()  # soft tissue in the beam, about 0..1.3
        self.heart = self._mediastinum()
        self.air = self._air()  # share of the soft tissue that is lung, 0..1
        self.vessels = self._vessels()
        self.bones = self._ribs() + self._girdle() + self._spine()
        self.gas = self._gut()  # air in the stomach and gut
        self.extra = self._breasts()  # what lies in front: breasts, tubes, and what findings add

    @cached_property
    def wall(self) -> Map:
        """Half the width of the rib cage at every pixel's height."""
        return self.build.wall(self.sheet.grid[1]).astype(np.float32)

    def lung_outline(self, side: str) -> Points:
        build, floor = self.build, self.build.dome(side) + self.build.dome_rise
        y = np.linspace(floor - 0.03, 0.03, 24)
        wall = np.stack([build.wall(y), y], 1)
        apex = curve([wall[-1], *LUNG_APEX * (build.cage, 1)])
        base = curve([*LUNG_BASE * (build.cage, build.dome_rise) + (0, build.dome(side)), wall[0]])
        return mirrored(np.concatenate([wall, apex, base]), sign_of(side))

    def render(self) -> Map:
        """Sum the layers along the beam and give the grey a film would show, in [0, 1], white = dense."""
        beam = self.soft * (1 - 0.68 * self.air - self.gas) + 0.17 * self.vessels * self.air + self.bones + self.extra
        return tone(beam, self.sheet, self.film_rng)

    def _soft_tissue(self) -> Map:
        sheet, girth = self.sheet, self.build.girth
        flank = self.build.cage + 0.09 * girth
        left, right = both(curve([*TRUNK, (flank + 0.04, 0.42), (flank, 0.6), (flank, 1.0), (flank + 0.01, 1.6)]))
        torso = sheet.fill(np.concatenate([left, right[::-1]]), soft=0.004)
        arms = sheet.fill(*both(ARM), soft=0.012)
        x, y = sheet.grid
        depth = 0.62 + 0.5 / (1 + np.exp(-(y - 0.95) / 0.07)) + 0.1 / (1 + np.exp(-y / 0.1))
        middle = 0.34 * np.exp(-((x / 0.24) ** 2))
        body = torso * (0.25 + 0.75 * sheet.blur(torso, 0.05) ** 1.6) * (depth + middle)
        return np.asarray(body * (0.85 + 0.15 * girth) + 0.45 * arms * (1 - torso), np.float32)

    def _breasts(self) -> Map:
        x, y = self.sheet.grid
        away = ((np.abs(x) - 0.29) / 0.23) ** 2 + ((y - 0.72) / 0.29) ** 2
        shape = np.clip(1 - away, 0, 1) ** 0.45 * (0.2 + 0.8 * np.clip((y - 0.55) / 0.35, 0, 1))
        return np.asarray(self.build.breasts * 0.1 * shape, np.float32)

    def _mediastinum(self) -> Map:
        build, base = self.build, self.build.left_dome
        reach = build.heart_left
        waist, apex = (0.3 * reach + 0.04, 0.49), (0.6 * reach, base + 0.07)
        left = curve([*MEDIASTINUM_TOP, waist, *HEART_LEFT * (reach, 1), apex, (0.06, base + 0.12)])
        right = curve([(-0.05, base + 0.12), *HEART_RIGHT * (-build.heart_right, 1), *MEDIASTINUM_RIGHT])
        mask = self.sheet.fill(np.concatenate([left, right]), soft=0.005)
        return np.clip(mask * (0.62 + 0.5 * self.sheet.blur(mask, 0.05)), 0, 1).astype(np.float32)

    def _air(self) -> Map:
        sheet, lung = self.sheet, self.lung
        x, y = sheet.grid
        depth = lung * (0.55 + 0.45 * sheet.blur(lung, 0.04))
        # The lung goes on behind the dome, down to a sulcus that the frontal film shows as a fading shade.
        behind = np.clip((self.wall - np.abs(x)) / 0.05, 0, 1) * np.exp(-np.clip(y - 0.95, 0, 9) / 0.08) * (y > 0.85)
        depth = np.maximum(depth, 0.28 * behind * (1 - sheet.blur(lung, 0.002)))
        bronchi = [curve([(-0.012, 0.31), (0.5 * end - 0.01, 0.385), (end, 0.45)]) for end in (-0.11, 0.14)]
        tubes = [(TRACHEA, 0.046, 0.8), *((bronchus, 0.03, 0.55) for bronchus in bronchi)]
        air = depth * (1 - 0.97 * self.heart) * (0.8 + 0.2 * np.clip(y / 0.3, 0, 1))
        return np.asarray(
            np.clip(self.build.aeration * air + 0.2 * sheet.lines(tubes, soft=0.008), 0, 1.15), np.float32
        )

    def _gut(self) -> Map:
        """The bubble under the left dome, whose floor is a level of fluid, and some air in the gut."""
        rng, dome = self.rng, self.build.left_dome
        middle, half, deep = rng.uniform((0.17, 0.06, 0.13), (0.22, 0.1, 0.17))
        bubble = STOMACH * (half, deep) + (middle, dome)
        gut = [place + GUT for place in rng.uniform((0.2, dome + 0.2), (0.42, dome + 0.34), (3, 2))]
        return 0.17 * self.sheet.fill(bubble, soft=0.01) + 0.07 * self.sheet.fill(*gut, soft=0.016)

    def _vessels(self) -> Map:
        sheet, rng = self.sheet, self.rng
        strokes: list[Stroke] = []
        for sign, height in ((1.0, 0.42), (-1.0, 0.46)):
            angle = np.linspace(-1.5, 1.5, 15) + rng.normal(0, 0.08, 15)
            roots = rng.normal(0, 0.014, (15, 2)) + np.stack(
                [sign * 0.08 + 0.01 * np.abs(angle), height + 0.09 * angle], 1
            )
            widths = rng.uniform(0.009, 0.017, 15) * np.where(angle > 0, 1.2, 0.8)
            strokes += branches(rng, roots, angle if sign > 0 else np.pi - angle, widths, forks=6)
        arteries = [ribbon(path, (0.042, 0.012)) for path in (ARTERY_RIGHT, ARTERY_LEFT)]
        tree = np.maximum(sheet.lines(strokes, soft=0.0014), 0.75 * sheet.fill(*arteries, soft=0.005))
        x, y = sheet.grid
        # Vessels thin out towards the wall, and in an upright person the lower half carries more blood.
        reach = np.clip((self.wall - np.abs(x)) / 0.12, 0, 1) * (0.55 + 0.45 * np.clip(y / 0.6, 0, 1))
        mesh = 1 - 2.5 * np.abs(sheet.clouds(rng, grain=0.013) - 0.5) + 0.8 * (sheet.clouds(rng, grain=0.03) - 0.5)
        hila = np.exp(-(((np.abs(x) - 0.13) / 0.05) ** 2 + ((y - 0.47) / 0.1) ** 2))
        markings = tree * reach + 0.16 * mesh * (0.4 + 0.6 * reach) + 0.4 * hila
        return np.asarray(self.build.vessels * markings, np.float32)

    def _ribs(self) -> Map:
        sheet, build = self.sheet, self.build
        back: list[Points] = []
        front: list[Points] = []
        for number in range(1, 11):  # 1 is the highest
            top, drop = 0.098 * number - 0.133 + self.rng.normal(0, 0.003), 0.1 + 0.016 * number
            flank, low = top + drop, top + drop + 0.07 + 0.014 * number
            out, out_low = float(build.wall(flank)), float(build.wall(low))
            back += both(ribbon(RIB_BACK * (out, drop) + (0, top), (0.022, 0.033, 0.033, 0.032, 0.016)))
            end = (0.5 * out, low + 0.115 + 0.006 * number)
            before = curve([(0.99 * out, flank), (0.955 * out_low, low - 0.025), (0.78 * out, low + 0.05), end])
            front += both(ribbon(before, (0.03, 0.04))) if number <= 7 else ()
        x, y = sheet.grid
        cartilage = np.clip((np.abs(x) / build.cage - 0.42) / 0.3, 0, 1)  # towards the breastbone ribs are not bone
        behind = 0.11 * sheet.bone(back, cortex=0.009) * (1 - 0.5 * self.heart)
        ribs = behind + 0.085 * cartilage * sheet.bone(front, cortex=0.011)
        shown = 0.3 + 0.7 * np.clip(np.abs(x) / 0.12, 0, 1)
        return np.asarray(ribs * shown * (1 - 0.55 * np.clip((y - 0.98) / 0.08, 0, 1)))  # little through the liver

    def _girdle(self) -> Map:
        """Clavicles, shoulder blades and arm bones."""
        collar = ribbon(CLAVICLE, (0.034, 0.045, 0.042, 0.036, 0.03, 0.026))
        arm = ribbon(HUMERUS, (0.1, 0.11, 0.075, 0.066, 0.063, 0.06))
        long = self.sheet.bone([*both(collar), *both(arm)], cortex=0.012)
        return 0.11 * long + 0.045 * self.sheet.bone(both(BLADE), cortex=0.012)

    def _spine(self) -> Map:
        blocks, arches = [], []
        for level in range(-4, 14):
            at = (0, 0.093 * level - 0.06)
            blocks.append(VERTEBRA * (0.042 + 0.0012 * level, 1) + at)
            arches += [each + at for each in (SPINOUS_PROCESS, *both(PEDICLE))]
        spine = 0.075 * self.sheet.bone(blocks, cortex=0.01) + 0.045 * self.sheet.bone(arches, cortex=0.008)
        return np.asarray(spine * (1 - 0.55 * self.heart))


def sign_of(side: str) -> float:
    """+1 for the patient's left, which is on the right of the picture."""
    return 1.0 if side == "left" else -1.0


def bedside_wires(thorax: Thorax) -> None:
    """Objects on a patient in bed: electrodes and their wires, and now and then a central line."""
    rng = thorax.rng
    strokes: list[Stroke] = []
    for sign, height in ((-1.0, 0.18), (1.0, 0.2), (1.0, 0.86)):
        x, y = sign * rng.uniform(0.26, 0.42), height + rng.normal(0, 0.05)
        bends = [(x + sign * 0.1, y + rng.normal(0, 0.12)), (sign * rng.uniform(0.1, 0.5), y + 0.4)]
        strokes += [(curve([(x, y), *bends, (sign * 0.62, 1.4)]), 0.0055, 0.5), (ring((x, y), 0.017), 0.008, 1.0)]
        strokes.append((np.array([(x - 0.006, y), (x + 0.006, y)]), 0.012, 1.0))
    if rng.random() < 0.5:
        strokes.append((CENTRAL_LINE, 0.007, 0.6))
    thorax.extra = thorax.extra + 0.3 * thorax.sheet.lines(strokes, soft=0.0012)
