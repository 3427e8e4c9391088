"""Components compared with flood filling; the best size and the best gate compared with trying every value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import remove_small
from pneumo_dist.thresholds.refine import FilmComponents, best_gate, best_size, film_components, size_curve

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


def components_of(mask: Map) -> list[set[tuple[int, int]]]:
    """Return 8-connected components, found by flood filling."""
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
def test_only_small_components_are_removed(mask: Map, smallest: int) -> None:
    expected = np.zeros_like(mask)
    for part in components_of(mask):
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
def test_curve_equals_that_of_the_masks(chosen: list[tuple[Map, Map]]) -> None:
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


@settings(deadline=None)
@given(films, st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]))
def test_size_for_a_specificity_is_the_best_that_reaches_it(chosen: list[tuple[Map, Map]], specificity: float) -> None:
    parts = [film_components(film, truth, 0.5) for film, truth in chosen]
    ranked = []
    for size in range(40):
        masks = [remove_small((film > 127).astype(np.uint8), size) for film, _ in chosen]
        called = [(bool(truth.any()), bool(mask.any())) for mask, (_, truth) in zip(masks, chosen, strict=True)]
        wrong, right = called.count((False, True)), called.count((True, True))
        if wrong <= (1 - specificity) * sum(not positive for positive, _ in called) + 1e-9:
            ranked.append((-right, -round(mean_dice(chosen, size), 10), size))
    curve = size_curve(parts)
    size = best_size(curve, parts, specificity)
    assert size == min(ranked)[2]
    assert best_size(curve, parts) == curve.best[0]


def film_of(sizes: list[int], hits: list[int], truth: int) -> FilmComponents:
    return FilmComponents(np.array(sizes, np.int64), np.array(hits, np.int64), truth)


@pytest.mark.parametrize(
    ("components", "specificity", "size"),
    [
        ([film_of([3], [1], 3), film_of([5], [0], 0), film_of([2], [0], 0)], 0.5, 3),
        ([*[film_of([1, 3], [1, 1], 2)] * 4, film_of([1], [0], 0)], 1.0, 2),
    ],
    ids=["a positive film is called although Dice is lower", "a component of one pixel calls a film"],
)
def test_size_for_a_specificity_may_have_a_lower_dice(
    components: list[FilmComponents], specificity: float, size: int
) -> None:
    curve = size_curve(components)
    assert best_size(curve, components, specificity) == size != best_size(curve, components)


def test_specificity_is_not_missed_by_rounding() -> None:
    assert (1 - 0.9) * 10 < 1
    components = [film_of([5], [5], 5), film_of([9], [0], 0), *[film_of([], [], 0)] * 9]
    assert best_size(size_curve(components), components, 0.9) == 0
    assert best_size(size_curve(components), components, 1.0) == 10


def test_pixel_at_the_threshold_is_outside_of_the_component() -> None:
    components = film_components(np.array([[127, 51, 52]], np.uint8), np.ones((1, 3), np.uint8), 0.2)
    assert components.sizes.tolist() == [1, 1] and components.truth == 3


def test_thinned_curve_keeps_its_ends_its_best_and_exact_points() -> None:
    random = np.random.default_rng(0)
    parts = [
        FilmComponents(sizes, np.minimum(sizes, random.integers(0, 900, len(sizes))), int(random.integers(0, 4000)))
        for sizes in (random.integers(1, 3000, 40) for _ in range(30))
    ]
    curve = size_curve(parts)
    thin = curve.thinned(20, curve.best[0])
    assert len(curve.sizes) > 500 and 10 < len(thin.sizes) <= 23
    assert thin.best == curve.best
    assert (thin.sizes[0], thin.sizes[-1]) == (curve.sizes[0], curve.sizes[-1])
    exact = dict(zip(curve.sizes.tolist(), curve.dice.tolist(), strict=True))
    assert [exact[size] for size in thin.sizes.tolist()] == thin.dice.tolist()
    nothing = np.zeros(0, np.int64)
    assert size_curve([FilmComponents(nothing, nothing, 5)]).thinned(20, 0).sizes.tolist() == [0]


FILM = st.tuples(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
)


def mean_with(gate: float, films: list[tuple[float, float, float, float]]) -> float:
    kept = [hidden if gate > 0 and p <= gate else shown for p, shown, hidden, _ in films]
    return sum(w * value for value, (*_, w) in zip(kept, films, strict=True)) / sum(w for *_, w in films)


def gate_of(films: list[tuple[float, float, float, float]], below: float = np.inf) -> tuple[float, float]:
    probabilities, shown, hidden, weights = np.array(films).T
    return best_gate(probabilities, shown, hidden, weights, below)


@given(st.lists(FILM, min_size=1, max_size=12))
def test_no_gate_is_better_and_no_lower_one_as_good(films: list[tuple[float, float, float, float]]) -> None:
    gate, found = gate_of(films)
    values = {value: mean_with(value, films) for value in [0.0, *(p for p, *_ in films)]}
    assert abs(found - max(values.values())) < 1e-9
    assert abs(mean_with(gate, films) - found) < 1e-9
    assert all(value < found - 1e-13 for lower, value in values.items() if lower < gate)


def test_gate_between_two_kinds_of_films() -> None:
    probabilities = np.array([0.1, 0.2, 0.9, 0.8])
    shown, hidden = np.array([0.0, 0.0, 0.7, 0.6]), np.array([1.0, 1.0, 0.0, 0.0])
    assert best_gate(probabilities, shown, hidden, np.ones(4)) == (0.2, 3.3 / 4)
    assert best_gate(1 - probabilities, shown, hidden, np.ones(4))[0] == 0.9
    assert best_gate(probabilities, hidden, shown, np.ones(4)) == (0.0, 0.5)


@given(st.lists(FILM, min_size=1, max_size=12), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_gate_stays_below_the_films_that_must_keep_their_masks(
    films: list[tuple[float, float, float, float]], below: float
) -> None:
    gate, found = gate_of(films, below)
    allowed = [0.0, *(p for p, *_ in films if p < below)]
    assert gate in allowed
    assert abs(found - max(mean_with(value, films) for value in allowed)) < 1e-9
