"""What a rule makes of films, against counting the pixels of their masks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_dice import Film, film_of, naive_dice, stack

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import Rule, apply_rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.refine import component_counts, film_components

TRIPLET = Triplet(0.8, 20, 0.6)
Films = list[tuple[Map, Map]]
thresholds = st.one_of(st.integers(0, 255).map(lambda k: k / 255), st.integers(0, 100).map(lambda k: k / 100))
triplets = st.builds(Triplet, top=thresholds, area=st.integers(0, 40), bottom=thresholds)


@pytest.fixture(scope="module")
def films() -> Films:
    """Thirty films of noise of different strength, two thirds of them with a label."""
    chance = np.random.default_rng(3)
    made = []
    for number in range(30):
        film = chance.integers(0, 160 + 3 * number, (12, 14)).clip(0, 255).astype(np.uint8)
        made.append((film, (chance.random((12, 14)) < 0.2 * (number % 3)).astype(np.uint8)))
    return made


def counted(films: Films, rule: Rule) -> PixelCounts:
    masks = [apply_rule(film, rule) for film, _ in films]
    return PixelCounts(
        np.array([mask.sum() for mask in masks], np.int64),
        np.array([(mask & truth).sum() for mask, (_, truth) in zip(masks, films, strict=True)], np.int64),
        np.array([truth.sum() for _, truth in films], np.int64),
    )


def same(one: PixelCounts, other: PixelCounts) -> bool:
    return all((a == b).all() for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.parametrize("triplet", [TRIPLET, Triplet(0.5, 0, 0.99), Triplet(0.2, 500, 0.2), Triplet(1.0, 0, 1.0)])
def test_triplet_counts_equal_those_of_the_masks(films: Films, triplet: Triplet) -> None:
    histograms = np.stack([film_histograms(*film) for film in films])
    assert same(triplet_counts(histograms, triplet), counted(films, Rule(triplet)))


@pytest.mark.parametrize("smallest", [0, 1, 2, 4, 9, 1000])
def test_component_counts_equal_those_of_the_masks(films: Films, smallest: int) -> None:
    parts = [film_components(film, truth, 0.6) for film, truth in films]
    rule = Rule(Triplet(0.6, 0, 0.6), smallest_part=smallest)
    assert same(component_counts(parts, smallest), counted(films, rule))


def test_scores_are_means_over_films(films: Films) -> None:
    histograms = np.stack([film_histograms(*film) for film in films])
    found = triplet_counts(histograms, TRIPLET)
    assert 0 < found.called.sum() < 30 and found.called.tolist() == (found.predicted > 0).tolist()
    some = np.arange(30) % 4 == 1
    assert found.part(some).score() == triplet_counts(histograms[some], TRIPLET).score()
    assert found.part(np.flatnonzero(some)).dice.tolist() == found.dice[some].tolist()
    assert math.isnan(found.part(~found.positive).score().positive_dice)


def test_emptied_films_keep_their_labels(films: Films) -> None:
    found = triplet_counts(np.stack([film_histograms(*film) for film in films]), TRIPLET)
    shut = np.arange(30) < 15
    empty = found.emptied(shut)
    assert not empty.called[shut].any() and same(empty.part(~shut), found.part(~shut))
    assert (empty.truth == found.truth).all()
    assert empty.dice[shut].tolist() == (~found.positive[shut]).astype(float).tolist()


@settings(max_examples=200)
@given(st.lists(film_of(st.integers(0, 255), 5), min_size=1, max_size=4), triplets)
def test_film_dice_equals_direct_masks(films: list[Film], triplet: Triplet) -> None:
    expected = [naive_dice(*film, triplet) for film in films]
    assert triplet_counts(stack(films), triplet).dice.tolist() == expected


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


def test_area_is_met_by_equality() -> None:
    film = (np.array([[200, 200, 0]], np.uint8), np.array([[1, 1, 0]], np.uint8))
    assert triplet_counts(stack([film]), Triplet(0.5, 2, 0.5)).dice.tolist() == [1.0]
    assert triplet_counts(stack([film]), Triplet(0.5, 3, 0.5)).dice.tolist() == [0.0]


def test_score_is_the_mean_over_films_and_over_positive_films() -> None:
    hit = (np.array([[255, 0]], np.uint8), np.array([[1, 0]], np.uint8))
    half = (np.array([[255, 255]], np.uint8), np.array([[1, 0]], np.uint8))
    quiet = (np.array([[0, 0]], np.uint8), np.array([[0, 0]], np.uint8))
    result = triplet_counts(stack([hit, half, quiet]), Triplet(0.5, 0, 0.5)).score()
    assert result.dice == pytest.approx((1 + 2 / 3 + 1) / 3, abs=1e-15)
    assert result.positive_dice == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    assert result.always_empty == pytest.approx(1 / 3, abs=1e-15)
    assert (result.films, result.positives) == (3, 2)
