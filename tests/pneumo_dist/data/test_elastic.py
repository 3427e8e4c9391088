"""Elastic distortions have the statistics of smoothed uniform noise, and those of the first place's own code."""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from pneumo_dist.data.elastic import ElasticField, InputElastic
from pneumo_dist.data.geometry import Geometry, Stored, cells, coarse_map, dense_map

FILM = 1024
RECIPE = (120 / FILM, 6 / FILM)  # alpha and sigma
STILL = (0.0,) * 6
# RECIPES: albumentations 0.3.1 on films of any size.
DEVIATION, SIGMA = 3.26, 6.0


# -- on 65 nodes of the film


def displacements(field: ElasticField, count: int = 60) -> npt.NDArray[np.float64]:
    """Return the displacements of a field at scattered points, in pixels of a 1024 px film, (n, 2)."""
    points = np.random.default_rng(8).uniform(0.02, 0.98, (count * count, 2))
    return np.asarray((field(points) - points) * FILM)


@pytest.mark.parametrize(("alpha", "sigma"), [(120, 6), (120, 16), (120, 32), (600, 50)])
def test_elastic_displacements_have_the_deviation_of_smoothed_uniform_noise(alpha: float, sigma: float) -> None:
    # Only a few large waves fit a film, so the estimate needs many fields.
    fields = [ElasticField(seed, alpha / FILM, sigma / FILM, STILL) for seed in range(24)]
    moved = np.stack([displacements(field, 20) for field in fields])
    expected = alpha / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma)
    for axis in (0, 1):
        deviation = math.sqrt(float((moved[..., axis] ** 2).mean()))
        assert abs(deviation / expected - 1) < 0.2
        assert abs(float(moved[..., axis].mean())) < 0.25 * expected


@pytest.mark.parametrize("size", [64, 96, 512])
def test_the_recipes_elastic_field_keeps_three_quarters_of_its_deviation_in_the_dense_map(size: int) -> None:
    still = dense_map(coarse_map(Geometry(), size, Stored(FILM)), size)
    moved = [
        dense_map(coarse_map(Geometry(warp=ElasticField(seed, *RECIPE, STILL)), size, Stored(FILM)), size) - still
        for seed in range(4)
    ]
    expected = 120 / math.sqrt(3) / (2 * math.sqrt(math.pi) * 6)
    assert 0.75 * expected < float(np.std(moved)) < 1.1 * expected


def test_elastic_field_depends_on_its_seed_and_its_axes_differ() -> None:
    one, other = displacements(ElasticField(1, *RECIPE, STILL)), displacements(ElasticField(2, *RECIPE, STILL))
    np.testing.assert_array_equal(one, displacements(ElasticField(1, *RECIPE, STILL)))
    for left, right in ((one[:, 0], other[:, 0]), (one[:, 1], other[:, 1]), (one[:, 0], one[:, 1])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.2


def test_elastic_field_is_smooth() -> None:
    field = ElasticField(3, 120 / FILM, 32 / FILM, STILL)
    line = np.stack([np.linspace(0.1, 0.9, 2000), np.full(2000, 0.5)], axis=-1)
    moved = (field(line) - line) * FILM
    assert np.abs(np.diff(moved, axis=0)).max() < 0.1 * moved.std()


def test_corners_move_the_three_points_that_define_the_affine_part() -> None:
    corners = (0.01, -0.02, 0.03, 0.01, -0.01, 0.02)
    third = 1 / 3
    points = np.array([[0.5 + third, 0.5 + third], [0.5 + third, 0.5 - third], [0.5 - third, 0.5 - third]])
    moved = ElasticField(1, 0.0, 6 / FILM, corners)(points)
    np.testing.assert_allclose(moved - points, np.array(corners).reshape(3, 2), atol=1e-6)


# -- on the nodes of the coarse map


def original(size: int, seed: int) -> npt.NDArray[np.float32]:
    """Return one axis of the first place's displacements (albumentations 0.3.1), in pixels of the loaded film."""
    noise = np.random.default_rng(seed).uniform(-1.0, 1.0, (size, size)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 6.0, borderType=cv2.BORDER_REFLECT) * 120.0, np.float32)


def fine(seed: int, alpha: float = 120.0, sigma: float = 6.0, corners: tuple[float, ...] = STILL) -> InputElastic:
    return InputElastic(seed, alpha, sigma, corners)


def moved_by(warp: InputElastic, size: int, **moves: Any) -> npt.NDArray[np.float32]:
    """Return the displacements of every pixel that the loaders see, (size, size, 2), in pixels of a film of `size`."""
    bent, still = Geometry(warp=warp, **moves), Geometry(**moves)
    return np.asarray(
        dense_map(coarse_map(bent, size, Stored(size)), size) - dense_map(coarse_map(still, size, Stored(size)), size)
    )


def root_mean_square(values: list[npt.NDArray[Any]]) -> float:
    return math.sqrt(float(np.mean([np.square(value, dtype=np.float64).mean() for value in values])))


def strains(fields: list[npt.NDArray[Any]], steps: tuple[float, float] = (1.0, 1.0)) -> float:
    """Return the root mean square of the change of displacement per pixel of the film, along both axes."""
    return root_mean_square([np.diff(field, axis=1 - axis) / steps[axis] for field in fields for axis in (0, 1)])


