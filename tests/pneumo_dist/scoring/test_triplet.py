"""Dice, histograms and the exact triplet search, against direct masks and brute force."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.scoring.triplet import (
    Triplet,
    best_triplet,
    counts_above,
    dice,
    film_dice,
    film_histograms,
    level,
    score,
)

Map = npt.NDArray[np.uint8]
Film = tuple[Map, Map]

LEVELS = (0, 40, 153, 255)
thresholds = st.one_of(st.integers(0, 255).map(lambda k: k / 255), st.integers(0, 100).map(lambda k: k / 100))
triplets = st.builds(Triplet, top=thresholds, area=st.integers(0, 40), bottom=thresholds)


def film_of(values: st.SearchStrategy[int], side: int) -> st.SearchStrategy[Film]:
    shape = (side, side + 1)
    return st.tuples(
        hnp.arrays(np.uint8, shape, elements=values),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 1), fill=st.nothing()),
    )


def naive_dice(film: Map, truth: Map, triplet: Triplet) -> float:
    probability = film.astype(np.float64) / 255
    predicted = probability > triplet.bottom
    if (probability > triplet.top).sum() < triplet.area:
        predicted = np.zeros_like(predicted)
    labelled = truth != 0
    if not predicted.any() and not labelled.any():
        return 1.0
    return 2.0 * float((predicted & labelled).sum()) / float(predicted.sum() + labelled.sum())


def stack(films: list[Film]) -> npt.NDArray[np.int64]:
    return np.stack([film_histograms(*film) for film in films])


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.75, 0.8, 0.2, 0.1, 1.0, *(k / 255 for k in range(256))])
def test_level_cuts_where_the_probability_does(threshold: float) -> None:
    p8 = np.arange(256)
    np.testing.assert_array_equal(p8 > level(threshold), p8 / 255 > threshold)


@pytest.mark.parametrize("value", [1, 51, 128, 153, 204, 254])
def test_level_forgives_rounding_errors_of_a_threshold(value: int) -> None:
    assert level(math.nextafter(value / 255, 0)) == level(math.nextafter(value / 255, 1)) == value


@given(film_of(st.integers(0, 255), 4))
def test_histograms_and_counts_are_those_of_the_pixels(film: Film) -> None:
    values, truth = film
    histograms = film_histograms(values, truth)
    above = counts_above(histograms)
    assert histograms.dtype == np.int64
    for value in range(256):
        assert histograms[0, value] == (values == value).sum()
        assert histograms[1, value] == ((values == value) & (truth == 1)).sum()
        assert above[0, value] == (values > value).sum()
        assert above[1, value] == ((values > value) & (truth == 1)).sum()


def test_labels_of_255_count_like_labels_of_1() -> None:
    values, truth = np.array([[3, 200]], np.uint8), np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(film_histograms(values, truth), film_histograms(values, truth // 255))


@settings(max_examples=200)
@given(st.lists(film_of(st.integers(0, 255), 5), min_size=1, max_size=4), triplets)
def test_film_dice_equals_direct_masks(films: list[Film], triplet: Triplet) -> None:
    expected = [naive_dice(*film, triplet) for film in films]
    assert film_dice(stack(films), triplet).tolist() == expected


def test_both_empty_counts_one_and_never_two() -> None:
    zero = np.zeros(1, np.int64)
    assert dice(zero, zero, zero).tolist() == [1.0]
    empty = stack([(np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8))] * 2)
    for triplet in (Triplet(0.5, 0, 0.5), Triplet(0.5, 1, 0.5)):
        assert film_dice(empty, triplet).tolist() == [1.0, 1.0]
        assert score(empty, triplet).dice == 1.0


def test_dice_never_leaves_zero_to_one() -> None:
    full = (np.full((3, 3), 255, np.uint8), np.ones((3, 3), np.uint8))
    wrong = (np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8))
    missed = (np.zeros((3, 3), np.uint8), np.ones((3, 3), np.uint8))
    assert film_dice(stack([full, wrong, missed]), Triplet(0.5, 0, 0.5)).tolist() == [1.0, 0.0, 0.0]


def test_area_is_met_by_equality() -> None:
    film = (np.array([[200, 200, 0]], np.uint8), np.array([[1, 1, 0]], np.uint8))
    assert film_dice(stack([film]), Triplet(0.5, 2, 0.5)).tolist() == [1.0]
    assert film_dice(stack([film]), Triplet(0.5, 3, 0.5)).tolist() == [0.0]


def every_triplet(films: list[Film]) -> list[Triplet]:
    thresholds = [value / 255 for value in LEVELS]
    areas = range(films[0][0].size + 2)
    return [Triplet(top, area, bottom) for top in thresholds for area in areas for bottom in thresholds]


def brute_force(films: list[Film]) -> float:
    return max(math.fsum(naive_dice(*film, triplet) for film in films) / len(films) for triplet in every_triplet(films))


@settings(max_examples=60, deadline=None)
@given(st.lists(film_of(st.sampled_from(LEVELS), 2), min_size=1, max_size=4))
def test_best_triplet_equals_brute_force(films: list[Film]) -> None:
    triplet, best = best_triplet(stack(films))
    assert best == pytest.approx(brute_force(films), abs=1e-12)
    reached = math.fsum(naive_dice(*film, triplet) for film in films) / len(films)
    assert reached == pytest.approx(best, abs=1e-12)
    assert 0 <= triplet.top <= 1 and 0 <= triplet.bottom <= 1 and triplet.area >= 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(film_of(st.sampled_from(LEVELS), 2), st.sampled_from([0.25, 1.0, 3.0])), min_size=1, max_size=4)
)
def test_weighted_search_equals_brute_force(weighted: list[tuple[Film, float]]) -> None:
    films, weights = [film for film, _ in weighted], [weight for _, weight in weighted]

    def mean(triplet: Triplet) -> float:
        return math.fsum(w * naive_dice(*film, triplet) for film, w in weighted) / math.fsum(weights)

    triplet, best = best_triplet(stack(films), np.array(weights))
    assert best == pytest.approx(max(map(mean, every_triplet(films))), abs=1e-12)
    assert mean(triplet) == pytest.approx(best, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(film_of(st.sampled_from(LEVELS), 2), min_size=1, max_size=4), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
)
def test_search_for_sensitivity_equals_brute_force(films: list[Film], specificity: float) -> None:
    def value(triplet: Triplet) -> tuple[int, float]:
        called = [(film > level(triplet.top)).sum() >= triplet.area for film, _ in films]
        kinds = [bool(truth.any()) for _, truth in films]
        wrong = sum(c and not kind for c, kind in zip(called, kinds, strict=True))
        negatives = len(kinds) - sum(kinds)
        if negatives and (negatives - wrong) / negatives < specificity - 1e-9:
            return -1, 0.0
        right = sum(c and kind for c, kind in zip(called, kinds, strict=True))
        return right, math.fsum(naive_dice(*film, triplet) for film in films) / len(films)

    triplet, best = best_triplet(stack(films), specificity=specificity)
    expected = max(map(value, every_triplet(films)))
    reached = value(triplet)
    assert (reached[0], best) == (expected[0], pytest.approx(expected[1], abs=1e-12))
    assert reached[1] == pytest.approx(best, abs=1e-12)


def test_best_triplet_of_films_without_a_pneumothorax_keeps_all_empty() -> None:
    random = np.random.default_rng(1)
    films = [(random.integers(0, 256, (4, 4), np.uint8), np.zeros((4, 4), np.uint8)) for _ in range(5)]
    triplet, best = best_triplet(stack(films))
    result = score(stack(films), triplet)
    assert best == result.dice == result.always_empty == 1.0
    assert math.isnan(result.positive_dice) and result.positives == 0


def test_best_triplet_of_one_film_finds_its_exact_mask() -> None:
    film = (np.array([[10, 99, 100, 250]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8))
    triplet, best = best_triplet(stack([film]))
    assert best == 1.0
    assert level(triplet.bottom) == 99


def test_best_triplet_separates_films_by_area_alone() -> None:
    large = (np.array([[255, 255, 255, 0]], np.uint8), np.array([[1, 1, 1, 0]], np.uint8))
    small = (np.array([[255, 0, 0, 0]], np.uint8), np.zeros((1, 4), np.uint8))
    triplet, best = best_triplet(stack([large, small]))
    assert best == 1.0
    assert triplet.area == 3


def test_best_triplet_ties_go_to_the_lowest_top_the_largest_area_and_the_lowest_bottom() -> None:
    film = (np.array([[50, 200, 200, 200]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8))
    triplet, _ = best_triplet(stack([film]))
    assert (level(triplet.top), triplet.area, level(triplet.bottom)) == (0, 4, 50)


def test_score_is_the_mean_over_films_and_over_positive_films() -> None:
    hit = (np.array([[255, 0]], np.uint8), np.array([[1, 0]], np.uint8))
    half = (np.array([[255, 255]], np.uint8), np.array([[1, 0]], np.uint8))
    quiet = (np.array([[0, 0]], np.uint8), np.array([[0, 0]], np.uint8))
    result = score(stack([hit, half, quiet]), Triplet(0.5, 0, 0.5))
    assert result.dice == pytest.approx((1 + 2 / 3 + 1) / 3, abs=1e-15)
    assert result.positive_dice == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    assert result.always_empty == pytest.approx(1 / 3, abs=1e-15)
    assert (result.films, result.positives) == (3, 2)
