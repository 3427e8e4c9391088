"""Dice compared with counting the pixels of masks, and its means over films."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_dice import Film, film_of, naive_dice, stack

from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.dice import dice, score_of
from pneumo_dist.scoring.triplet import Triplet

thresholds = st.one_of(st.integers(0, 255).map(lambda k: k / 255), st.integers(0, 100).map(lambda k: k / 100))
triplets = st.builds(Triplet, top=thresholds, area=st.integers(0, 40), bottom=thresholds)


def test_both_empty_counts_one_and_never_two() -> None:
    zero = np.zeros(1, np.int64)
    assert dice(zero, zero, zero).tolist() == [1.0]
    empty = stack([(np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8))] * 2)
    for triplet in (Triplet(0.5, 0, 0.5), Triplet(0.5, 1, 0.5)):
        assert triplet_counts(empty, triplet).dice.tolist() == [1.0, 1.0]
        assert triplet_counts(empty, triplet).score().dice == 1.0


def test_dice_never_leaves_zero_to_one() -> None:
    full = (np.full((3, 3), 255, np.uint8), np.ones((3, 3), np.uint8))
    wrong = (np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8))
    missed = (np.zeros((3, 3), np.uint8), np.ones((3, 3), np.uint8))
    assert triplet_counts(stack([full, wrong, missed]), Triplet(0.5, 0, 0.5)).dice.tolist() == [1.0, 0.0, 0.0]


def test_score_is_the_mean_over_films_and_over_positive_films() -> None:
    hit = (np.array([[255, 0]], np.uint8), np.array([[1, 0]], np.uint8))
    half = (np.array([[255, 255]], np.uint8), np.array([[1, 0]], np.uint8))
    quiet = (np.array([[0, 0]], np.uint8), np.array([[0, 0]], np.uint8))
    result = triplet_counts(stack([hit, half, quiet]), Triplet(0.5, 0, 0.5)).score()
    assert result.dice == pytest.approx((1 + 2 / 3 + 1) / 3, abs=1e-15)
    assert result.positive_dice == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    assert result.always_empty == pytest.approx(1 / 3, abs=1e-15)
    assert (result.films, result.positives) == (3, 2)


def test_score_without_a_positive_film_has_no_positive_dice_and_no_warning() -> None:
    with warnings.catch_warnings(action="error"):
        score = score_of(np.ones(2), np.zeros(2, np.bool_))
    assert math.isnan(score.positive_dice) and (score.dice, score.positives) == (1.0, 0)


@settings(max_examples=200)
@given(st.lists(film_of(st.integers(0, 255), 5), min_size=1, max_size=4), triplets)
def test_film_dice_equals_direct_masks(films: list[Film], triplet: Triplet) -> None:
    expected = [naive_dice(*film, triplet) for film in films]
    assert triplet_counts(stack(films), triplet).dice.tolist() == expected
