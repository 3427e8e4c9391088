"""Objectives: their texts, and the weights of films."""

import numpy as np
import pytest

from pneumo_dist.scoring.histograms import film_histograms, level
from pneumo_dist.thresholds.objective import Objective
from shards.errors import InputError


@pytest.mark.parametrize("text", ["dice", "dice@prevalence=0.2", "sensitivity@specificity=0.95"])
def test_objective_parses_its_own_text(text: str) -> None:
    assert str(Objective.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Dice",
        "dice@prevalence",
        "dice@prevalence=",
        "dice@prevalence=0",
        "dice@prevalence=1",
        "dice@prevalence=x",
        "sensitivity@specificity=1.1",
        "sensitivity@specificity=nan",
        "sensitivity=0.9",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--objective .*give dice"):
        Objective.parse(text)


def test_films_are_weighted_to_another_prevalence() -> None:
    positive = np.array([True, False, False, False])
    weights = Objective.parse("dice@prevalence=0.4").film_weights(positive)
    assert weights[positive].sum() / weights.sum() == pytest.approx(0.4)
    assert weights.mean() == pytest.approx(1.0)
    assert Objective().film_weights(positive).tolist() == [1.0] * 4


@pytest.mark.parametrize("positive", [True, False])
def test_prevalence_needs_both_kinds_of_films(positive: bool) -> None:
    with pytest.raises(InputError, match="with and without"):
        Objective(prevalence=0.5).film_weights(np.array([positive] * 3))


def test_a_lower_prevalence_raises_the_threshold() -> None:
    """A positive and a negative film both reach 150. Whether it pays to call them depends on the prevalence."""
    faint = (np.array([[150, 0]], np.uint8), np.array([[1, 0]], np.uint8))
    false = (np.array([[150, 0]], np.uint8), np.array([[0, 0]], np.uint8))
    histograms = np.stack([film_histograms(*film) for film in (faint, false)])
    often, seldom = (Objective(prevalence=share).search(histograms) for share in (0.9, 0.1))
    assert level(often.bottom) < 150 and often.area <= 1
    assert level(seldom.bottom) >= 150 or seldom.area > 1


def test_specificity_is_reached() -> None:
    chance = np.random.default_rng(3)
    films = [(chance.integers(0, 256, (6, 6), np.uint8), chance.integers(0, 2, (6, 6)) * (n % 2)) for n in range(20)]
    histograms = np.stack([film_histograms(film, truth.astype(np.uint8)) for film, truth in films])
    triplet = Objective(specificity=0.9).search(histograms)
    called = [(film > level(triplet.top)).sum() >= triplet.area for film, _ in films]
    assert sum(called[0::2]) <= 1, "ten negative films"
    assert sum(called[1::2]) > 0


@pytest.mark.parametrize("text", ["dice@prevalence=0.2", "sensitivity@specificity=0.9"])
def test_a_missing_kind_of_films_is_named(text: str) -> None:
    objective = Objective.parse(text)
    assert objective.lacks(np.array([True, False])) is None
    assert objective.lacks(np.array([False, False])) == "films with a pneumothorax"
    assert objective.lacks(np.array([True, True])) == "films without a pneumothorax"
    assert Objective().lacks(np.array([False])) is None
