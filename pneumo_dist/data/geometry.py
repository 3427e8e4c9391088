"""All geometry as one map from pixels of the network's input to pixels of the stored image.

Points are (x, y), x to the right. The unit square is the film with its padding. Pixels are counted from the corner of
the first one, whose centre is at 0.5. From the input back to the film: crop, shift-scale-rotate, distortion, flip.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates

Points = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
CoarseMap = npt.NDArray[np.float32]

# Nodes along a side of an elastic field. Fields are smoother than one cell, as interpolation would flatten finer ones.
_FIELD_NODES = 65


@dataclass(frozen=True)
class ElasticField:
    """Smoothed random displacements (P. Simard et al., 2003) after a small affine change.

    `alpha` and `sigma` are shares of the side. The displacements have the standard deviation of `alpha` times uniform
    noise, smoothed over `sigma`, on the pixels of a 1024 px film. A `sigma` below a 64th of the side is raised to a
    64th, and interpolation leaves about four fifths of the deviation. `corners` moves the three points that define the
    affine change, x and y each, in shares of the side.
    """

    seed: int
    alpha: float
    sigma: float
    corners: tuple[float, ...]

    def __call__(self, points: Points) -> Points:
        """Map points (..., 2) of the unit square."""
        field = self._field()
        nodes = np.moveaxis(points, -1, 0)[::-1] * (_FIELD_NODES - 1)
        moved = points + np.stack([map_coordinates(axis, nodes, order=1, mode="nearest") for axis in field], axis=-1)
        matrix = self._affine()
        return np.asarray(moved @ matrix[:, :2].T + matrix[:, 2])

    def _field(self) -> Points:
        """Return x and y displacements at the nodes, (2, nodes, nodes), in shares of the side."""
        cells = max(1.0, self.sigma * (_FIELD_NODES - 1))
        noise = np.random.default_rng(self.seed).uniform(-1.0, 1.0, (2, _FIELD_NODES, _FIELD_NODES))
        # Smoothing white noise by a Gaussian leaves 1 / (2·sqrt(pi)·sigma) of its deviation.
        smooth = gaussian_filter(noise, (0, cells, cells), mode="wrap") * (2.0 * math.sqrt(math.pi) * cells)
        pixels = self.sigma * 1024
        return np.asarray(smooth * self.alpha / (2.0 * math.sqrt(math.pi) * pixels))

    def _affine(self) -> Matrix:
        third = 1.0 / 3.0
        corners = np.array([[0.5 + third, 0.5 + third], [0.5 + third, 0.5 - third], [0.5 - third, 0.5 - third]])
        moved = corners + np.array(self.corners).reshape(3, 2)
        return np.asarray(cv2.getAffineTransform(corners.astype(np.float32), moved.astype(np.float32)), np.float64)


@dataclass(frozen=True)
class GridSteps:
    """A grid whose columns and rows get other widths; the film as a whole keeps its size."""

    columns: tuple[float, ...]
    rows: tuple[float, ...]

    def __call__(self, points: Points) -> Points:
        """Map points (..., 2) of the unit square; points outside it do not move."""
        return np.stack([_steps(points[..., 0], self.columns), _steps(points[..., 1], self.rows)], axis=-1)


def _steps(values: Points, widths: tuple[float, ...]) -> Points:
    knots = np.concatenate([[0.0], np.cumsum(widths)]) / sum(widths)
    inside = np.interp(values, np.linspace(0.0, 1.0, len(knots)), knots)
    return np.where((values >= 0) & (values <= 1), inside, values)


@dataclass(frozen=True)
class Lens:
    """Radial distortion about the centre plus `axis`: radius r becomes r·(1 + k·r² + k·r⁴), in shares of the side."""

    k: float
    axis: tuple[float, float]

    def __call__(self, points: Points) -> Points:
        """Map points (..., 2) of the unit square."""
        centre = 0.5 + np.array(self.axis)
        arm = points - centre
        square = (arm**2).sum(axis=-1, keepdims=True)
        return np.asarray(centre + arm * (1.0 + self.k * square + self.k * square**2))


Warp = ElasticField | GridSteps | Lens


@dataclass(frozen=True)
class Geometry:
    """`angle` in radians; `shift` (x, y) and `crop` (left, top, width, height) in shares of the side."""

    flip: bool = False
    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    warp: Warp | None = None
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Stored:
    """The position of a stored image: it starts at `origin` (x, y) of a square of `side` pixels."""

    side: int
    origin: tuple[int, int] = (0, 0)


def matrix(geometry: Geometry, size: int, stored: Stored) -> Matrix:
    """Return the 2x3 map from pixels of the (size, size) input to those of the stored image, without the distortion."""
    return (_to_stored(geometry, stored) @ _to_film(geometry) @ _affine(1 / size, 0, 0, 1 / size, 0, 0))[:2]


def cells(size: int) -> int:
    """Return the number of cells of a coarse map along a side of the input; a cell is a whole number of pixels."""
    assert size % 32 == 0
    return 64 if size % 64 == 0 else 32


def coarse_map(geometry: Geometry, size: int, stored: Stored) -> CoarseMap:
    """Return the map at the centres of cells, with one more cell on each side: float32 (cells + 2, cells + 2, 2).

    `dense_map` interpolates it to every pixel. For smooth maps this is exact to a fraction of a pixel, in a thousandth
    of the bytes.
    """
    points = _apply(_to_film(geometry), _nodes(cells(size)))
    if geometry.warp is not None:
        points = geometry.warp(points)
    return _apply(_to_stored(geometry, stored), points).astype(np.float32)


def dense_map(coarse_map: CoarseMap, size: int) -> npt.NDArray[np.float32]:
    """Interpolate a coarse map to every pixel: float32 (size, size, 2)."""
    count = len(coarse_map)
    cell = size // (count - 2)
    dense = np.asarray(cv2.resize(coarse_map, (count * cell, count * cell), interpolation=cv2.INTER_LINEAR), np.float32)
    return dense[cell:-cell, cell:-cell]


@lru_cache(maxsize=4)
def _nodes(count: int) -> Points:
    centres = (np.arange(count + 2) - 0.5) / count
    nodes = np.stack(np.meshgrid(centres, centres, indexing="xy"), axis=-1)
    nodes.flags.writeable = False
    return nodes


def _to_film(geometry: Geometry) -> Matrix:
    """Return the map from the input's unit square to the film's, before distortion: crop, shift, rotate and scale."""
    left, top, width, height = geometry.crop
    cosine, sine = math.cos(geometry.angle), math.sin(geometry.angle)
    to_centre = _affine(1, 0, 0, 1, -0.5 - geometry.shift[0], -0.5 - geometry.shift[1])
    turn = _affine(cosine, sine, -sine, cosine, 0, 0)
    zoom = 1.0 / geometry.scale
    return _affine(zoom, 0, 0, zoom, 0.5, 0.5) @ turn @ to_centre @ _affine(width, 0, 0, height, left, top)


def _to_stored(geometry: Geometry, stored: Stored) -> Matrix:
    """Return the map from the film's unit square to pixels of the stored image: flip, size and origin."""
    flip, start = (-1.0, 1.0) if geometry.flip else (1.0, 0.0)
    side, (x, y) = stored.side, stored.origin
    return _affine(flip * side, 0, 0, side, start * side - x, -y)


def _apply(affine: Matrix, points: Points) -> Points:
    return np.asarray(points @ affine[:2, :2].T + affine[:2, 2])


def _affine(xx: float, xy: float, yx: float, yy: float, x: float, y: float) -> Matrix:
    return np.array([[xx, xy, x], [yx, yy, y], [0.0, 0.0, 1.0]])