@pytest.mark.parametrize(
    ("size", "moves", "steps"),
    [
        (512, {}, (1.0, 1.0)),
        (768, {}, (1.0, 1.0)),
        (1024, {}, (1.0, 1.0)),
        (512, {"angle": 0.6, "scale": 0.9, "shift": (0.05, -0.02)}, (1 / 0.9, 1 / 0.9)),
        (512, {"angle": -0.4, "scale": 1.1, "flip": True}, (1 / 1.1, 1 / 1.1)),
        (512, {"angle": 0.6, "crop": (0.1, 0.15, 0.8, 0.6)}, (0.8, 0.6)),
    ],
)
def test_displacement_and_strain_are_those_of_the_first_place(
    size: int, moves: dict[str, Any], steps: tuple[float, float]
) -> None:
    count = 12 if size == 512 else 4
    ours = [moved_by(fine(seed), size, **moves)[..., axis] for seed in range(count) for axis in (0, 1)]
    theirs = [original(size, seed) for seed in range(count)]
    deviation, strain = root_mean_square(ours), strains(ours, steps)
    assert abs(deviation / root_mean_square(theirs) - 1) < 0.04 and abs(strain / strains(theirs) - 1) < 0.05
    assert abs(deviation / DEVIATION - 1) < 0.03
    # For noise smoothed by a Gaussian the strain is the deviation over sqrt(2)·sigma.
    assert abs(deviation / strain / math.sqrt(2) / SIGMA - 1) < 0.05


def test_film_is_folded_as_often_as_by_the_first_place() -> None:
    """A displacement that falls by more than a pixel per pixel folds the film."""
    ours = np.stack([moved_by(fine(seed), 512)[..., axis] for seed in range(16) for axis in (0, 1)])
    theirs = np.stack([original(512, seed) for seed in range(32)])
    shares = [float((np.diff(fields, axis=2) < -1).mean()) for fields in (ours, theirs)]
    assert 0.003 < shares[1] < 0.007 and abs(shares[0] / shares[1] - 1) < 0.2


def test_nodes_are_noise_smoothed_by_the_rest_of_sigma() -> None:
    warp, (x, y) = fine(3), (4.0, 3.0)
    noise = np.random.default_rng(3).random((40, 40, 2), np.float32) * 2.0 - 1.0
    rests = [math.sqrt((6.0 / cell) ** 2 - 1 / 6) for cell in (y, x)]
    expected = gaussian_filter(noise, (*rests, 0.0), mode="reflect") * 120.0 / math.sqrt(x * y)
    np.testing.assert_allclose(warp.displacements(40, (x, y)), expected, atol=2e-3)


@dataclass(frozen=True)
class Given:
    """Known displacements of the coarse map's nodes, then the affine change of a film's field without any."""

    shares: npt.NDArray[Any]
    affine: ElasticField

    def __call__(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self.affine(points + self.shares)


@pytest.mark.parametrize(("size", "side"), [(64, 64), (128, 300)])
def test_map_moves_points_of_the_film_then_bends_then_flips_it(size: int, side: int) -> None:
    corners = (2.0, -3.0, 1.0, 3.5, -2.5, 1.5)
    moves: dict[str, Any] = {"flip": True, "angle": 0.3, "scale": 1.1, "shift": (0.05, -0.04)}
    stored, warp = Stored(side, (7, 0)), fine(5, corners=corners)
    count = cells(Geometry(warp=warp, **moves), size) + 2
    length = size / (count - 2) / 1.1
    shares = warp.displacements(count, (length, length)) / size
    affine = ElasticField(0, 0.0, 1.0, tuple(corner / size for corner in corners))
    given: Any = Given(shares.astype(np.float64), affine)
    # Where a film's field has the same nodes.
    assert count - 2 == cells(Geometry(), size)
    expected = coarse_map(Geometry(warp=given, **moves), size, stored)
    np.testing.assert_allclose(coarse_map(Geometry(warp=warp, **moves), size, stored), expected, atol=1e-3)


def test_displacements_depend_on_the_seed_and_the_axes_differ() -> None:
    one, other = moved_by(fine(1), 256), moved_by(fine(2), 256)
    np.testing.assert_array_equal(one, moved_by(fine(1), 256))
    for left, right in ((one[..., 0], other[..., 0]), (one[..., 1], other[..., 1]), (one[..., 0], one[..., 1])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("size", "sigma", "scale", "count"),
    [
        (512, 6.0, 1.0, 128),
        (1024, 6.0, 1.0, 256),
        (1024, 6.0, 0.9, 256),
        (1024, 6.0, 0.8, 512),
        (768, 6.0, 1.0, 192),
        (992, 6.0, 1.0, 248),
        (512, 50.0, 1.0, 64),
        (96, 6.0, 1.0, 32),
        (96, 1.0, 1.0, 96),
    ],
)
def test_cells_are_whole_pixels_and_as_fine_as_the_field_needs(
    size: int, sigma: float, scale: float, count: int
) -> None:
    geometry = Geometry(scale=scale, warp=fine(1, sigma=sigma))
    assert cells(geometry, size) == count and size % count == 0
    assert coarse_map(geometry, size, Stored(size)).shape == (count + 2, count + 2, 2)
