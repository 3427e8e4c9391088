"""Maps from the input to the stored image, against the definition for single pixels, and in DALI against NumPy."""

import cmath
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pneumo_dist.data.elastic import ElasticField, InputElastic
from pneumo_dist.data.geometry import (
    Geometry,
    GridSteps,
    Lens,
    Stored,
    Warp,
    cells,
    coarse_map,
    dense_map,
    matrix,
)
from pneumo_dist.data.resample import BORDERS

FILM = 1024
RECIPE = (120 / FILM, 6 / FILM)  # alpha and sigma
STILL = (0.0,) * 6

shares = st.floats(-0.5, 0.5)
widths = st.tuples(*[st.floats(0.05, 1.95)] * 5)
affines = st.builds(
    Geometry,
    flip=st.booleans(),
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(0.2, 3),
    shift=st.tuples(shares, shares),
    crop=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.1, 0.5), st.floats(0.1, 0.5)),
)
sizes = st.integers(1, 24).map(lambda count: 32 * count)
stored_images = st.builds(Stored, st.integers(16, 4000), st.tuples(st.integers(0, 500), st.integers(0, 500)))
coordinates = st.floats(-1, 2)


def seen_at(film: complex, geometry: Geometry, size: int) -> complex:
    """Map a point of the undistorted film (shares of its side) to the input: the definition, forwards."""
    if geometry.flip:
        film = complex(1 - film.real, film.imag)
    centre = 0.5 + 0.5j
    moved = (film - centre) * cmath.rect(geometry.scale, geometry.angle) + centre + complex(*geometry.shift)
    left, top, width, height = geometry.crop
    return complex((moved.real - left) / width * size, (moved.imag - top) / height * size)


def stored_at(x: Any, y: Any, geometry: Geometry, size: int, stored: Stored) -> npt.NDArray[np.float64]:
    """Map points of the input to the stored image: the definition, backwards, with the distortion."""
    left, top, width, height = geometry.crop
    window = left + width * np.atleast_1d(x) / size + 1j * (top + height * np.atleast_1d(y) / size)
    centre = 0.5 + 0.5j
    film = (window - centre - complex(*geometry.shift)) / cmath.rect(geometry.scale, geometry.angle) + centre
    points = np.stack([film.real, film.imag], axis=-1)
    if geometry.warp is not None:
        assert not isinstance(geometry.warp, InputElastic), "defined at nodes alone"
        points = geometry.warp(points)
    if geometry.flip:
        points = points * [-1, 1] + [1, 0]
    return np.asarray(points * stored.side - stored.origin)


def exact_map(geometry: Geometry, size: int, stored: Stored, step: int) -> npt.NDArray[np.float64]:
    """Return the definition's map at the centre of every `step`-th pixel."""
    centres = np.arange(size)[::step] + 0.5
    x, y = np.meshgrid(centres, centres)
    return stored_at(x, y, geometry, size, stored)


def deviation(geometry: Geometry, size: int, stored: Stored, step: int = 7) -> npt.NDArray[np.float64]:
    """Return the error of the dense map, in pixels of the input, at the pixels that show the film."""
    exact = exact_map(geometry, size, stored, step)
    actual = dense_map(coarse_map(geometry, size, stored), size)[::step, ::step]
    inside = ((exact >= 0) & (exact <= stored.side)).all(axis=-1)
    return np.asarray(np.abs(actual - exact).max(axis=-1)[inside] * size / stored.side)


# -- the matrix


@given(affines, sizes, stored_images, coordinates, coordinates)
def test_matrix_maps_a_point_of_the_input_back_to_the_film(
    geometry: Geometry, size: int, stored: Stored, x: float, y: float
) -> None:
    seen = seen_at(complex(x, y), geometry, size)
    actual = matrix(geometry, size, stored) @ np.array([seen.real, seen.imag, 1.0])
    expected = (x * stored.side - stored.origin[0], y * stored.side - stored.origin[1])
    np.testing.assert_allclose(actual, expected, atol=1e-7)


@given(affines, sizes, stored_images, coordinates, coordinates)
def test_matrix_equals_the_definition_at_any_pixel(
    geometry: Geometry, size: int, stored: Stored, x: float, y: float
) -> None:
    actual = matrix(geometry, size, stored) @ np.array([x * size, y * size, 1.0])
    np.testing.assert_allclose(actual, stored_at(x * size, y * size, geometry, size, stored)[0], atol=1e-7)


def to_stored(geometry: Geometry, point: tuple[float, float], size: int, side: int) -> npt.NDArray[np.float64]:
    return np.asarray(matrix(geometry, size, Stored(side)) @ np.array([*point, 1.0]))


