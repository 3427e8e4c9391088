"""Drawing surface of the synthetic films: soft layers from outlines given in chest units.

Chest units: the film is 1 wide and 1 high, x counts from the midline (positive towards the film's right edge, which is
the patient's left), y from the film's top. A canvas maps them to pixels, so that a film looks the same at any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Layer = npt.NDArray[np.float32]

FRACTION_BITS = 5


@dataclass(frozen=True)
class Stroke:
    """A line: points (n, 2) in chest units, width in chest units, level from 0 to 255 on its layer."""

    points: Points
    width: float
    level: float


@dataclass(frozen=True)
class Canvas:
    """A square grid of `size` pixels; `matrix` (2, 3) maps chest units to fractions of the film."""

    size: int
    matrix: Points

    def to_film(self, points: Points) -> Points:
        """Return points (n, 2) in chest units as fractions (n, 2) of the film's width and height."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_chest(self, fractions: Points) -> Points:
        """Return film fractions (n, 2) as chest units (n, 2)."""
        return np.asarray((fractions - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T, np.float64)

    def fixed_point(self, points: Points) -> npt.NDArray[np.int32]:
        """Return points in OpenCV's fixed-point pixel coordinates, int32 of shape (n, 2)."""
        pixels = self.to_film(points) * self.size - 0.5
        return np.round(pixels * (1 << FRACTION_BITS)).astype(np.int32)

    def fill(self, *outlines: Points) -> Layer:
        """Return the union of closed outlines as float32 (size, size), 0 outside, 1 inside, smooth at the edge."""
        layer = np.zeros((self.size, self.size), np.uint8)
        for outline in outlines:
            cv2.fillPoly(layer, [self.fixed_point(outline)], 255, cv2.LINE_AA, FRACTION_BITS)
        return layer.astype(np.float32) / np.float32(255)

    def stroke(self, strokes: Sequence[Stroke]) -> Layer:
        """Return lines as float32 (size, size) in units of their levels; later lines cover earlier ones."""
        layer = np.zeros((self.size, self.size), np.uint8)
        scale = self.size * math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))
        for line in strokes:
            wanted = line.width * scale
            pixels = max(1, round(wanted))
            # A line thinner than a pixel keeps its total brightness by getting fainter.
            level = round(line.level * min(1.0, wanted / pixels))
            cv2.polylines(layer, [self.fixed_point(line.points)], False, level, pixels, cv2.LINE_AA, FRACTION_BITS)
        return layer.astype(np.float32)

    def blur(self, layer: Layer, sigma: float) -> Layer:
        """Return the layer under a Gaussian of `sigma` film widths; wide ones run on a reduced grid."""
        pixels = sigma * self.size
        if pixels < 6:
            return np.asarray(cv2.GaussianBlur(layer, (0, 0), max(pixels, 0.3)), np.float32)
        reduced = max(16, int(self.size * 3 / pixels))
        small = cv2.resize(layer, (reduced, reduced), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma * reduced)
        return np.asarray(cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_LINEAR), np.float32)

    def texture(self, rng: np.random.Generator, cells: int) -> Layer:
        """Return smooth noise, float32 (size, size), zero mean and about unit variance, `cells` grid cells wide."""
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        fine = cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return np.asarray(fine, np.float32) * np.float32(1.3)


def spline(points: Sequence[tuple[float, float]] | Points, count: int) -> Points:
    """Return `count` points (count, 2) evenly spaced in chord length on a smooth curve through the given points."""
    knots = np.asarray(points, np.float64)
    chords = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(knots, axis=0).T))])
    slopes = np.gradient(knots, chords, axis=0)
    at = np.linspace(0, chords[-1], count)
    piece = np.clip(np.searchsorted(chords, at, side="right") - 1, 0, len(knots) - 2)
    span = (chords[piece + 1] - chords[piece])[:, None]
    u = (at - chords[piece])[:, None] / span
    # Cubic Hermite pieces whose slope at a knot comes from its neighbours.
    start = (1 + 2 * u) * (1 - u) ** 2 * knots[piece] + u * (1 - u) ** 2 * span * slopes[piece]
    end = u**2 * (3 - 2 * u) * knots[piece + 1] + u**2 * (u - 1) * span * slopes[piece + 1]
    return np.asarray(start + end, np.float64)


def ellipse(x: float, y: float, half_width: float, half_height: float) -> Points:
    """Return the outline of an upright ellipse as points (48, 2)."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], axis=1)
