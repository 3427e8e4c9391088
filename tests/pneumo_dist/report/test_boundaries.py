"""Distances between boundaries, against the definition pixel by pixel."""

import math

import numpy as np
import pytest
from scipy import ndimage

from pneumo_dist.report.boundaries import TOLERANCE_MM, boundary, boundary_distances, boundary_scores
from pneumo_dist.scoring.arrays import Map


def naive_boundary(mask: Map) -> list[tuple[int, int]]:
    """Pixels of a mask of which one of the four neighbours is outside the mask or the array."""
    height, width = mask.shape

    def has(row: int, column: int) -> bool:
        return 0 <= row < height and 0 <= column < width and bool(mask[row, column])

    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
    pixels = [(int(row), int(column)) for row, column in np.argwhere(mask)]
    return [(row, column) for row, column in pixels if not all(has(row + y, column + x) for y, x in steps)]


def naive_distances(of: Map, to: Map, spacing: tuple[float, float]) -> list[float]:
    ends = naive_boundary(to)
    return [
        min(math.sqrt(((row - y) * spacing[0]) ** 2 + ((column - x) * spacing[1]) ** 2) for y, x in ends)
        for row, column in naive_boundary(of)
    ]


def percentile(values: list[float], share: float) -> float:
    """The percentile by linear interpolation between the sorted values."""
    ranked, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])


def blobs(seed: int) -> Map:
    """A random mask of blocks, some of them at an edge, with holes."""
    random = np.random.default_rng(seed)
    coarse = (random.random((5, 6)) < 0.3).astype(np.uint8)
    coarse[random.integers(5), random.integers(6)] = 1
    mask = np.kron(coarse, np.ones((4, 5), np.uint8))
    mask[random.random(mask.shape) < 0.05] = 0
    return mask if mask.any() else np.ones_like(mask)


@pytest.mark.parametrize("seed", range(12))
def test_scores_are_those_of_the_definition(seed: int) -> None:
    truth, mask, spacing = blobs(seed), blobs(seed + 100), (0.4 + seed / 10, 0.7)
    assert sorted(naive_boundary(truth)) == [tuple(each) for each in np.argwhere(boundary(truth)).tolist()]
    there, back = naive_distances(truth, mask, spacing), naive_distances(mask, truth, spacing)
    found = boundary_distances(truth, mask, np.array(spacing))
    np.testing.assert_allclose(found[0], there, rtol=1e-12)
    np.testing.assert_allclose(found[1], back, rtol=1e-12)
    hd95, nsd = boundary_scores(truth, mask, np.array(spacing))
    assert hd95 == pytest.approx(max(percentile(there, 0.95), percentile(back, 0.95)), rel=1e-12)
    near = sum(distance <= TOLERANCE_MM for distance in (*there, *back))
    assert nsd == near / (len(there) + len(back)) and 0 < nsd < 1


@pytest.mark.parametrize("seed", range(20, 26))
def test_distances_are_those_of_the_distance_transform(seed: int) -> None:
    """Metrics Reloaded reads distances off the transform of the whole array."""
    truth, mask, spacing = blobs(seed), blobs(seed + 100), np.array([0.35, 0.4])
    edges = [each - ndimage.binary_erosion(each) for each in (truth, mask)]
    away = [ndimage.distance_transform_edt(1 - edge, sampling=spacing) for edge in edges]
    found = boundary_distances(truth, mask, spacing)
    np.testing.assert_allclose(found[0], away[1][edges[0] > 0], rtol=1e-12)
    np.testing.assert_allclose(found[1], away[0][edges[1] > 0], rtol=1e-12)


def test_masks_in_a_large_empty_film_have_the_same_scores() -> None:
    truth, mask, spacing = blobs(1), blobs(2), np.array([0.3, 0.5])
    large, larger = (np.pad(each, ((31, 70), (53, 8))) for each in (truth, mask))
    assert boundary_scores(large, larger, spacing) == boundary_scores(truth, mask, spacing)


def test_scores_are_symmetric_and_perfect_for_equal_masks() -> None:
    truth, mask, spacing = blobs(3), blobs(4), np.array([1.1, 0.9])
    assert boundary_scores(truth, mask, spacing) == boundary_scores(mask, truth, spacing)
    assert boundary_scores(truth, truth, spacing) == (0.0, 1.0)


def test_a_shift_of_a_square_is_its_distance_and_tolerance_is_included() -> None:
    truth = np.zeros((60, 60), np.uint8)
    truth[10:30, 10:30] = 1
    spacing = np.array([1.0, 1.0])
    assert boundary_scores(truth, np.roll(truth, 20, axis=1), spacing)[0] == 20
    assert boundary_scores(truth, np.roll(truth, 2, axis=0), spacing)[1] == 1.0
    assert boundary_scores(truth, np.roll(truth, 3, axis=0), spacing)[1] < 1.0
    with pytest.raises(AssertionError, match="an empty mask has no boundary"):
        boundary_scores(truth, np.zeros_like(truth), spacing)
