"""Pixel counts of films under a rule, compared with counting the pixels of their masks."""

import math

import numpy as np
import pytest
from naive_dice import stack

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import Rule, apply_rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.refine import component_counts, film_components

TRIPLET = Triplet(0.8, 20, 0.6)
Films = list[tuple[Map, Map]]


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
    assert found.select(some).score() == triplet_counts(histograms[some], TRIPLET).score()
    assert found.select(np.flatnonzero(some)).dice.tolist() == found.dice[some].tolist()
    assert math.isnan(found.select(~found.positive).score().positive_dice)


def test_emptied_films_keep_their_labels(films: Films) -> None:
    found = triplet_counts(np.stack([film_histograms(*film) for film in films]), TRIPLET)
    shut = np.arange(30) % 2 == 0
    assert found.called[shut].any() and found.hits[shut].any()
    empty = found.emptied(shut)
    assert not empty.hits[shut].any()
    assert not empty.called[shut].any() and same(empty.select(~shut), found.select(~shut))
    assert (empty.truth == found.truth).all()
    assert empty.dice[shut].tolist() == (~found.positive[shut]).astype(float).tolist()


def test_area_is_met_by_equality() -> None:
    film = (np.array([[200, 200, 0]], np.uint8), np.array([[1, 1, 0]], np.uint8))
    assert triplet_counts(stack([film]), Triplet(0.5, 2, 0.5)).dice.tolist() == [1.0]
    assert triplet_counts(stack([film]), Triplet(0.5, 3, 0.5)).dice.tolist() == [0.0]


def test_one_pixel_makes_a_film_positive_or_called() -> None:
    counts = PixelCounts(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([1, 0, 1]))
    assert (counts.positive.tolist(), counts.called.tolist()) == ([True, False, True], [False, True, True])
    assert len(counts) == 3
