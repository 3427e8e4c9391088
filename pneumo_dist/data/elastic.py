"""Elastic distortions (P. Simard et al., 2003): smoothed random displacements after a small affine change."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Lattice = npt.NDArray[np.float32]

# Nodes along a side of a film's field. Fields are smoother than one cell, as interpolation would flatten finer ones.
_FIELD_NODES = 65


@dataclass(frozen=True)
class ElasticField:
    """A field on 65 x 65 nodes of the film.

    `alpha` and `sigma` are shares of the side. The displacements have the standard deviation of `alpha` times uniform
    noise, smoothed over `sigma`, on the pixels of a 1024 px film. A `sigma` below a 64th of the side is raised to a
    64th, and interpolation leaves about four fifths of the deviation. `corners` moves the three points that define the
    affine change, x and y each, in shares of the side.
    """

    seed: int
    alpha: float
    sigma: float
    corners: tuple[float, ...]

    def __call__(self, points: Floats) -> Floats:
        """Map points (..., 2) of the unit square."""
        from scipy.ndimage import map_coordinates  # imported where it is used: few films need it

        field = self._field()
        nodes = np.moveaxis(points, -1, 0)[::-1] * (_FIELD_NODES - 1)
        moved = points + np.stack([map_coordinates(axis, nodes, order=1, mode="nearest") for axis in field], axis=-1)
        matrix = affine_of(self.corners)
        return np.asarray(moved @ matrix[:, :2].T + matrix[:, 2])

    def _field(self) -> Floats:
        """Return x and y displacements at the nodes, (2, nodes, nodes), in shares of the side."""
        from scipy.ndimage import gaussian_filter

        cells = max(1.0, self.sigma * (_FIELD_NODES - 1))
        noise = np.random.default_rng(self.seed).uniform(-1.0, 1.0, (2, _FIELD_NODES, _FIELD_NODES))
        # Smoothing white noise by a Gaussian leaves 1 / (2·sqrt(pi)·sigma) of its deviation.
        smooth = gaussian_filter(noise, (0, cells, cells), mode="wrap") * (2.0 * math.sqrt(math.pi) * cells)
        pixels = self.sigma * 1024
        return np.asarray(smooth * self.alpha / (2.0 * math.sqrt(math.pi) * pixels))


@dataclass(frozen=True)
class InputElastic:
    """A field on the coarse map's own nodes, for a film as large as the network's input.

    `alpha`, `sigma` and `corners` are as in `ElasticField`, but in pixels of the input. The displacements have the
    deviation and the local strain of `alpha` times uniform noise on the film's pixels, smoothed over `sigma`.
    """

    seed: int
    alpha: float
    sigma: float
    corners: tuple[float, ...]

    def in_crops(self, share: float) -> "InputElastic":
        """Return the field of the same film for crops of which one covers `share` of its side.

        Lengths counted pixels of the input, which then were those of the film. They still count those of the film, but
        the map counts pixels of a film as large as the input, which are larger. White noise on larger pixels needs a
        smaller amplitude, by the ratio of their areas, to have the same spectrum.
        """
        corners = tuple(length * share for length in self.corners)
        return InputElastic(self.seed, self.alpha * share**2, self.sigma * share, corners)

    def largest_cell(self, steps: tuple[float, float]) -> float:
        """Return the largest cell, in pixels of the input, that keeps deviation and strain to about 2 %.

        `steps` are the lengths on the film, in its pixels, of one pixel of the input along x and along y.
        """
        return 0.75 * self.sigma / max(steps)

    def displacements(self, count: int, cell: tuple[float, float]) -> Lattice:
        """Return x and y displacements at count x count nodes, float32 (count, count, 2), in pixels of the film.

        `cell` is the distance of nodes on the film, in its pixels, along x and along y.
        """
        noise = np.random.default_rng(self.seed).random((count, count, 2), np.float32)
        noise = (noise - np.float32(0.5)) * np.float32(2.0 * self.alpha / math.sqrt(cell[0] * cell[1]))
        x, y = (self._smoothing(length) for length in cell)
        return np.asarray(cv2.GaussianBlur(noise, (0, 0), x, sigmaY=y, borderType=cv2.BORDER_REFLECT), np.float32)

    def _smoothing(self, cell: float) -> float:
        """Return the standard deviation of the nodes' Gaussian in cells.

        Linear interpolation between nodes smooths too, with a variance of a sixth of a squared cell.
        """
        return math.sqrt(max((self.sigma / cell) ** 2 - 1.0 / 6.0, 0.1))


def affine_of(corners: tuple[float, ...]) -> Floats:
    """Return the 2x3 affine change that moves three points of the unit square by `corners`, in shares of its side."""
    third = 1.0 / 3.0
    points = np.array([[0.5 + third, 0.5 + third], [0.5 + third, 0.5 - third], [0.5 - third, 0.5 - third]])
    moved = points + np.array(corners).reshape(3, 2)
    return np.asarray(cv2.getAffineTransform(points.astype(np.float32), moved.astype(np.float32)), np.float64)
