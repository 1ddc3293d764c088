"""Films that the view filter must refuse: a thorax from the side and a hand, drawn like the frontal thorax."""

import numpy as np

from worker.phantom_sheet import Map, Points, Sheet, bone, branches, curve, ribbon, tone


def lateral(sheet: Sheet, rng: np.random.Generator) -> Map:
    """A left lateral film: breastbone left, spine right. float32 (H, W) in [0, 1], white = dense."""
    trunk = curve([(-0.12, -0.6), (-0.14, -0.2), (-0.4, 0.12), (-0.52, 0.45), (-0.55, 0.9), (-0.52, 1.6),
                   (0.5, 1.6), (0.47, 1.0), (0.52, 0.5), (0.47, 0.1), (0.3, -0.15), (0.2, -0.6)])  # fmt: skip
    lung = curve([(-0.12, 0.06), (-0.32, 0.22), (-0.42, 0.5), (-0.45, 0.86), (-0.38, 0.92), (-0.2, 0.9), (0.0, 0.97),
                  (0.2, 1.07), (0.38, 1.22), (0.42, 0.95), (0.43, 0.5), (0.33, 0.12), (0.12, -0.02)], closed=True)  # fmt: skip
    heart = curve([(-0.02, 0.44), (-0.2, 0.5), (-0.33, 0.68), (-0.36, 0.9), (-0.2, 1.0), (0.06, 1.0), (0.12, 0.72)], closed=True)
    body, lungs, muscle = sheet.fill(trunk, soft=0.005), sheet.fill(lung, soft=0.005), sheet.fill(heart, soft=0.014)
    x, y = sheet.grid
    soft = body * (0.3 + 0.7 * sheet.blur(body, 0.06)) * (0.8 + 0.4 / (1 + np.exp(-(y - 1.0) / 0.08)) + 0.45 * np.exp(-((y + 0.02) / 0.2) ** 2))
    airway = sheet.lines([(curve([(-0.02, -0.4), (0.0, 0.1), (0.04, 0.4)]), 0.06, 1.0)], soft=0.008)
    air = lungs * (0.6 + 0.4 * sheet.blur(lungs, 0.05)) * (1 - 0.75 * muscle) + 0.2 * airway
    angle = rng.uniform(0, 2 * np.pi, 26)
    vessels = sheet.lines(branches(rng, np.tile([0.02, 0.47], (26, 1)) + rng.normal(0, 0.02, (26, 2)), angle, rng.uniform(0.007, 0.016, 26), length=0.1, forks=5), soft=0.002)
    hilum = np.exp(-(((x - 0.02) / 0.06) ** 2 + ((y - 0.47) / 0.08) ** 2))
    beam = soft * (1 - 0.66 * air) + (0.1 * vessels + 0.1 * hilum) * lungs + _side_bones(sheet)
    return tone(beam, sheet, rng)


def _side_bones(sheet: Sheet) -> Map:
    spine, ribs = [], []
    for level in range(-3, 15):
        y, half = 0.02 + 0.092 * level, 0.05 + 0.0016 * level
        x = 0.1 + 0.28 * np.sin(np.pi * np.clip((y + 0.45) / 1.9, 0, 1)) ** 0.7
        tall = 0.036
        corners = [(-half, -tall), (0, 0.006 - tall), (half, -tall), (0.9 * half, 0), (half, tall), (0, tall - 0.006), (-half, tall), (-0.9 * half, 0)]
        spine.append(curve([(x + dx, y + dy) for dx, dy in corners], closed=True))
        if 0 <= level < 11:
            ribs += [curve([(x + 0.06, y), (x + 0.1 + shift, y + 0.06), (x - 0.06, y + 0.2), (x - 0.33, y + 0.34), (x - 0.55 + 0.01 * level, y + 0.36)]) for shift in (0.0, -0.03)]
    breastbone = ribbon(curve([(-0.2, 0.1), (-0.34, 0.26), (-0.45, 0.5), (-0.485, 0.75)]), 0.03)
    blade = ribbon(curve([(0.3, 0.02), (0.42, 0.25), (0.47, 0.45)]), 0.02)
    bands = [ribbon(path, 0.026) for path in ribs]
    layers = ((0.08, spine, 0.012), (0.1, [breastbone, blade], 0.01))
    solid = sum((weight * bone(sheet, outlines, cortex=cortex) for weight, outlines, cortex in layers), np.zeros_like(sheet.grid[0]))
    x, y = sheet.grid
    fade = np.clip((x + 0.3) / 0.35, 0, 1) * (1 - np.clip((y - 0.95) / 0.1, 0, 1))  # in front ribs are cartilage
    return solid + fade * (0.045 * bone(sheet, bands[::2], cortex=0.008) + 0.045 * bone(sheet, bands[1::2], cortex=0.008))


