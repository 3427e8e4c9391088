"""Shape of a synthetic pneumothorax: where the lung has left the chest wall, and how annotators cut it into rows.

The visceral pleura is the wall drawn towards the hilum by a share of the distance that varies along the wall. A lung
outline here is star-shaped about its hilum, so such a region never leaves the lung field or crosses itself.
"""

import math
from dataclasses import dataclass

import numpy as np

from shards.arrays import Mask
from shards.phantom.canvas import Canvas, Points

SMALLEST_AREA, MEDIAN_AREA, LARGEST_AREA = 0.01, 0.033, 0.12
MULTI_ROW_SHARE = 1 / 3
DEEPEST_COLLAPSE = 0.72


@dataclass(frozen=True)
class Pneumothorax:
    """Outlines (n, 2) of the air, the pleural lines (n, 2) at their inner border, and cuts for the label rows.

    `cuts` are pairs of angles (radians about `hilum`, as `angles_about` gives them); empty for a single row.
    """

    outlines: tuple[Points, ...]
    pleura: tuple[Points, ...]
    hilum: tuple[float, float]
    side: int
    cuts: tuple[tuple[float, float], ...]


def draw_pneumothorax(
    rng: np.random.Generator, canvas: Canvas, wall: Points, hilum: tuple[float, float], side: int
) -> Pneumothorax:
    """Draw a pneumothorax of one lung from its `wall` (n, 2), apex to costophrenic angle, and its hilum.

    The area is log-normal about MEDIAN_AREA of the film (the share `canvas` maps it to), kept within SMALLEST_AREA
    and LARGEST_AREA as far as the wall's reach and DEEPEST_COLLAPSE allow.
    """
    along = np.linspace(0, 1, len(wall))
    area = float(np.clip(MEDIAN_AREA * math.exp(rng.normal(0, 0.55)), SMALLEST_AREA, LARGEST_AREA))
    several = rng.random() < MULTI_ROW_SHARE
    spans = _spans(rng, area, apart=several and area > 0.025 and rng.random() < 0.6)
    skew = rng.uniform(0.8, 1.5)
    profile = np.zeros(len(wall))
    for low, high in spans:
        inside = np.clip((along - low) / (high - low), 0, 1)
        # An arc that rises fast from the wall: the pleural line leaves it at an angle, not asymptotically.
        profile += np.sin(np.pi * inside**skew) ** 0.7
    reach = np.asarray(hilum) - wall
    depth = _depth_for_area(canvas, wall, reach, profile, area)
    inner = wall + reach * (depth * profile)[:, None]
    outlines, pleura = [], []
    for low, high in spans:
        chosen = (along >= low) & (along <= high)
        outlines.append(np.concatenate([wall[chosen], inner[chosen][::-1]]))
        pleura.append(inner[chosen])
    cuts: tuple[tuple[float, float], ...] = ()
    if several:
        cuts = _cuts(rng, spans, angles_about(wall, hilum, side))
    return Pneumothorax(tuple(outlines), tuple(pleura), hilum, side, cuts)


def label_parts(canvas: Canvas, region: Pneumothorax, mask: Mask) -> tuple[Mask, ...]:
    """Return the label rows of a mask (h, w) as masks of that shape whose OR is `mask`; none of them is empty."""
    if not region.cuts or not mask.any():
        return (mask,)
    rows, columns = np.nonzero(mask)
    fractions = np.stack([(columns + 0.5) / mask.shape[1], (rows + 0.5) / mask.shape[0]], axis=1)
    angles = angles_about(canvas.to_chest(fractions), region.hilum, region.side)
    parts = []
    for low, high in region.cuts:
        chosen = (angles >= low) & (angles < high)
        if chosen.any():
            part = np.zeros_like(mask)
            part[rows[chosen], columns[chosen]] = 1
            parts.append(part)
    return tuple(parts)


def angles_about(points: Points, hilum: tuple[float, float], side: int) -> Points:
    """Return the angle (n,) of points (n, 2) about the hilum: 0 straight down, growing by the side of the wall to up.

    It falls steadily along the wall from apex to costophrenic angle; the jump lies towards the midline.
    """
    across, down = (points[:, 0] - hilum[0]) * side, points[:, 1] - hilum[1]
    return np.asarray((np.arctan2(across, down) + np.pi / 2) % (2 * np.pi) - np.pi / 2, np.float64)


def _spans(rng: np.random.Generator, area: float, *, apart: bool) -> tuple[tuple[float, float], ...]:
    """Draw the stretches of the wall (0 the apex's medial end, 1 the costophrenic angle) that the air lies behind."""
    if apart:
        gap = rng.uniform(0.42, 0.55)
        return ((rng.uniform(0.0, 0.06), gap), (gap + rng.uniform(0.05, 0.1), rng.uniform(0.92, 1.0)))
    if area > 0.045:
        return ((0.0, rng.uniform(0.9, 1.0)),)
    # A small one is short, not a sliver thinner than a pixel of a small film.
    reach = min(0.2, area * 5)
    kind = rng.random()
    if kind < 0.5:
        return ((rng.uniform(0.0, 0.05), rng.uniform(0.33, 0.42) + reach),)
    if kind < 0.85:
        start = rng.uniform(0.05, 0.4)
        return ((start, min(1.0, start + rng.uniform(0.35, 0.45) + reach)),)
    return ((rng.uniform(0.45, 0.6), 1.0),)


def _depth_for_area(canvas: Canvas, wall: Points, reach: Points, profile: Points, area: float) -> float:
    """Return the collapse that gives the region its area, found by bisection; at most DEEPEST_COLLAPSE."""
    low, high = 0.0, DEEPEST_COLLAPSE
    for _ in range(14):
        middle = (low + high) / 2
        inner = wall + reach * (middle * profile)[:, None]
        x, y = canvas.to_film(np.concatenate([wall, inner[::-1]])).T
        found = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
        low, high = (middle, high) if found < area else (low, middle)
    return high


def _cuts(
    rng: np.random.Generator, spans: tuple[tuple[float, float], ...], wall_angles: Points
) -> tuple[tuple[float, float], ...]:
    """Return the angle ranges of the label rows: one a region, or slices of a region; about half of them overlap."""
    if len(spans) > 1:
        edges = [(spans[0][1] + spans[1][0]) / 2]
        if rng.random() < 0.4:
            edges.append(float(rng.uniform(0.35, 0.65)) * spans[0][1])
    else:
        low, high = spans[0]
        count = int(rng.integers(1, 3))
        edges = [low + (high - low) * (i + 1 + float(rng.uniform(-0.15, 0.15))) / (count + 1) for i in range(count)]
    angles = np.sort(np.interp(edges, np.linspace(0, 1, len(wall_angles)), wall_angles))
    overlap = rng.uniform(0.08, 0.25) if rng.random() < 0.55 else 0.0
    bounds = [-math.inf, *angles.tolist(), math.inf]
    return tuple((bounds[i] - overlap, bounds[i + 1] + overlap) for i in range(len(bounds) - 1))
