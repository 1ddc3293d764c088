"""Films that the view filter must refuse: a thorax from the side and a hand, drawn like the frontal thorax."""

from itertools import pairwise

import numpy as np

from worker.demo.canvas import Map, Sheet, branches, curve, places, ribbon, ring, tone
from worker.demo.thorax import VERTEBRA

# A thorax from its left side: breastbone on the left of the picture, spine on the right.
TRUNK = curve(places("-.12,-.6 -.14,-.2 -.4,.12 -.52,.45 -.55,.9 -.52,1.6 .5,1.6 .47,1 .52,.5 .47,.1 .3,-.15 .2,-.6"))
LUNG = curve(
    places("-.12,.06 -.32,.22 -.42,.5 -.45,.86 -.38,.92 -.2,.9 0,.97 .2,1.07 .38,1.22 .42,.95 .43,.5 .33,.12 .12,-.02"),
    closed=True,
)
HEART = curve(places("-.02,.44 -.2,.5 -.33,.68 -.36,.9 -.2,1 .06,1 .12,.72"), closed=True)
TRACHEA = curve(places("-.02,-.4 0,.1 .04,.4"))
BREASTBONE = curve(places("-.2,.1 -.34,.26 -.45,.5 -.485,.75"))
BLADE = curve(places(".3,.02 .42,.25 .47,.45"))
SIDE_RIB = curve(places("0,0 .04,.06 -.12,.2 -.39,.34 -.58,.36"))  # from its vertebra

# A hand: the joints of each ray from the wrist to the tip; one bone between each two.
PALM = curve(places("-.16,1.6 -.17,.9 -.24,.66 -.17,.36 0,.3 .16,.36 .27,.5 .2,.9 .17,1.6"))
RAYS = (
    places("-.13,.78 -.28,.56 -.39,.43 -.47,.34"),
    places("-.07,.72 -.13,.37 -.16,.17 -.18,.04 -.2,-.05"),
    places("0,.71 0,.34 0,.12 0,-.02 0,-.12"),
    places(".06,.72 .115,.37 .14,.17 .16,.04 .17,-.05"),
    places(".11,.75 .21,.43 .26,.28 .29,.18 .31,.11"),
)
WRIST = places("-.13,.84 -.06,.79 0,.78 .07,.8 -.08,.88 0,.88 .075,.88")
FOREARM = (places("-.075,.96 -.083,1.7"), places(".1,.96 .11,1.7"))


def lateral(sheet: Sheet, rng: np.random.Generator) -> Map:
    """A left lateral film. float32 (H, W) in [0, 1], white = dense."""
    _, y = sheet.grid
    body, lungs = sheet.fill(TRUNK, soft=0.005), sheet.fill(LUNG, soft=0.005)
    heart = sheet.fill(HEART, soft=0.014)
    thick = 0.8 + 0.4 / (1 + np.exp((1 - y) / 0.08)) + 0.45 * np.exp(-(((y + 0.02) / 0.2) ** 2))  # belly, shoulders
    soft = body * (0.3 + 0.7 * sheet.blur(body, 0.06)) * thick
    airway = sheet.lines([(TRACHEA, 0.06, 1.0)], soft=0.008)
    air = lungs * (0.6 + 0.4 * sheet.blur(lungs, 0.05)) * (1 - 0.75 * heart) + 0.2 * airway
    roots, widths = rng.normal((0.02, 0.47), 0.02, (26, 2)), rng.uniform(0.007, 0.016, 26)
    tree = sheet.lines(branches(rng, roots, rng.uniform(0, 2 * np.pi, 26), widths, forks=5), soft=0.002)
    markings = 0.1 * (tree + sheet.blob((0.02, 0.47), 0.09)) * lungs
    return tone(soft * (1 - 0.66 * air) + markings + _side_bones(sheet), sheet, rng)


def _side_bones(sheet: Sheet) -> Map:
    height = 0.02 + 0.092 * np.arange(-3, 15)
    bow = 0.1 + 0.28 * np.sin(np.pi * np.clip((height + 0.45) / 1.9, 0, 1)) ** 0.7
    spine = [VERTEBRA * (0.05, 1) + at for at in zip(bow, height, strict=True)]
    ribbons = [
        ribbon(SIDE_RIB + at, 0.026)
        for x, y in zip(bow[3:14], height[3:14], strict=True)
        for at in ((x + 0.06, y), (x + 0.03, y + 0.012))
    ]  # near and far
    x, y = sheet.grid
    fade = np.clip((x + 0.3) / 0.35, 0, 1) * (1 - np.clip((y - 0.95) / 0.1, 0, 1))  # in front ribs are cartilage
    flat = sheet.bone([ribbon(BREASTBONE, 0.03), ribbon(BLADE, 0.02)], cortex=0.01)
    ribs = fade * sheet.bone(ribbons, cortex=0.008)
    return np.asarray(0.08 * sheet.bone(spine, cortex=0.012) + 0.1 * flat + 0.06 * ribs)


def hand(sheet: Sheet, rng: np.random.Generator) -> Map:
    """A hand, back to front. float32 (H, W) in [0, 1], white = dense."""
    joints = [pair for ray in (*RAYS, *FOREARM) for pair in pairwise(ray)]
    bones = [
        ribbon(np.linspace(0.96 * a + 0.04 * b, 0.04 * a + 0.96 * b, 24), (0.06, 0.04, 0.035, 0.04, 0.06))
        for a, b in joints
    ] + [ring(place, 0.042) for place in WRIST]
    skin = sheet.fill(PALM, *(ribbon(curve(ray), (0.13, 0.13, 0.12, 0.1, 0.07)) for ray in RAYS), soft=0.006)
    marrow = 0.85 + 0.3 * sheet.clouds(rng, grain=0.009)
    soft = skin * (0.12 + 0.34 * sheet.blur(skin, 0.035))
    return tone(soft + 0.42 * sheet.bone(bones, cortex=0.011) * marrow, sheet, rng)
