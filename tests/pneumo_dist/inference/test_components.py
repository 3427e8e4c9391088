"""Parts of masks, against flood filling and brute force."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.inference.components import film_components, size_curve
from pneumo_dist.inference.postprocess import remove_small

Map = npt.NDArray[np.uint8]
masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 1))
films = st.lists(
    st.integers(1, 6).flatmap(
        lambda side: st.tuples(
            hnp.arrays(np.uint8, (side, side), elements=st.sampled_from([0, 100, 200])),
            hnp.arrays(np.uint8, (side, side), elements=st.integers(0, 1)),
        )
    ),
    min_size=1,
    max_size=4,
)


def parts_of(mask: Map) -> list[set[tuple[int, int]]]:
    """Parts by flood filling, corners included."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    found = []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            row, column = edge.pop()
            part.add((row, column))
            around = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
            edge |= around & left
            left -= around
        found.append(part)
    return found


@given(masks, st.integers(0, 12))
def test_small_parts_go_and_nothing_else(mask: Map, smallest: int) -> None:
    expected = np.zeros_like(mask)
    for part in parts_of(mask):
        if len(part) >= smallest:
            expected[tuple(np.array(sorted(part)).T)] = 1
    np.testing.assert_array_equal(remove_small(mask, smallest), expected)


def test_holes_stay_holes() -> None:
    ring = np.ones((5, 5), np.uint8)
    ring[2, 2] = 0
    np.testing.assert_array_equal(remove_small(ring, 24), ring)
    assert not remove_small(ring, 25).any()


def mean_dice(chosen: list[tuple[Map, Map]], smallest: int) -> float:
    values = []
    for film, truth in chosen:
        mask = remove_small((film > 127).astype(np.uint8), smallest)
        total = int(mask.sum()) + int(truth.sum())
        values.append(2 * int((mask & truth).sum()) / total if total else 1.0)
    return float(np.mean(values))


@settings(deadline=None)
@given(films)
def test_curve_is_that_of_the_masks_and_its_best_is_the_best(chosen: list[tuple[Map, Map]]) -> None:
    curve = size_curve([film_components(film, truth, 0.5) for film, truth in chosen])
    assert curve.dice.tolist() == pytest.approx([mean_dice(chosen, int(size)) for size in curve.sizes], abs=1e-12)
    size, best = curve.best
    every = [mean_dice(chosen, smallest) for smallest in range(40)]
    assert best == pytest.approx(max(every), abs=1e-12)
    assert mean_dice(chosen, size) == pytest.approx(best, abs=1e-12)


@settings(deadline=None)
@given(films, st.integers(1, 3))
def test_film_of_twice_the_weight_counts_as_two(chosen: list[tuple[Map, Map]], weight: int) -> None:
    parts = [film_components(film, truth, 0.5) for film, truth in chosen]
    weights = np.ones(len(parts))
    weights[0] = weight
    whole, repeated = size_curve(parts, weights), size_curve([*parts, *parts[:1] * (weight - 1)])
    np.testing.assert_array_equal(whole.sizes, repeated.sizes)
    np.testing.assert_allclose(whole.dice, repeated.dice, rtol=0, atol=1e-12)
