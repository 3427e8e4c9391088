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

from pneumo_dist.data.elastic import ElasticField, InputElastic, affine_of

Points = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
CoarseMap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GridSteps:
    """A grid whose columns and rows get other widths.

    The film as a whole keeps its size. If the grid is open, it does not: the widths, multiples of a fifth of the side,
    add up to less or more than the film.
    """

    columns: tuple[float, ...]
    rows: tuple[float, ...]
    is_open: bool = False

    def __call__(self, points: Points) -> Points:
        """Map points (..., 2) of the unit square; points outside it move with the nearest edge."""
        axes = zip(np.moveaxis(points, -1, 0), (self.columns, self.rows), strict=True)
        return np.stack([self._moved(values, widths) for values, widths in axes], axis=-1)

    def _moved(self, values: Points, widths: tuple[float, ...]) -> Points:
        knots = np.concatenate([[0.0], np.cumsum(widths)]) / (len(widths) if self.is_open else sum(widths))
        inside = np.interp(values, np.linspace(0.0, 1.0, len(knots)), knots)
        beyond = values + (knots[-1] - 1.0) * (values > 1) if self.is_open else values
        return np.where((values >= 0) & (values <= 1), inside, beyond)


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


Warp = ElasticField | InputElastic | GridSteps | Lens


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


def cells(geometry: Geometry, size: int) -> int:
    """Return the number of cells of a coarse map along a side of the input; a cell is a whole number of pixels."""
    assert size % 32 == 0
    cell = size // (64 if size % 64 == 0 else 32)
    if isinstance(geometry.warp, InputElastic):
        largest = min(cell, int(geometry.warp.largest_cell(_steps(geometry))))
        cell = next((pixels for pixels in range(largest, 1, -1) if size % pixels == 0), 1)
    return size // cell


def coarse_map(geometry: Geometry, size: int, stored: Stored) -> CoarseMap:
    """Return the map at the centres of cells, with one more cell on each side: float32 (cells + 2, cells + 2, 2).

    `dense_map` interpolates it to every pixel. For smooth maps this is exact to a fraction of a pixel, in a thousandth
    of the bytes; a finely elastic film has more cells.
    """
    warp, count = geometry.warp, cells(geometry, size)
    if isinstance(warp, InputElastic):
        return _elastic_map(warp, geometry, count, size, stored)
    points = _apply(_to_film(geometry), _nodes(count))
    if warp is not None:
        points = warp(points)
    return _apply(_to_stored(geometry, stored), points).astype(np.float32)


def _elastic_map(warp: InputElastic, geometry: Geometry, count: int, size: int, stored: Stored) -> CoarseMap:
    """Return the coarse map of a finely elastic film.

    All other steps are affine, so the map is an affine one plus the transformed displacements. They are drawn at nodes
    in the input's frame, because a turn does not change the statistics of isotropic noise.
    """
    bend = np.vstack([affine_of(tuple(length / size for length in warp.corners)), [0.0, 0.0, 1.0]])
    from_film = _to_stored(geometry, stored) @ bend
    cell_x, cell_y = (step * size / count for step in _steps(geometry))
    displacements = warp.displacements(count + 2, (cell_x, cell_y))
    bent = cv2.transform(displacements, from_film[:2, :2] / size)
    return np.asarray(_lattice(from_film @ _to_film(geometry), count) + bent, np.float32)


def dense_map(coarse_map: CoarseMap, size: int) -> npt.NDArray[np.float32]:
    """Interpolate a coarse map to every pixel: float32 (size, size, 2)."""
    count = len(coarse_map)
    cell = size // (count - 2)
    dense = np.asarray(cv2.resize(coarse_map, (count * cell, count * cell), interpolation=cv2.INTER_LINEAR), np.float32)
    return dense[cell:-cell, cell:-cell]


def _lattice(affine: Matrix, count: int) -> CoarseMap:
    """Return an affine map at the nodes of a coarse map; the sum of a row and a column is cheaper than `_apply`."""
    centres = _centres(count)[:, None]
    return np.add(centres * affine[:2, 0], (centres * affine[:2, 1] + affine[:2, 2])[:, None], dtype=np.float32)


def _steps(geometry: Geometry) -> tuple[float, float]:
    """Return the lengths on the film of a step of 1 on the input, along x and along y."""
    linear = _to_film(geometry)[:2, :2]
    return math.hypot(*linear[:, 0]), math.hypot(*linear[:, 1])


def _centres(count: int) -> Points:
    return np.asarray((np.arange(count + 2) - 0.5) / count)


@lru_cache(maxsize=4)
def _nodes(count: int) -> Points:
    centres = _centres(count)
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