@pytest.mark.parametrize(("size", "side"), [(128, 128), (128, 512), (96, 64)])
def test_identity_maps_corners_to_corners(size: int, side: int) -> None:
    for x in (0, 1):
        for y in (0, 1):
            corner = to_stored(Geometry(), (x * size, y * size), size, side)
            np.testing.assert_allclose(corner, [x * side, y * side], atol=1e-9)


def test_flip_mirrors_left_and_right_only_and_twice_is_the_identity() -> None:
    flip = Geometry(flip=True)
    np.testing.assert_allclose(to_stored(flip, (10, 30), 64, 64), [54, 30], atol=1e-12)
    twice = np.vstack([matrix(flip, 64, Stored(64)), [0, 0, 1]])
    np.testing.assert_allclose(twice @ twice, np.eye(3), atol=1e-12)


def test_positive_shift_moves_the_film_right_and_down() -> None:
    shifted = Geometry(shift=(0.25, 0.125))
    np.testing.assert_allclose(to_stored(shifted, (32 + 16, 32 + 8), 64, 64), [32, 32], atol=1e-12)


def test_larger_scale_makes_the_film_larger() -> None:
    np.testing.assert_allclose(to_stored(Geometry(scale=2.0), (64, 64), 64, 64), [48, 48], atol=1e-12)


def test_crop_stretches_its_window_to_the_input() -> None:
    window = Geometry(crop=(0.25, 0.5, 0.5, 0.25))
    np.testing.assert_allclose(to_stored(window, (0, 0), 64, 64), [16, 32], atol=1e-12)
    np.testing.assert_allclose(to_stored(window, (64, 64), 64, 64), [48, 48], atol=1e-12)


