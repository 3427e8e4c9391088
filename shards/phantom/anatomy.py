"""Draws the outlines of a synthetic chest, in chest units (see shards.phantom.canvas), at random for every film."""

from dataclasses import dataclass

import numpy as np

from shards.phantom.canvas import Points, Stroke, ellipse, spline

# The right lung, on the left of a film; the left lung differs along the heart. (|x|, y) from apex to base.
WALL = ((0.078, 0.165), (0.095, 0.105), (0.15, 0.075), (0.225, 0.105), (0.29, 0.2), (0.335, 0.34), (0.36, 0.5),
        (0.374, 0.65), (0.383, 0.79))  # fmt: skip
BASE_RIGHT = ((0.383, 0.79), (0.32, 0.735), (0.24, 0.705), (0.16, 0.715), (0.1, 0.75))
BASE_LEFT = ((0.383, 0.81), (0.34, 0.765), (0.29, 0.745), (0.25, 0.755), (0.225, 0.775))
MEDIAL_RIGHT = ((0.1, 0.75), (0.108, 0.64), (0.088, 0.5), (0.066, 0.38), (0.07, 0.26), (0.078, 0.165))
MEDIAL_LEFT = ((0.225, 0.775), (0.218, 0.69), (0.175, 0.57), (0.115, 0.47), (0.09, 0.38), (0.092, 0.27), (0.078, 0.165))
VESSEL_LENGTHS = (0.07, 0.062, 0.055, 0.05, 0.044, 0.038)
VESSEL_WIDTHS = (0.0125, 0.0088, 0.0066, 0.0053, 0.0043, 0.0037)
VESSEL_LEVELS = (40.0, 40.0, 40.0, 39.0, 37.0, 34.0)
RIBS = 10


@dataclass(frozen=True)
class Lung:
    """One lung: `side` -1 on the film's left, +1 on its right; wall (n, 2) from apex to base, closed outline (m, 2)."""

    side: int
    wall: Points
    outline: Points
    hilum: tuple[float, float]


def draw_lung(rng: np.random.Generator, side: int, width: float, heart: float) -> Lung:
    """Draw a lung; `width` scales it across, `heart` (about 1) pushes the left lung's medial border outwards."""
    base, medial = (BASE_RIGHT, MEDIAL_RIGHT) if side < 0 else (BASE_LEFT, MEDIAL_LEFT)
    wall, bottom, inner = np.array(WALL), np.array(base), np.array(medial)
    wall[1:-1] += rng.normal(0, 0.005, wall[1:-1].shape)
    lift = rng.normal(0, 0.025)
    bottom[:, 1] += lift + np.array([0.02, 0, rng.normal(0, 0.01), rng.normal(0, 0.008), 0])
    wall[-1, 1], inner[0] = bottom[0, 1], bottom[-1]
    if side > 0:
        inner[1:4, 0] = 0.09 + (inner[1:4, 0] - 0.09) * heart
    inner[1:-1, 0] += rng.normal(0, 0.004, len(inner) - 2)
    scale = np.array([side * width, 1.0])
    wall_line = spline(wall, 120) * scale
    outline = np.concatenate([wall_line, spline(bottom, 40)[1:] * scale, spline(inner, 50)[1:-1] * scale])
    hilum = (0.128, 0.43) if side < 0 else (0.152, 0.4)
    return Lung(side, wall_line, outline, (hilum[0] * side * width, hilum[1]))


def vessels(rng: np.random.Generator, lung: Lung) -> list[Stroke]:
    """Draw a tree of vessels that taper and fork from the hilum. It extends beyond the lung; clip it there."""
    trunks = 11
    heading = np.linspace(-1.75, 1.7, trunks) + rng.normal(0, 0.12, trunks)
    start = np.array(lung.hilum) + rng.normal(0, 0.012, (trunks, 2))
    levels: list[list[Stroke]] = []
    for length, width, level in zip(VESSEL_LENGTHS, VESSEL_WIDTHS, VESSEL_LEVELS, strict=True):
        steps = 5
        bends = heading[:, None] + np.cumsum(rng.normal(0, 0.13, (len(heading), steps)), axis=1)
        stride = length * rng.uniform(0.7, 1.25, (len(heading), 1)) / steps
        # Base and apex are farther from the hilum than the wall.
        down = np.sin(bends) * np.where(bends > 0, 1.45, 1.3)
        moves = np.stack([np.cos(bends) * lung.side, down], axis=2) * stride[..., None]
        paths = np.concatenate([start[:, None], start[:, None] + np.cumsum(moves, axis=1)], axis=1)
        levels.append([Stroke(path, width, level) for path in paths])
        fork = rng.uniform(0.2, 0.55, len(heading))
        heading = np.concatenate([bends[:, -1] + fork, bends[:, -1] - fork * rng.uniform(0.4, 1.0, len(fork))])
        start = np.concatenate([paths[:, -1], paths[:, -2]])
    return [stroke for level_strokes in reversed(levels) for stroke in level_strokes]


