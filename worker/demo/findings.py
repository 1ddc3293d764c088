"""Findings drawn into a phantom thorax: each changes the layers the way the disease changes the body.

A finding is named by its key in training.findings.FINDINGS. Those that reshape the body alter the Build before it is
drawn; the others alter the Thorax before it is summed. Where they sit varies with the thorax's own random numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from worker.demo.canvas import Map, branches, curve, mirrored, places, ribbon, ring
from worker.demo.thorax import Build, Thorax, sign_of

PLATE = places("-.14,.02 -.25,-.012 -.36,.005 -.43,.03")  # y from the height of the plate
APICAL_CAP = curve(places(".08,.04 .2,.05 .32,.09 .36,.03 .2,-.06 .06,-.03"), closed=True)


def reshape(build: Build, findings: Sequence[str]) -> Build:
    """The body that has these findings."""
    if "Cardiomegaly" in findings:
        build = replace(build, heart_left=0.76 * build.cage, heart_right=0.3 * build.cage)
    if "Emphysema" in findings:
        heart = (
            {} if "Cardiomegaly" in findings else {"heart_left": 0.42 * build.cage, "heart_right": 0.16 * build.cage}
        )
        build = replace(build, right_dome=1.12, left_dome=1.14, dome_rise=0.055, aeration=1.14, vessels=0.5, **heart)
    if "Atelectasis" in findings:
        build = replace(build, right_dome=build.right_dome - 0.13, dome_rise=0.15)
    if "Edema" in findings:
        build = replace(build, vessels=1.5 * build.vessels)
    return build


def draw(thorax: Thorax, findings: Sequence[str], *, side: str) -> None:
    """Draw the findings into the thorax, on the given side where they have one."""
    for finding in findings:
        if finding in DRAWN:
            DRAWN[finding](thorax, side)


def pneumothorax(thorax: Thorax, side: str) -> None:
    """The lung falls in towards its root: a fine line, and outside it no vessels at all."""
    outline, root = thorax.lung_outline(side), np.array([sign_of(side) * 0.13, 0.62])
    away = np.clip((np.abs(outline[:, 0]) - 0.08) / 0.16, 0, 1) * np.sqrt(np.clip((0.98 - outline[:, 1]) / 0.6, 0, 1))
    away = np.convolve(np.pad(away, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")
    pleura = root + (outline - root) * (1 - thorax.rng.uniform(0.17, 0.26) * away)[:, None]
    inside = thorax.sheet.fill(pleura, soft=0.003)
    beyond = thorax.lungs[side] * (1 - inside)
    thorax.vessels *= 1 - beyond
    thorax.air *= 1 + 0.22 * beyond - 0.06 * inside * thorax.lungs[side]
    free = pleura[: np.argmax(np.diff((away > 0.1).astype(int)) < 0)]  # up the wall and over the apex, once
    thorax.extra += 0.12 * thorax.sheet.lines([(free, 0.006, 1.0)], soft=0.0012) * thorax.lungs[side]


def effusion(thorax: Thorax, side: str) -> None:
    """Fluid fills the angle and climbs the wall in a meniscus."""
    _fluid(thorax, side, level=thorax.build.dome(side) - thorax.rng.uniform(0.08, 0.2), climb=0.2)


def _fluid(thorax: Thorax, side: str, *, level: float, climb: float) -> None:
    x, y = thorax.sheet.grid
    across = x * sign_of(side)
    at_wall, at_heart = (np.exp(-np.clip(gap, 0, 1) / 0.06) for gap in (thorax.wall - across, across - 0.1))
    surface = level - climb * (at_wall + 0.4 * at_heart)
    _solidify(thorax, 0.97 * (across > 0) / (1 + np.exp(-np.clip((y - surface) / 0.016, -40, 40))))


def _solidify(thorax: Thorax, opacity: Map) -> None:
    """Replace that share of the lung's air by something as dense as water."""
    thorax.air *= 1 - np.clip(opacity, 0, 1) * (thorax.air > 0)


def consolidation(thorax: Thorax, side: str) -> None:
    """A patch of filled air spaces with blurred borders; the bronchi in it stay open."""
    sheet, rng, sign = thorax.sheet, thorax.rng, sign_of(side)
    patch = sheet.blob((sign * rng.uniform(0.27, 0.31), rng.uniform(0.66, 0.8)), rng.uniform(0.14, 0.18))
    ragged = patch * (0.45 + 0.45 * sheet.clouds(rng, grain=0.06) + 0.3 * sheet.clouds(rng, grain=0.02))
    heading = 0.7 if sign > 0 else np.pi - 0.7
    tubes = branches(rng, [(sign * 0.14, 0.52)], [heading], [0.014], forks=4)
    open_bronchi = sheet.lines([stroke for stroke in tubes if stroke[1] > 0.004], soft=0.002)
    _solidify(thorax, 0.85 * ragged * (1 - 0.35 * open_bronchi))


def mass(thorax: Thorax, side: str) -> None:
    """A round, lobed lump."""
    rng, sheet = thorax.rng, thorax.sheet
    turn = np.linspace(0, 2 * np.pi, 48)
    lobes = np.sum([rng.normal(0, 0.06) * np.sin(n * turn + rng.uniform(0, 6)) for n in (2, 3)], axis=0)
    centre = (sign_of(side) * rng.uniform(0.25, 0.34), rng.uniform(0.25, 0.6))
    body = sheet.fill(ring(centre, (rng.uniform(0.05, 0.085) * (1 + lobes))[:, None]), soft=0.005)
    _solidify(thorax, body * (0.5 + 0.35 * sheet.blur(body, 0.02)))


