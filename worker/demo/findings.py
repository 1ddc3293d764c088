"""Findings drawn into a phantom thorax: each changes the layers the way the disease changes the body.

A finding is named by its key in training.findings.FINDINGS. Those that reshape the body alter the Build before it is
drawn; the others alter the Thorax before it is summed. Where they sit varies with the thorax's own random numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from worker.demo.canvas import Map, Points, Stroke, branches, curve, mirrored, ribbon
from worker.demo.thorax import Build, Thorax, sign_of

SIDES = ("left", "right")


def reshape(build: Build, findings: Sequence[str]) -> Build:
    """The body that has these findings."""
    if "Cardiomegaly" in findings:
        build = replace(build, heart_left=0.76 * build.cage, heart_right=0.3 * build.cage)
    if "Emphysema" in findings:
        build = replace(build, right_dome=1.12, left_dome=1.14, dome_rise=0.055, aeration=1.14, vessels=0.5,
                        heart_left=0.42 * build.cage, heart_right=0.16 * build.cage)  # fmt: skip
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
    sheet, sign = thorax.sheet, sign_of(side)
    outline = thorax.lung_outline(side)
    root = np.array([sign * 0.13, 0.62])
    away = np.clip((np.abs(outline[:, 0]) - 0.08) / 0.16, 0, 1) * np.sqrt(np.clip((0.98 - outline[:, 1]) / 0.6, 0, 1))
    away = np.convolve(np.pad(away, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")
    pleura = root + (outline - root) * (1 - thorax.rng.uniform(0.17, 0.26) * away)[:, None]
    inside = sheet.fill(pleura, soft=0.003)
    beyond = thorax.lungs[side] * (1 - inside)
    thorax.vessels *= 1 - beyond
    thorax.air *= 1 + 0.22 * beyond - 0.06 * inside * thorax.lungs[side]
    free = pleura[: np.argmax(np.diff((away > 0.1).astype(int)) < 0)]  # up the wall and over the apex, once
    thorax.extra += 0.12 * sheet.lines([(free, 0.006, 1.0)], soft=0.0012) * thorax.lungs[side]


def effusion(thorax: Thorax, side: str) -> None:
    """Fluid fills the angle and climbs the wall in a meniscus."""
    level = thorax.dome(side) - thorax.rng.uniform(0.08, 0.2)
    _fluid(thorax, side, level=level, climb=0.2)


def _fluid(thorax: Thorax, side: str, *, level: float, climb: float) -> None:
    x, y = thorax.sheet.grid
    across = x * sign_of(side)
    surface = (
        level
        - climb * np.exp(-np.clip(thorax.wall - across, 0, 1) / 0.06)
        - 0.4 * climb * np.exp(-np.clip(across - 0.1, 0, 1) / 0.06)
    )
    wet = (across > 0) / (1 + np.exp(-np.clip((y - surface) / 0.016, -40, 40)))
    _solidify(thorax, 0.97 * wet)


def _solidify(thorax: Thorax, opacity: Map) -> None:
    """Replace that share of the lung's air by something as dense as water."""
    thorax.air *= 1 - np.clip(opacity, 0, 1) * (thorax.air > 0)


def consolidation(thorax: Thorax, side: str) -> None:
    """A patch of filled air spaces with blurred borders; the bronchi in it stay open."""
    sheet, rng, sign = thorax.sheet, thorax.rng, sign_of(side)
    centre = (sign * rng.uniform(0.27, 0.31), rng.uniform(0.66, 0.8))
    patch = _blob(thorax, centre, rng.uniform(0.14, 0.18))
    ragged = patch * (0.45 + 0.45 * sheet.clouds(rng, grain=0.06) + 0.3 * sheet.clouds(rng, grain=0.02))
    heading = 0.7 if sign > 0 else np.pi - 0.7
    tubes = branches(rng, [(sign * 0.14, 0.52)], [heading], [0.014], length=0.1, forks=4)
    open_bronchi = sheet.lines([stroke for stroke in tubes if stroke[1] > 0.004], soft=0.002)
    _solidify(thorax, 0.85 * ragged * (1 - 0.35 * open_bronchi))


def _blob(thorax: Thorax, centre: tuple[float, float], radius: float) -> Map:
    x, y = thorax.sheet.grid
    distance = np.hypot(x - centre[0], 0.9 * (y - centre[1])) / radius
    blob: Map = np.exp(-(distance**3))
    return blob


def mass(thorax: Thorax, side: str) -> None:
    """A round, lobed lump."""
    sheet, rng = thorax.sheet, thorax.rng
    centre = np.array([sign_of(side) * rng.uniform(0.25, 0.34), rng.uniform(0.25, 0.6)])
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    lobes: Points = sum(
        (rng.normal(0, 0.06) * np.sin(n * turn + rng.uniform(0, 6)) for n in (2, 3)), np.zeros_like(turn)
    )
    radius = rng.uniform(0.05, 0.085) * (1 + lobes)
    lump = centre + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    body = sheet.fill(lump, soft=0.005)
    _solidify(thorax, body * (0.5 + 0.35 * sheet.blur(body, 0.02)))