def ribs(rng: np.random.Generator, lung: Lung) -> tuple[list[Stroke], list[Stroke], list[Stroke]]:
    """Draw posterior arcs, anterior arcs and the edges of both, as strokes of level 255 (edges: 255 or fainter)."""
    posterior, anterior, edges = [], [], []
    top = 0.07 + rng.normal(0, 0.008)
    pitch = 0.068 * rng.uniform(0.94, 1.06)
    slope = rng.uniform(0.03, 0.08)
    lowest = np.argmin(lung.wall[:, 1])
    for k in range(RIBS):
        y = top + k * pitch
        turn = y + slope + 0.008 * k
        reach = float(np.interp(turn, lung.wall[lowest:, 1], np.abs(lung.wall[lowest:, 0]))) + 0.012
        height = 0.021 + 0.0006 * k
        back = spline(
            [(0.03, y + 0.012), (reach * 0.35, y - 0.006), (reach * 0.72, y + slope * 0.3), (reach, turn)], 30
        )
        drop = 0.06 + 0.012 * k
        front_end = max(0.11, reach * (0.42 + 0.01 * k))
        front = spline(
            [(reach, turn), (reach * 0.93, turn + drop * 0.45), ((reach + front_end) / 2, turn + drop * 0.85),
             (front_end, turn + drop)], 24
        )  # fmt: skip
        mirror = np.array([lung.side, 1.0])
        posterior.append(Stroke(back * mirror, height, 255.0))
        anterior.append(Stroke(front * mirror, height * 1.15, 255.0))
        shift = np.array([0.0, height / 2])
        edges += [Stroke((back + shift) * mirror, 0.0032, 255.0), Stroke((back - shift) * mirror, 0.0026, 190.0)]
        edges += [Stroke((front + shift) * mirror, 0.0026, 120.0), Stroke((front - shift) * mirror, 0.0026, 120.0)]
    return posterior, anterior, edges


def clavicle(rng: np.random.Generator, side: int) -> Points:
    """Draw the outline (n, 2) of a clavicle."""
    rise = rng.uniform(-0.02, 0.05)
    axis = spline([(0.035, 0.165), (0.12, 0.152 - rise * 0.3), (0.24, 0.13 - rise), (0.37, 0.105 - rise)], 30)
    half = np.interp(np.linspace(0, 1, 30), [0, 0.04, 0.2, 0.6, 0.94, 1], [0.006, 0.016, 0.011, 0.009, 0.012, 0.005])[
        :, None
    ] * [0.25, 1.0]
    return np.concatenate([axis - half, (axis + half)[::-1]]) * [side, 1.0]


def scapula(rng: np.random.Generator, side: int) -> Points:
    """Draw the outline (n, 2) of a shoulder blade. Its medial edge may overlap the lung."""
    inward = rng.uniform(-0.03, 0.045)
    outline = spline([(0.42, 0.12), (0.33 - inward, 0.15), (0.335 - inward, 0.27), (0.385 - inward * 0.5, 0.4)], 24)
    return np.concatenate([outline, [[0.47, 0.2]]]) * [side, 1.0]


def body(rng: np.random.Generator) -> tuple[Points, ...]:
    """Draw the outlines of trunk, neck with shoulders, and arms."""
    flank = rng.uniform(0.41, 0.47)
    neck = rng.uniform(0.1, 0.14)
    shoulder = rng.uniform(0.02, 0.08)
    half = [
        (neck, -0.3),
        (neck, -0.12),
        (neck + 0.06, shoulder - 0.085),
        (0.36, shoulder - 0.02),
        (0.5, shoulder + 0.06),
    ]
    right = np.concatenate([spline(half, 30), spline([(flank + 0.02, 0.34), (flank, 0.6), (flank + 0.02, 1.4)], 20)])
    trunk = np.concatenate([right, right[::-1] * [-1.0, 1.0]])
    spread = rng.uniform(0.0, 0.12)
    arm = np.array([(0.4, shoulder), (0.5, shoulder + 0.04), (0.62 + spread, 0.7), (0.5 + spread, 0.75)])
    return trunk, arm, arm * [-1.0, 1.0]


def vertebrae(rng: np.random.Generator) -> list[Points]:
    """Draw the outlines of the vertebral bodies, top to bottom."""
    phase = rng.uniform(0, 0.05)
    return [ellipse(0.0, phase - 0.03 + 0.053 * k, 0.034 + 0.0006 * k, 0.021) for k in range(20)]


def breasts(rng: np.random.Generator) -> tuple[Points, ...]:
    """Draw the outlines of two breast shadows over the lower lung fields."""
    x, y, radius = rng.uniform(0.21, 0.27), rng.uniform(0.62, 0.7), rng.uniform(0.11, 0.16)
    return tuple(ellipse(side * x, y, radius, radius * 0.85) for side in (-1, 1))


def skin_fold(rng: np.random.Generator, lung: Lung) -> Points:
    """Draw a line (n, 2) down a lung that resembles a pleural line."""
    share = rng.uniform(0.12, 0.35)
    low, high = sorted(rng.choice(np.arange(10, 118), 2, replace=False).tolist())
    high = max(high, min(119, low + 45))
    line = lung.wall[low:high]
    tilt = np.linspace(share, share * rng.uniform(0.4, 1.8), len(line))[:, None]
    return np.asarray(line + (np.array(lung.hilum) - line) * tilt, np.float64)