def test_stored_image_inside_its_square_is_counted_from_its_own_corner() -> None:
    inside = Stored(100, (10, 0))
    np.testing.assert_allclose(matrix(Geometry(), 100, inside) @ [10, 0, 1], [0, 0], atol=1e-12)
    np.testing.assert_allclose(matrix(Geometry(flip=True), 100, inside) @ [10, 0, 1], [80, 0], atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_matrix_is_flip_then_scale_and_clockwise_turn_about_the_centre_then_shift(flip: bool) -> None:
    geometry = Geometry(flip=flip, angle=math.radians(20), scale=1.15, shift=(0.05, -0.08))
    turn = cv2.getRotationMatrix2D((0.0, 0.0), -20, 1.15)[:, :2]  # clockwise
    for point in ((0.0, 0.0), (0.3, -0.2), (-0.4, 0.45)):  # from the centre, as shares of the side
        mirrored = np.array([-point[0] if flip else point[0], point[1]])
        x, y = (turn @ mirrored + geometry.shift + 0.5) * 64
        np.testing.assert_allclose(to_stored(geometry, (x, y), 64, 160), (np.array(point) + 0.5) * 160, atol=1e-9)


# -- the coarse map and its dense map


@settings(max_examples=40, deadline=None)
@given(affines, st.sampled_from([32, 64, 96, 128, 160, 320]), stored_images)
def test_dense_map_of_an_affine_change_is_exact_to_float32(geometry: Geometry, size: int, stored: Stored) -> None:
    exact = exact_map(geometry, size, stored, 13)
    actual = dense_map(coarse_map(geometry, size, stored), size)
    assert actual.shape == (size, size, 2) and actual.dtype == np.float32
    tolerance = 8 * float(np.finfo(np.float32).eps) * max(1.0, float(np.abs(actual).max()))
    np.testing.assert_allclose(actual[::13, ::13], exact, atol=tolerance)


@pytest.mark.parametrize(
    "warp",
    [
        Lens(1.9, (0.0004, -0.0003)),
        GridSteps((1.3, 0.7, 1.2, 0.8, 1.0), (0.7, 1.3, 0.7, 1.1, 0.9)),
        ElasticField(5, *RECIPE, (0.003, -0.002, 0.001, 0.003, -0.003, 0.002)),
    ],
)
def test_coarse_map_and_dense_map_of_one_pixel_cells_are_exact(warp: Warp) -> None:
    assert cells(Geometry(), 64) == 64
    moved = Geometry(True, 0.5, 1.08, (0.04, -0.05), warp, (0.05, 0.1, 0.8, 0.85))
    assert deviation(moved, 64, Stored(1024)).max() < 1e-3


# At 512 px a cell is 8 px. A lens bends most at the film's corners. The recipe's elastic field is as fine as the coarse
# map, which therefore reduces its amplitude.
@pytest.mark.parametrize(
    ("warp", "largest", "mean"),
    [
        (Lens(2.0, (0.0, 0.0)), 0.2, 0.07),
        (Lens(-2.0, (0.0, 0.0)), 0.4, 0.1),
        (Lens(0.5, (0.0005, -0.0005)), 0.06, 0.02),
        (ElasticField(1, 120 / FILM, 32 / FILM, STILL), 0.1, 0.02),
        (ElasticField(1, *RECIPE, STILL), 1.2, 0.25),
        (GridSteps((1.3, 0.7, 1.3, 0.7, 1.3), (0.7, 1.3, 0.7, 1.3, 0.7)), 1.3, 0.1),
    ],
)
def test_dense_map_reproduces_a_distortion_to_a_fraction_of_a_pixel(warp: Warp, largest: float, mean: float) -> None:
    off = deviation(Geometry(True, 0.3, 1.05, (0.03, -0.04), warp), 512, Stored(1024), step=13)
    assert len(off) > 500
    assert off.max() < largest
    assert off.mean() < mean


def test_dense_map_of_grid_steps_is_off_only_within_a_cell_of_a_knot() -> None:
    size, steps = 512, GridSteps((1.3, 0.7, 1.2, 0.8, 1.0), (1.0,) * 5)
    exact = exact_map(Geometry(warp=steps), size, Stored(size), 1)[0, :, 0]
    actual = dense_map(coarse_map(Geometry(warp=steps), size, Stored(size)), size)[0, :, 0]
    knots = np.arange(6) * size / 5
    near = (np.abs(np.arange(size)[:, None] + 0.5 - knots) <= size / cells(Geometry(), size)).any(axis=1)
    assert 0.1 < np.abs(actual - exact)[near].max() < 1.3
    assert np.abs(actual - exact)[~near].max() < 1e-3


@pytest.mark.parametrize("size", [32, 64, 96, 160, 512])
def test_coarse_map_is_much_smaller_than_the_dense_map_and_one_cell_wider_on_each_side(size: int) -> None:
    coarse = coarse_map(Geometry(), size, Stored(size))
    count = cells(Geometry(), size)
    assert size % count == 0
    assert coarse.shape == (count + 2, count + 2, 2) and coarse.dtype == np.float32
    half = size / count / 2
    np.testing.assert_allclose(coarse[0, 0], [-half, -half], atol=1e-4)
    np.testing.assert_allclose(coarse[-1, 1], [half, size + half], atol=1e-4)


# -- the distortions


@given(st.floats(-2, 2), st.tuples(st.floats(-0.01, 0.01), st.floats(-0.01, 0.01)), coordinates, coordinates)
def test_lens_moves_a_point_along_its_radius_by_the_formula(
    k: float, axis: tuple[float, float], x: float, y: float
) -> None:
    actual = complex(*Lens(k, axis)(np.array([x, y])))
    centre = complex(0.5 + axis[0], 0.5 + axis[1])
    arm = complex(x, y) - centre
    radius = abs(arm)
    assert abs(actual - centre - arm * (1 + k * radius**2 + k * radius**4)) < 1e-9


@given(widths, widths, st.lists(st.tuples(coordinates, coordinates), min_size=2, max_size=2))
def test_grid_steps_keep_order_edges_and_everything_outside(
    columns: tuple[float, ...], rows: tuple[float, ...], points: list[tuple[float, float]]
) -> None:
    steps = GridSteps(columns, rows)
    for corner in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]):
        np.testing.assert_allclose(steps(np.array(corner)), corner, atol=1e-12)
    one, other = np.array(points)
    moved, also = steps(one), steps(other)
    for axis in (0, 1):
        assume(abs(one[axis] - other[axis]) > 1e-6)
        assert (moved[axis] < also[axis]) == (one[axis] < other[axis])
        if not 0 <= one[axis] <= 1:
            assert moved[axis] == one[axis]


@given(widths, st.floats(0, 2))
def test_open_grid_steps_add_up_from_the_first_edge_and_move_what_lies_beyond_with_the_last(
    columns: tuple[float, ...], distance: float
) -> None:
    steps = GridSteps(columns, (1.0,) * 5, is_open=True)
    knots = steps(np.stack([np.linspace(0, 1, 6), np.full(6, 0.37)], axis=-1))
    np.testing.assert_allclose(np.diff(knots[:, 0]), np.array(columns) / 5, atol=1e-12)
    np.testing.assert_allclose(knots[:, 1], 0.37, atol=1e-12)
    before, beyond = steps(np.array([[-distance, 0.5], [1 + distance, 0.5]]))[:, 0]
    np.testing.assert_allclose([before, beyond], [-distance, sum(columns) / 5 + distance], atol=1e-12)


