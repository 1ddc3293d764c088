"""Films that the view filter must refuse: a thorax from the side and a hand, drawn like the frontal thorax."""

import numpy as np

from worker.demo.canvas import Map, Points, Sheet, bone, branches, curve, places, ribbon, tone

# A thorax from its left side: breastbone on the left of the picture, spine on the right.
TRUNK = places("-.12,-.6 -.14,-.2 -.4,.12 -.52,.45 -.55,.9 -.52,1.6 .5,1.6 .47,1 .52,.5 .47,.1 .3,-.15 .2,-.6")
LUNG = places(
    "-.12,.06 -.32,.22 -.42,.5 -.45,.86 -.38,.92 -.2,.9 0,.97 .2,1.07 .38,1.22 .42,.95 .43,.5 .33,.12 .12,-.02"
)
HEART = places("-.02,.44 -.2,.5 -.33,.68 -.36,.9 -.2,1 .06,1 .12,.72")
TRACHEA = places("-.02,-.4 0,.1 .04,.4")
BREASTBONE = places("-.2,.1 -.34,.26 -.45,.5 -.485,.75")
BLADE = places(".3,.02 .42,.25 .47,.45")
VERTEBRA = places("-1,-.036 0,-.03 1,-.036 .9,0 1,.036 0,.03 -1,.036 -.9,0")  # x in halves of its width
SIDE_RIB = places("0,0 .04,.06 -.12,.2 -.39,.34 -.58,.36")  # from its vertebra

# A hand: the palm, and each ray's metacarpal (start, end), heading in degrees from upright, lengths of its phalanges.
PALM = places("-.16,1.6 -.17,.9 -.24,.66 -.17,.36 0,.3 .16,.36 .27,.5 .2,.9 .17,1.6")
RAYS = (
    (places("-.13,.78 -.28,.56"), -42.0, (0.17, 0.12)),
    (places("-.07,.72 -.13,.37"), -9.0, (0.2, 0.13, 0.09)),
    (places("0,.71 0,.34"), 0.0, (0.22, 0.145, 0.095)),
    (places(".06,.72 .115,.37"), 8.0, (0.2, 0.135, 0.095)),
    (places(".11,.75 .21,.43"), 18.0, (0.16, 0.1, 0.08)),
)
WRIST = places("-.13,.84 -.06,.79 0,.78 .07,.8 -.08,.88 0,.88 .075,.88")
FOREARM = ((-0.075, 0.15), (0.1, 0.085))  # x and width of radius and ulna


def lateral(sheet: Sheet, rng: np.random.Generator) -> Map:
    """A left lateral film. float32 (H, W) in [0, 1], white = dense."""
    x, y = sheet.grid
    body, lungs = sheet.fill(curve(TRUNK), soft=0.005), sheet.fill(curve(LUNG, closed=True), soft=0.005)
    heart = sheet.fill(curve(HEART, closed=True), soft=0.014)
    thick = 0.8 + 0.4 / (1 + np.exp((1 - y) / 0.08)) + 0.45 * np.exp(-(((y + 0.02) / 0.2) ** 2))  # belly, shoulders
    soft = body * (0.3 + 0.7 * sheet.blur(body, 0.06)) * thick
    airway = sheet.lines([(curve(TRACHEA), 0.06, 1.0)], soft=0.008)
    air = lungs * (0.6 + 0.4 * sheet.blur(lungs, 0.05)) * (1 - 0.75 * heart) + 0.2 * airway
    roots = rng.normal((0.02, 0.47), 0.02, (26, 2))
    tree = branches(rng, roots, rng.uniform(0, 2 * np.pi, 26), rng.uniform(0.007, 0.016, 26), length=0.1, forks=5)
    hilum = np.exp(-(((x - 0.02) / 0.06) ** 2 + ((y - 0.47) / 0.08) ** 2))
    markings = (0.1 * sheet.lines(tree, soft=0.002) + 0.1 * hilum) * lungs
    return tone(soft * (1 - 0.66 * air) + markings + _side_bones(sheet), sheet, rng)


def _side_bones(sheet: Sheet) -> Map:
    spine, near, far = [], [], []
    for level in range(-3, 15):
        height = 0.02 + 0.092 * level
        middle = np.array([0.1 + 0.28 * np.sin(np.pi * np.clip((height + 0.45) / 1.9, 0, 1)) ** 0.7, height])
        spine.append(curve(middle + VERTEBRA * (0.05 + 0.0016 * level, 1), closed=True))
        if 0 <= level < 11:
            rib = curve(SIDE_RIB + middle + np.array([0.06, 0]))
            near.append(ribbon(rib, 0.026))
            far.append(ribbon(rib - (0.03, -0.012), 0.026))
    x, y = sheet.grid
    fade = np.clip((x + 0.3) / 0.35, 0, 1) * (1 - np.clip((y - 0.95) / 0.1, 0, 1))  # in front ribs are cartilage
    ribs = fade * (0.045 * bone(sheet, near, cortex=0.008) + 0.045 * bone(sheet, far, cortex=0.008))
    flat = bone(sheet, [ribbon(curve(BREASTBONE), 0.03), ribbon(curve(BLADE), 0.02)], cortex=0.01)
    return np.asarray(0.08 * bone(sheet, spine, cortex=0.012) + 0.1 * flat + ribs)


def hand(sheet: Sheet, rng: np.random.Generator) -> Map:
    """A hand, back to front. float32 (H, W) in [0, 1], white = dense."""
    bones, fingers = _rays()
    bones += [_long_bone(np.array([x, 0.96]), np.array([x * 1.1, 1.7]), width) for x, width in FOREARM]
    bones += [_pebble(place) for place in WRIST]
    skin = sheet.fill(curve(PALM), *fingers, soft=0.006)
    soft = skin * (0.12 + 0.34 * sheet.blur(skin, 0.035))
    marrow = 0.85 + 0.3 * sheet.clouds(rng, grain=0.009)
    return tone(soft + 0.42 * bone(sheet, bones, cortex=0.011) * marrow, sheet, rng)


def _rays() -> tuple[list[Points], list[Points]]:
    """Outlines of the bones from the palm outwards, and of the fingers around them."""
    bones, fingers = [], []
    for (base, knuckle), heading, phalanges in RAYS:
        bones.append(_long_bone(base, knuckle, 0.07))
        step = np.array([np.sin(np.deg2rad(heading)), -np.cos(np.deg2rad(heading))])
        joint, width = knuckle, 0.062
        for length in phalanges:
            tip = joint + step * length
            bones.append(_long_bone(joint + step * 0.012, tip - step * 0.006, width))
            joint, width = tip, width * 0.82
        finger = curve(np.stack([base, knuckle, (knuckle + joint) / 2, joint + step * 0.03]))
        along = np.linspace(0, 1, len(finger))
        fingers.append(ribbon(finger, 0.125 * (1 - 0.2 * along) * np.sqrt(1 - along**14)))
    return bones, fingers


def _long_bone(start: Points, end: Points, width: float) -> Points:
    """A shaft with a waist and two swollen ends."""
    along = np.linspace(0, 1, 24)
    rounded = np.clip(np.minimum(along, 1 - along) / 0.05, 0.55, 1)
    swell = 0.55 + 0.45 * np.abs(2 * along - 1) ** 2.2
    return ribbon(start + (end - start) * along[:, None], width * rounded * swell)


def _pebble(place: Points) -> Points:
    """A bone of the wrist."""
    turn = np.linspace(0, 2 * np.pi, 9)[:-1]
    radius = 0.046 * (1 + 0.12 * np.sin(2 * turn + 9 * place[0]))
    return curve(place + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1), closed=True)
