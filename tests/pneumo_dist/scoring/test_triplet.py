"""The exact triplet search, compared with brute force."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_dice import Film, film_of, naive_dice, stack
from threaded_ranks import on_ranks

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import Histograms, counts_above, level
from pneumo_dist.scoring.triplet import Triplet, _Search, _TopBest, best_triplet, shared_best_triplet
from shards.arrays import Floats

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


# Equal to the bit, for any number of ranks


def simple_search(
    histograms: Histograms, weights: Floats | None = None, specificity: float | None = None
) -> tuple[Triplet, float]:
    """The search over whole matrices, one top after the other."""
    above = counts_above(histograms)
    truth = histograms[:, 1].sum(-1)
    shares = np.ones(len(histograms)) if weights is None else weights
    hidden = (truth == 0).astype(np.float64)
    gain = shares[:, None] * (dice(above[:, 1], above[:, 0], truth[:, None]) - hidden[:, None])
    allowed = None if specificity is None else math.floor((1.0 - specificity) * hidden.sum() + 1e-9)
    best, triplet = (-1, -math.inf), Triplet(0.0, 0, 0.0)
    for top in range(255):
        counts = above[:, 0, top]
        order = np.argsort(-counts, kind="stable")
        ranked = counts[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        sums = np.vstack([np.zeros(256), gain[order].cumsum(0)[ends]])
        called = 0
        if allowed is not None:
            wrong, right = (np.append(0, kind[order].cumsum()[ends]) for kind in (truth == 0, truth > 0))
            called = int(right[wrong <= allowed].max())
            sums[(wrong > allowed) | (right < called)] = -math.inf
        kept, bottom = np.unravel_index(int(sums.argmax()), sums.shape)
        value = float(sums[kept, bottom])
        if called > best[0] or (called == best[0] and value > best[1] + 1e-12):
            best = (called, value)
            area = int(ranked[0]) + 1 if kept == 0 else int(ranked[ends[kept - 1]])
            triplet = Triplet(top / 255, area, int(bottom) / 255)
    return triplet, float((best[1] + (shares * hidden).sum()) / shares.sum())


def random_films(seed: int, films: int) -> Histograms:
    """Histograms with many equal counts: a third of the films is as the one before."""
    chance = np.random.default_rng(seed)
    everywhere = (chance.gamma(0.3, 40.0, (films, 256)) * (chance.random((films, 256)) < 0.3)).astype(np.int64)
    for film in np.flatnonzero(chance.random(films) < 1 / 3):
        everywhere[film] = everywhere[film - 1]
    shares = chance.random((films, 256)) * (chance.random((films, 1)) < 0.4) * np.linspace(0, 1, 256)
    return np.stack([everywhere, np.floor(everywhere * shares).astype(np.int64)], axis=1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.sampled_from([None, 0.0, 0.5, 0.9, 1.0]),
    st.sampled_from([None, 1.0, 1e-13]),
)
def test_search_equals_the_simple_one_to_the_bit(
    seed: int, films: int, specificity: float | None, scale: float | None
) -> None:
    histograms = random_films(seed, films)
    weights = None if scale is None else scale * np.random.default_rng(seed).choice([0.5, 1.0, 3.0], films)
    expected = simple_search(histograms, weights, specificity)
    for threads in (1, 2):
        assert best_triplet(histograms, weights, specificity, threads) == expected


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 8, 300]))
def test_ranks_find_what_one_rank_finds_to_the_bit(seed: int, world: int) -> None:
    histograms = random_films(seed, 12)

    def work(ranks: Ranks) -> tuple[Triplet, float]:
        return shared_best_triplet(histograms, ranks)

    found, exchange = on_ranks(world, work)
    assert found == [simple_search(histograms)] * world
    assert max(exchange.received) < 255 * 5 * 8 + world * 200, "the best of every top alone"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=30), st.randoms())
def test_small_gains_count_in_the_order_of_the_tops(rows: list[tuple[int, int]], order: random.Random) -> None:
    """Each step of 0.4e-12 is too small to count, and three of them count."""
    found = [_TopBest(top, called, 1 + steps * 4e-13, top + 5, 9) for top, (called, steps) in enumerate(rows)]
    best = found[0]
    for each in found[1:]:
        if each.called > best.called or (each.called == best.called and each.value > best.value + 1e-12):
            best = each
    order.shuffle(found)
    triplet, _ = _Search(random_films(0, 2)).best(found)
    assert (level(triplet.top), triplet.area) == (best.top, best.area)