def original_grid(random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the columns that the first place's grid distortion (albumentations 0.3.1) shows across a 1024 px film."""
    step, shown, start = FILM // 5, np.zeros(FILM), 0.0
    for column, width in enumerate(random.uniform(0.7, 1.3, 5)):
        end = start + step * width
        shown[column * step : (column + 1) * step] = np.linspace(start, end, step)
        start = end
    return shown[: 5 * step]  # the last four pixels compress the rest of the film


def test_open_grid_moves_as_far_as_the_first_places_and_half_of_the_draws_leave_the_film() -> None:
    random, count = np.random.default_rng(0), 3000
    centres = np.stack([(np.arange(FILM) + 0.5) / FILM] * 2, axis=-1)
    ours = [GridSteps(tuple(random.uniform(0.7, 1.3, 5)), (1.0,) * 5, True)(centres)[:, 0] * FILM for _ in range(count)]
    theirs = [original_grid(random) for _ in range(count)]
    squares = [[float(((x - np.arange(len(x))) ** 2).mean()) for x in shown] for shown in (ours, theirs)]
    rms = [math.sqrt(float(np.mean(square))) for square in squares]
    # A random walk of five steps: the variance of step n + t is that of n steps and t² of one.
    expected = FILM / 5 * 0.3 / math.sqrt(3) * math.sqrt(7 / 3)
    assert abs(rms[0] / expected - 1) < 0.04 and abs(rms[0] / rms[1] - 1) < 0.06
    for shown in (ours, theirs):
        assert abs(float(np.mean([x.max() > FILM for x in shown])) - 0.5) < 0.05


@given(widths)
def test_grid_steps_show_each_column_in_a_fifth_of_the_film(columns: tuple[float, ...]) -> None:
    steps = GridSteps(columns, (1.0,) * 5)
    knots = steps(np.stack([np.linspace(0, 1, 6), np.full(6, 0.37)], axis=-1))
    np.testing.assert_allclose(np.diff(knots[:, 0]), np.array(columns) / sum(columns), atol=1e-12)
    np.testing.assert_allclose(knots[:, 1], 0.37, atol=1e-12)


# -- the same in DALI


def in_dali(graph: Any, *inputs: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Run a graph once on the CPU; `graph` takes DALI nodes of the inputs and returns a tuple."""
    dali = pytest.importorskip("nvidia.dali")

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        return graph(*(dali.types.Constant(value, device="cpu") for value in inputs))

    built = pipeline()
    built.build()
    return [np.array(output.at(0)) for output in built.run()]


@pytest.mark.parametrize("size", [32, 64, 96, 160, 512])
@pytest.mark.parametrize("flip", [False, True])
def test_dense_points_in_dali_are_the_dense_map(size: int, flip: bool) -> None:
    dali_gpu = pytest.importorskip("pneumo_dist.data.dali_gpu")
    warp = ElasticField(4, *RECIPE, (0.003, 0, 0, -0.003, 0, 0.002)) if flip else Lens(1.5, (0.0004, 0.0))
    coarse = coarse_map(Geometry(flip, 0.4, 1.1, (0.05, -0.04), warp), size, Stored(1024))
    x, y = in_dali(lambda value: dali_gpu.dense_points(dali_layout(value), dali_gpu.last_of(value), size), coarse)
    expected = dense_map(coarse, size)
    assert x.shape == y.shape == (size, size, 1)
    np.testing.assert_allclose(x[..., 0], expected[..., 0], atol=1e-2)
    np.testing.assert_allclose(y[..., 0], expected[..., 1], atol=1e-2)


def dali_layout(value: Any) -> Any:
    from nvidia.dali import fn

    return fn.reshape(value, layout="HWC")


@pytest.mark.parametrize(
    ("border", "extent"),
    [("reflect", 1), ("reflect", 7), ("reflect", 96), ("reflect_101", 2), ("reflect_101", 7), ("reflect_101", 96)],
)
def test_reflected_in_dali_is_the_border_of_opencv(border: str, extent: int) -> None:
    reflected = pytest.importorskip("pneumo_dist.data.dali_gpu").reflected
    points = np.random.default_rng(0).uniform(-4 * extent, 5 * extent, 3000).astype(np.float32)
    near = np.abs(points - np.rint(points)) < 1e-3  # an edge may belong to either of two pixels
    points = np.concatenate([points[~near], np.array([-0.25, 0.25, extent - 0.25, extent + 0.25], np.float32)])
    (folded,) = in_dali(lambda value, side: (reflected(value, side, border),), points, np.array(extent, np.float32))
    assert folded.min() >= 0 and folded.max() <= extent
    expected = [cv2.borderInterpolate(math.floor(point), extent, BORDERS[border]) for point in points.tolist()]
    np.testing.assert_array_equal(np.floor(folded).astype(int), expected)
    # Nothing is rounded: the distance to the nearest edge of a pixel stays the same.
    np.testing.assert_allclose(np.abs(folded - np.rint(folded)), np.abs(points - np.rint(points)), atol=1e-4 * extent)