def edema(thorax: Thorax, _: str) -> None:
    """Haze around both hila like a bat's wings, septal lines at the bases, and a little fluid in both angles."""
    sheet, rng, lines = thorax.sheet, thorax.rng, []
    wings = sheet.blob((-0.2, 0.55), 0.26) + sheet.blob((0.2, 0.55), 0.26)
    _solidify(thorax, wings * (0.2 + 0.45 * sheet.clouds(rng, grain=0.055) + 0.3 * sheet.clouds(rng, grain=0.018)))
    for side in ("left", "right"):
        for y in np.arange(0.7, 1.08, 0.022) + rng.normal(0, 0.004, 18):
            out = float(thorax.build.wall(y)) - 0.006
            septum = mirrored([(out, y), (out - rng.uniform(0.03, 0.055), y + 0.004)], sign_of(side))
            lines.append((septum, 0.0035, 0.9))
        _fluid(thorax, side, level=thorax.build.dome(side) + 0.03, climb=0.07)
    thorax.extra += 0.05 * sheet.lines(lines, soft=0.0012) * thorax.lung


def emphysema(thorax: Thorax, _: str) -> None:
    """Thin-walled bullae at the top; the flat domes and the narrow heart come with the Build."""
    for sign in (-1, -1, -1, 1, 1, 1):
        x, y, radius = thorax.rng.uniform((0.16, 0.08, 0.04), (0.34, 0.3, 0.075))
        bulla = ring((sign * x, y), radius)
        inside = thorax.sheet.fill(bulla, soft=0.006)
        thorax.vessels *= 1 - 0.9 * inside
        wall = thorax.sheet.lines([(bulla, 0.004, 1.0)], soft=0.001)
        thorax.extra += (0.07 * wall - 0.02 * inside) * thorax.lung


def atelectasis(thorax: Thorax, _: str) -> None:
    """Plates of airless lung above the raised right dome."""
    rng, dome = thorax.rng, thorax.build.dome("right")
    plates = [
        (
            curve(PLATE[: rng.integers(3, 5)] + np.array([0, dome - height])),
            rng.uniform(0.006, 0.014),
            rng.uniform(0.5, 1),
        )
        for height in (0.06, 0.12, 0.19)
    ]
    _solidify(thorax, 0.65 * thorax.sheet.lines(plates, soft=0.004) + 0.35 * thorax.sheet.blob((-0.25, dome), 0.16))


def fibrosis(thorax: Thorax, _: str) -> None:
    """A net of scars, thickest at the bases and under the pleura."""
    x, y = thorax.sheet.grid
    grains = [thorax.sheet.clouds(thorax.rng, grain=grain) for grain in (0.014, 0.022, 0.034)]
    net = np.max([np.clip(1 - 9 * np.abs(grain - 0.5), 0, 1) for grain in grains], axis=0)
    rim = np.exp(-np.clip(thorax.wall - np.abs(x), 0, 1) / 0.12)
    _solidify(thorax, np.clip((y - 0.35) / 0.5, 0, 1) * (0.35 + 0.65 * rim) * (0.34 * net + 0.2))


def pleural_thickening(thorax: Thorax, side: str) -> None:
    """A rind along the wall and a cap over the apex."""
    y = np.linspace(0.25, thorax.build.dome(side) + thorax.build.dome_rise, 40)
    widths = np.interp(y, [0.25, 0.5, 0.9, 1.2], [0.02, 0.09, 0.07, 0.13]) * (1 + 0.15 * np.sin(9 * y))
    rind = ribbon(np.stack([thorax.build.wall(y), y], 1), widths)
    shapes = [mirrored(each, sign_of(side)) for each in (rind, APICAL_CAP)]
    _solidify(thorax, 0.72 * thorax.sheet.fill(*shapes, soft=0.007))


def hernia(thorax: Thorax, _: str) -> None:
    """The stomach behind the heart: a round shadow with gas above a level of fluid."""
    sheet, rng, height = thorax.sheet, thorax.rng, 0.86
    outline = ring((rng.uniform(0.03, 0.07), height), rng.uniform(0.14, 0.17) * np.array([1.15, 1]))
    sac = sheet.fill(outline, soft=0.003)
    gas = sac * (sheet.grid[1] < height - 0.01)
    thorax.extra += 0.08 * sac - 0.2 * gas + 0.05 * sheet.lines([(outline, 0.008, 1.0)], soft=0.001)
    thorax.vessels *= 1 - 0.7 * sac


# Cardiomegaly is not among them: all of it is in the Build.
DRAWN: dict[str, Callable[[Thorax, str], None]] = {
    "Mass": mass,
    "Consolidation": consolidation,
    "Atelectasis": atelectasis,
    "Pneumothorax": pneumothorax,
    "Edema": edema,
    "Emphysema": emphysema,
    "Fibrosis": fibrosis,
    "Effusion": effusion,
    "Pleural_Thickening": pleural_thickening,
    "Hernia": hernia,
}