def edema(thorax: Thorax, side: str) -> None:
    """Haze around both hila like a bat's wings, septal lines at the bases, and a little fluid in both angles."""
    del side  # water comes to both lungs
    sheet, rng, build = thorax.sheet, thorax.rng, thorax.build
    wings = sum(_blob(thorax, (sign * 0.2, 0.55), 0.26) for sign in (-1.0, 1.0))
    _solidify(thorax, wings * (0.2 + 0.45 * sheet.clouds(rng, grain=0.055) + 0.3 * sheet.clouds(rng, grain=0.018)))
    lines: list[Stroke] = []
    for sign in (-1.0, 1.0):
        for y in np.arange(0.7, 1.08, 0.022) + rng.normal(0, 0.004, 18)[: len(np.arange(0.7, 1.08, 0.022))]:
            out = float(build.wall(y)) - 0.006
            lines.append((mirrored([(out, y), (out - rng.uniform(0.03, 0.055), y + 0.004)], sign), 0.0035, 0.9))
    thorax.extra += 0.05 * sheet.lines(lines, soft=0.0012) * thorax.lung
    for each in SIDES:
        _fluid(thorax, each, level=thorax.dome(each) + 0.03, climb=0.07)


def emphysema(thorax: Thorax, side: str) -> None:
    """Thin-walled bullae at the top; the flat domes and the narrow heart come with the Build."""
    sheet, rng = thorax.sheet, thorax.rng
    del side
    turn = np.linspace(0, 2 * np.pi, 20)
    for sign in (-1.0, 1.0):
        for _ in range(3):
            centre = np.array([sign * rng.uniform(0.16, 0.34), rng.uniform(0.08, 0.3)])
            ring = centre + rng.uniform(0.04, 0.075) * np.stack([np.cos(turn), np.sin(turn)], 1)
            inside = sheet.fill(ring, soft=0.006)
            thorax.vessels *= 1 - 0.9 * inside
            thorax.extra += (0.07 * sheet.lines([(ring, 0.004, 1.0)], soft=0.001) - 0.02 * inside) * thorax.lung


def atelectasis(thorax: Thorax, side: str) -> None:
    """Plates of airless lung above the raised right dome."""
    del side
    sheet, rng, dome = thorax.sheet, thorax.rng, thorax.dome("right")
    plates: list[Stroke] = []
    for height in (0.06, 0.12, 0.19):
        y = dome - height
        path = curve(
            [(-0.14, y + 0.02), (-0.25, y - 0.012), (-0.36, y + 0.005), (-0.43, y + 0.03)][: rng.integers(3, 5)]
        )
        plates.append((path, rng.uniform(0.006, 0.014), rng.uniform(0.5, 1)))
    _solidify(thorax, 0.65 * sheet.lines(plates, soft=0.004) + 0.35 * _blob(thorax, (-0.25, dome), 0.16))


def fibrosis(thorax: Thorax, side: str) -> None:
    """A net of scars, thickest at the bases and under the pleura."""
    del side
    sheet, rng = thorax.sheet, thorax.rng
    x, y = sheet.grid
    net = np.zeros_like(x)
    for grain in (0.014, 0.022, 0.034):
        net = np.maximum(net, np.clip(1 - 9 * np.abs(sheet.clouds(rng, grain=grain) - 0.5), 0, 1))
    rim = np.exp(-np.clip(thorax.wall - np.abs(x), 0, 1) / 0.12)
    where = np.clip((y - 0.35) / 0.5, 0, 1) * (0.35 + 0.65 * rim)
    _solidify(thorax, where * (0.34 * net + 0.2))


def pleural_thickening(thorax: Thorax, side: str) -> None:
    """A rind along the wall and a cap over the apex."""
    sheet, rng, sign = thorax.sheet, thorax.rng, sign_of(side)
    y = np.linspace(0.25, thorax.dome(side) + thorax.build.dome_rise, 40)
    rind = ribbon(
        np.stack([thorax.build.wall(y), y], 1),
        np.interp(y, [0.25, 0.5, 0.9, 1.2], [0.02, 0.09, 0.07, 0.13]) * (1 + 0.15 * np.sin(9 * y)),
    )
    apex = curve(
        [(0.08, 0.04), (0.2, 0.045 + rng.uniform(0, 0.02)), (0.32, 0.09), (0.36, 0.03), (0.2, -0.06), (0.06, -0.03)],
        closed=True,
    )
    _solidify(thorax, 0.72 * sheet.fill(mirrored(rind, sign), mirrored(apex, sign), soft=0.007))


def hernia(thorax: Thorax, side: str) -> None:
    """The stomach behind the heart: a round shadow with gas above a level of fluid."""
    del side
    sheet, rng = thorax.sheet, thorax.rng
    centre, radius = np.array([rng.uniform(0.03, 0.07), 0.86]), rng.uniform(0.14, 0.17)
    turn = np.linspace(0, 2 * np.pi, 60)
    ring = centre + radius * np.stack([1.15 * np.cos(turn), np.sin(turn)], 1)
    sac = sheet.fill(ring, soft=0.003)
    _, y = sheet.grid
    gas = sac * (y < centre[1] - 0.01)
    thorax.extra += 0.08 * sac - 0.2 * gas + 0.05 * sheet.lines([(ring, 0.008, 1.0)], soft=0.001)
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
