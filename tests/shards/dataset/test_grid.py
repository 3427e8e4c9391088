"""Padding, resizing, and the box of a film in a padded map, against exact fractions."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.grid import Padding, content_box, fit_square, mask_to_square, square_pixels, to_square

sides = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, size=st.integers(32, 1024))
def test_the_film_is_centred_and_keeps_its_aspect(height: int, width: int, size: int) -> None:
    padding = fit_square(height, width, size)
    rows, columns = size - padding.top - padding.bottom, size - padding.left - padding.right
    assert max(rows, columns) == size
    for got, own in ((rows, height), (columns, width)):
        assert got == 1 or abs(got - Fraction(own * size, max(height, width))) <= Fraction(1, 2)
    assert 0 <= padding.bottom - padding.top <= 1
    assert 0 <= padding.right - padding.left <= 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 64), Padding(0, 0, 0, 0)), ((40, 80), Padding(16, 16, 0, 0)), ((80, 20), Padding(0, 0, 24, 24))],
)
def test_known_films_have_known_padding(shape: tuple[int, int], expected: Padding) -> None:
    assert fit_square(*shape, 64) == expected


def test_a_square_film_of_the_stored_size_is_kept_bit_for_bit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    np.testing.assert_array_equal(to_square(image, 64), image)


def test_shrinking_averages_areas_and_pads_with_zero() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 128), np.uint8)
    square = to_square(image, 64)
    # OpenCV sums 2x2 blocks in integers and rounds halves up.
    naive = (image.reshape(32, 2, 64, 2).astype(int).sum(axis=(1, 3)) + 2) // 4
    np.testing.assert_array_equal(square[16:48], naive)
    assert not square[:16].any()
    assert not square[48:].any()


@pytest.mark.parametrize("factor", [2, 3])
def test_a_shrunk_mask_holds_the_pixels_that_are_at_least_half_covered(factor: int) -> None:
    mask = np.random.default_rng(1).integers(0, 2, (64 * factor, 64 * factor), np.uint8)
    covered = mask.reshape(64, factor, 64, factor).sum(axis=(1, 3))
    np.testing.assert_array_equal(
        mask_to_square(mask, 64, fit_square(64 * factor, 64 * factor, 64)), np.where(covered * 2 >= factor**2, 255, 0)
    )


@pytest.mark.parametrize("shape", [(20, 30), (300, 200), (64, 64)])
def test_a_resized_mask_has_two_values(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, (shape[1] // 2, shape[0] // 2), 7, 1, -1)
    assert set(np.unique(mask_to_square(mask, 64, fit_square(*mask.shape, size=64))).tolist()) == {0, 255}


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, stored=st.integers(32, 1024), size=st.integers(32, 1024))
def test_the_content_box_is_the_film_within_half_a_pixel(height: int, width: int, stored: int, size: int) -> None:
    padding = fit_square(height, width, stored)
    top, bottom, left, right = content_box(padding, stored, size)
    assert 0 <= top < bottom <= size
    assert 0 <= left < right <= size
    assert abs(top - Fraction(padding.top * size, stored)) <= Fraction(1, 2)
    assert abs(left - Fraction(padding.left * size, stored)) <= Fraction(1, 2)


def test_the_content_box_at_the_stored_size_is_the_padding() -> None:
    assert content_box(Padding(3, 4, 5, 6), 64, 64) == (3, 60, 5, 58)


def test_a_mask_on_a_grid_of_other_proportions_fills_its_films_part_of_the_square() -> None:
    film = fit_square(100, 50, 64)  # a mask whose pixels are twice as high as wide
    stored = mask_to_square(np.ones((50, 50), np.uint8), 64, film)
    assert stored[:, film.left : 64 - film.right].all() and np.count_nonzero(stored) == 64 * 32


def test_masks_of_a_films_own_proportions_are_rounded_as_ever() -> None:
    mask = np.ones((500, 400), np.uint8)
    assert fit_square(500, 400, 512) != fit_square(1001, 800, 512)
    own = mask_to_square(mask, 512, fit_square(500, 400, 512))
    np.testing.assert_array_equal(mask_to_square(mask, 512, fit_square(1001, 800, 512)), own)


@pytest.mark.parametrize(("aspect", "shape"), [(1.0, (30, 40)), (2.0, (60, 40)), (0.5, (30, 80)), (1.5, (45, 40))])
def test_pixels_become_square_by_enlarging(aspect: float, shape: tuple[int, int]) -> None:
    image = np.linspace(0, 255, 30 * 40).reshape(30, 40).astype(np.uint8)
    square = square_pixels(image, aspect)
    assert square.shape == shape
    back = cv2.resize(square, (40, 30), interpolation=cv2.INTER_AREA)
    assert np.abs(back.astype(int) - image).max() <= 4