# Each ray of the hand: where its metacarpal starts and ends, the heading in degrees from straight up, phalanx lengths.
_RAYS = (
    ((-0.13, 0.78), (-0.28, 0.56), -42.0, (0.17, 0.12)),
    ((-0.07, 0.72), (-0.13, 0.37), -9.0, (0.2, 0.13, 0.09)),
    ((0.0, 0.71), (0.0, 0.34), 0.0, (0.22, 0.145, 0.095)),
    ((0.06, 0.72), (0.115, 0.37), 8.0, (0.2, 0.135, 0.095)),
    ((0.11, 0.75), (0.21, 0.43), 18.0, (0.16, 0.1, 0.08)),
)
_WRIST = ((-0.13, 0.84, 0.042), (-0.06, 0.79, 0.04), (0.0, 0.78, 0.045), (0.07, 0.8, 0.045), (-0.08, 0.88, 0.05),
          (0.0, 0.88, 0.046), (0.075, 0.88, 0.044))  # fmt: skip


def hand(sheet: Sheet, rng: np.random.Generator) -> Map:
    """A hand, back to front. float32 (H, W) in [0, 1], white = dense."""
    bones, flesh = _hand_bones()
    palm = curve([(-0.16, 1.6), (-0.17, 0.9), (-0.24, 0.66), (-0.17, 0.36), (0.0, 0.3), (0.16, 0.36), (0.27, 0.5), (0.2, 0.9), (0.17, 1.6)])
    skin = sheet.fill(palm, *flesh, soft=0.006)
    soft = skin * (0.12 + 0.34 * sheet.blur(skin, 0.035))
    marrow = bone(sheet, bones, cortex=0.011)
    return tone(soft + 0.42 * marrow * (0.85 + 0.3 * sheet.clouds(rng, grain=0.009)), sheet, rng)


def _hand_bones() -> tuple[list[Points], list[Points]]:
    """Outlines of the bones and of the fingers around them."""
    bones = [_long_bone(np.array([x, 0.96]), np.array([x * 1.1, 1.7]), width) for x, width in ((-0.075, 0.15), (0.1, 0.085))]
    turn = np.linspace(0, 2 * np.pi, 9)[:-1]
    for x, y, radius in _WRIST:
        wobble = 1 + 0.12 * np.sin(2 * turn + 9 * x)
        bones.append(curve([(x + radius * np.cos(t) * w, y + radius * np.sin(t) * w) for t, w in zip(turn, wobble, strict=True)], closed=True))
    flesh: list[Points] = []
    for base, knuckle, heading, phalanges in _RAYS:
        bones.append(_long_bone(np.array(base), np.array(knuckle), 0.07))
        step = np.array([np.sin(np.deg2rad(heading)), -np.cos(np.deg2rad(heading))])
        joint, width = np.array(knuckle), 0.062
        for length in phalanges:
            tip = joint + step * length
            bones.append(_long_bone(joint + step * 0.012, tip - step * 0.006, width))
            joint, width = tip, width * 0.82
        finger = curve([tuple(base), tuple(knuckle), tuple((knuckle + joint) / 2), tuple(joint + step * 0.03)])
        rounded = np.sqrt(np.clip(1 - np.linspace(0, 1.0, len(finger)) ** 14, 0, 1))
        flesh.append(ribbon(finger, 0.125 * rounded * np.linspace(1, 0.8, len(finger))))
    return bones, flesh


def _long_bone(start: Points, end: Points, width: float) -> Points:
    """A shaft with a waist and two swollen ends."""
    t = np.linspace(0, 1, 24)
    ends = np.clip(np.minimum(t, 1 - t) / 0.05, 0.55, 1)
    return ribbon(start + (end - start) * t[:, None], width * ends * (0.55 + 0.45 * np.abs(2 * t - 1) ** 2.2))
