"""The exact triplet search, compared with brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_dice import Film, film_of, naive_dice, stack

from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import level
from pneumo_dist.scoring.triplet import Triplet, best_triplet

LEVELS = (0, 40, 153, 255)


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
    assert reached[0] == expected[0] and best == pytest.approx(expected[1], abs=1e-12)
    assert reached[1] == pytest.approx(best, abs=1e-12)


def test_best_triplet_of_films_without_a_pneumothorax_keeps_all_empty() -> None:
    random = np.random.default_rng(1)
    films = [(random.integers(0, 256, (4, 4), np.uint8), np.zeros((4, 4), np.uint8)) for _ in range(5)]
    triplet, best = best_triplet(stack(films))
    result = triplet_counts(stack(films), triplet).score()
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
    assert triplet == Triplet(0.0, 4, 50 / 255)


def test_top_is_searched_up_to_the_last_level_but_one() -> None:
    positive = (np.array([[255, 100, 100]], np.uint8), np.ones((1, 3), np.uint8))
    negative = (np.array([[254, 254, 254]], np.uint8), np.zeros((1, 3), np.uint8))
    triplet, best = best_triplet(stack([positive, negative]))
    assert (level(triplet.top), triplet.area, level(triplet.bottom), best) == (254, 1, 0, 1.0)


def test_films_that_all_stay_empty_get_an_area_just_above_the_largest_count() -> None:
    film = (np.array([[9, 9, 0]], np.uint8), np.zeros((1, 3), np.uint8))
    assert best_triplet(stack([film, film])) == (Triplet(0.0, 3, 0.0), 1.0)


def test_search_for_sensitivity_calls_no_negative_film_without_need() -> None:
    positive = (np.array([[255, 255, 0]], np.uint8), np.array([[1, 1, 0]], np.uint8))
    negative = (np.array([[255, 0, 0]], np.uint8), np.zeros((1, 3), np.uint8))
    triplet, best = best_triplet(stack([positive, negative]), specificity=0.0)
    assert (triplet.area, best) == (2, 1.0)


def test_ties_of_the_search_for_sensitivity_go_to_the_lowest_top() -> None:
    film = (np.array([[200, 0]], np.uint8), np.array([[1, 1]], np.uint8))
    triplet, best = best_triplet(stack([film]), specificity=0.5)
    assert (level(triplet.top), triplet.area, level(triplet.bottom)) == (0, 1, 0)
    assert best == pytest.approx(2 / 3)


def test_a_later_top_with_a_better_dice_never_lowers_the_sensitivity() -> None:
    empty = np.zeros((1, 4), np.uint8)
    clear = (np.full((1, 4), 255, np.uint8), np.ones((1, 4), np.uint8))
    faint = (np.array([[40, 40, 0, 0]], np.uint8), np.array([[1, 0, 1, 1]], np.uint8))
    negatives = [(np.array([pixels], np.uint8), empty) for pixels in ([255, 255, 255, 0], [255, 0, 0, 0])]
    triplet, best = best_triplet(stack([clear, faint, *negatives]), specificity=0.5)
    assert (level(triplet.top), triplet.area) == (0, 2)
    assert best == pytest.approx((1 + 0.4 + 0 + 1) / 4)
    assert best_triplet(stack([clear, faint, *negatives]))[1] > best


def test_specificity_is_not_missed_by_rounding() -> None:
    positive = (np.array([[255, 0]], np.uint8), np.array([[1, 0]], np.uint8))
    loud, quiet = ((np.array([pixels], np.uint8), np.zeros((1, 2), np.uint8)) for pixels in ([255, 255], [0, 0]))
    assert (1 - 0.9) * 10 < 1
    triplet, _ = best_triplet(stack([positive, loud, *[quiet] * 9]), specificity=0.9)
    assert triplet.area == 1
