"""What a rule makes of films, against counting the pixels of their masks."""

import math

import numpy as np
import pytest

from pneumo_dist.scoring.counts import Outcome, triplet_outcome
from pneumo_dist.scoring.masks import Map, Rule, apply_rule
from pneumo_dist.scoring.triplet import Triplet, film_histograms, score
from pneumo_dist.thresholds.components import components_outcome, film_components

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


def counted(films: Films, rule: Rule) -> Outcome:
    masks = [apply_rule(film, rule) for film, _ in films]
    return Outcome(
        np.array([mask.sum() for mask in masks], np.int64),
        np.array([(mask & truth).sum() for mask, (_, truth) in zip(masks, films, strict=True)], np.int64),
        np.array([truth.sum() for _, truth in films], np.int64),
    )


def same(one: Outcome, other: Outcome) -> bool:
    return all((a == b).all() for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.parametrize("triplet", [TRIPLET, Triplet(0.5, 0, 0.99), Triplet(0.2, 500, 0.2), Triplet(1.0, 0, 1.0)])
def test_triplets_outcome_is_that_of_the_masks(films: Films, triplet: Triplet) -> None:
    histograms = np.stack([film_histograms(*film) for film in films])
    assert same(triplet_outcome(histograms, triplet), counted(films, Rule(triplet)))


@pytest.mark.parametrize("smallest", [0, 1, 2, 4, 9, 1000])
def test_outcome_without_small_parts_is_that_of_the_masks(films: Films, smallest: int) -> None:
    parts = [film_components(film, truth, 0.6) for film, truth in films]
    rule = Rule(Triplet(0.6, 0, 0.6), smallest_part=smallest)
    assert same(components_outcome(parts, smallest), counted(films, rule))


def test_scores_are_means_over_films(films: Films) -> None:
    histograms = np.stack([film_histograms(*film) for film in films])
    found = triplet_outcome(histograms, TRIPLET)
    assert 0 < found.called.sum() < 30 and found.called.tolist() == (found.predicted > 0).tolist()
    assert found.score() == score(histograms, TRIPLET)
    some = np.arange(30) % 4 == 1
    assert found.part(some).score() == score(histograms[some], TRIPLET)
    assert found.part(np.flatnonzero(some)).dice.tolist() == found.dice[some].tolist()
    assert math.isnan(found.part(~found.positive).score().positive_dice)


def test_emptied_films_keep_their_labels(films: Films) -> None:
    found = triplet_outcome(np.stack([film_histograms(*film) for film in films]), TRIPLET)
    shut = np.arange(30) < 15
    empty = found.emptied(shut)
    assert not empty.called[shut].any() and same(empty.part(~shut), found.part(~shut))
    assert (empty.truth == found.truth).all()
    assert empty.dice[shut].tolist() == (~found.positive[shut]).astype(float).tolist()
