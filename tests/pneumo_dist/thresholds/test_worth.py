"""What thresholds are worth, against counting film by film."""

import itertools
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import Histograms, film_histograms
from pneumo_dist.scoring.masks import apply_triplet
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.worth import (
    PLATEAU,
    by_size,
    cross_tuned,
    estimate,
    given_up,
    not_cross_tuned,
    plateau,
    surface,
)

Film = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
TRIPLET = Triplet(0.6, 5, 0.3)


@pytest.fixture(scope="module")
def films() -> list[Film]:
    """Thirty films of 12 px; those of odd number hold a rectangle that the map finds, more or less."""
    chance = np.random.default_rng(7)
    made = []
    for number in range(30):
        truth = np.zeros((12, 12), np.uint8)
        if number % 2:
            truth[2 : 3 + number // 5, 3 : 5 + number // 6] = 1
        values = truth * chance.integers(60, 230) + chance.normal(40, 25, truth.shape)
        made.append((values.clip(0, 255).astype(np.uint8), truth))
    return made


@pytest.fixture(scope="module")
def histograms(films: list[Film]) -> Histograms:
    return np.stack([film_histograms(*film) for film in films])


def test_called_and_given_up_films_are_those_of_the_rule(films: list[Film], histograms: Histograms) -> None:
    masks = [apply_triplet(values, TRIPLET) for values, _ in films]
    counts = [int((values > 153).sum()) for values, _ in films]
    assert triplet_counts(histograms, replace(TRIPLET, bottom=TRIPLET.top)).called.tolist() == [c >= 5 for c in counts]
    lost = [
        truth.any() and not mask.any() and (values > 76).any()
        for (values, truth), mask in zip(films, masks, strict=True)
    ]
    assert given_up(histograms, TRIPLET) == sum(lost) > 0


def test_rows_by_size_hold_each_positive_film_once(films: list[Film], histograms: Histograms) -> None:
    rows = by_size(triplet_counts(histograms, TRIPLET), rows=4)
    assert [row.films for row in rows] == [4, 4, 4, 3]
    sizes = sorted(int(truth.sum()) for _, truth in films if truth.any())
    assert (rows[0].smallest, rows[-1].largest) == (sizes[0], sizes[-1])
    assert all(one.largest <= other.smallest for one, other in itertools.pairwise(rows))
    positive = np.array([truth.any() for _, truth in films])
    called = np.array([(values > 153).sum() >= 5 for values, _ in films])
    assert sum(row.films * row.sensitivity for row in rows) == pytest.approx(called[positive].sum())
    assert sum(row.films * row.dice for row in rows) == pytest.approx(
        triplet_counts(histograms, TRIPLET).dice[positive].sum()
    )


def test_no_positive_film_makes_no_row(histograms: Histograms) -> None:
    assert by_size(triplet_counts(histograms[::2], TRIPLET)) == []
    assert given_up(histograms[::2], TRIPLET) == 0


def test_each_fold_is_scored_with_thresholds_of_the_others(histograms: Histograms) -> None:
    folds = np.arange(30) // 2 % 3
    dices = cross_tuned(histograms, folds, Objective())
    assert dices is not None
    for fold in range(3):
        triplet = Objective().search(histograms[folds != fold])
        assert dices[folds == fold].tolist() == triplet_counts(histograms[folds == fold], triplet).dice.tolist()
    assert cross_tuned(histograms, np.zeros(30, int), Objective()) is None


@pytest.mark.parametrize("objective", [Objective(prevalence=0.1), Objective(specificity=0.8)])
def test_no_thresholds_are_tuned_on_folds_that_lack_a_kind_of_film(
    histograms: Histograms, objective: Objective
) -> None:
    positive = histograms[:, 1].sum(-1) > 0
    folds = np.where(positive, 3, np.arange(30) // 2 % 3)
    assert not_cross_tuned(positive, folds, objective) == "outside fold 3 there are no films with a pneumothorax"
    assert cross_tuned(histograms, folds, objective) is None
    negative_folds = np.where(positive, np.arange(30) // 2 % 3, 7)
    assert not_cross_tuned(positive, negative_folds, objective) == (
        "outside fold 7 there are no films without a pneumothorax"
    )
    assert not_cross_tuned(positive, folds, Objective()) is None
    assert cross_tuned(histograms, folds, Objective()) is not None
    assert not_cross_tuned(positive, np.zeros(30, int), objective) == "all films are in one fold"


def test_surface_is_the_mean_of_the_film_scores(films: list[Film], histograms: Histograms) -> None:
    weights = Objective(prevalence=0.3).film_weights(histograms[:, 1].sum(-1) > 0)
    found = surface(histograms, TRIPLET, weights)
    most = max(int((values > 0).sum()) for values, _ in films)
    assert found.areas[0] == 0 and found.areas[-1] == most + 1 and TRIPLET.area in found.areas
    for top, place in ((0, 0), (0, 1), (153, 5), (254, 3), (100, 20), (100, -1)):
        triplet = Triplet(top / 255, int(found.areas[place]), TRIPLET.bottom)
        expected = np.average(triplet_counts(histograms, triplet).dice, weights=weights)
        assert found.dice[top, place] == pytest.approx(expected, abs=1e-12)


def test_plateau_reaches_as_far_as_nothing_is_lost(histograms: Histograms) -> None:
    best, weights = Objective().search(histograms), np.ones(30)
    goal = triplet_counts(histograms, best).dice.mean() - PLATEAU
    ranges = plateau(histograms, best, weights)
    assert set(ranges) == {"top", "area", "bottom"}
    for name, (low, high) in ranges.items():
        value = getattr(best, name)
        assert low <= value <= high
        step = 1 if name == "area" else 1 / 255
        for inside in np.arange(low, high + step / 2, step):
            changed = Triplet(**{**vars(best), name: int(inside) if name == "area" else inside})
            assert triplet_counts(histograms, changed).dice.mean() > goal
        for outside in (low - step, high + step):
            if 0 <= outside <= (144 if name == "area" else 254 / 255):
                changed = Triplet(**{**vars(best), name: int(outside) if name == "area" else outside})
                assert triplet_counts(histograms, changed).dice.mean() <= goal


def test_plateau_of_a_bottom_that_empties_every_mask() -> None:
    """All films must be called for the faint one to be, and only the highest bottom empties the three false ones."""
    faint = (np.array([[200, 0]], np.uint8), np.array([[1, 0]], np.uint8))
    false = (np.full((1, 2), 255, np.uint8), np.zeros((1, 2), np.uint8))
    histograms = np.stack([film_histograms(*film) for film in (faint, false, false, false)])
    best = Objective(specificity=0.0).search(histograms)
    assert best.bottom == 1.0
    assert plateau(histograms, best, np.ones(4))["bottom"] == (1.0, 1.0)


def test_interval_holds_the_mean_and_counts_patients_not_films() -> None:
    chance = np.random.default_rng(0)
    values = chance.random(400)
    apart = estimate(values, np.arange(400).astype(str))
    # The standard error of a mean of 400 uniform numbers is 0.0144; the interval reaches 1.96 of it to both sides.
    assert apart.low < apart.mean == values.mean() < apart.high
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    together = estimate(np.repeat(values[:40], 10), np.repeat(np.arange(40), 10).astype(str))
    assert together.high - together.low == pytest.approx(2 * 1.96 * values[:40].std() / math.sqrt(40), rel=0.15)
    assert estimate(values, np.arange(400).astype(str)) == apart, "the draws are always the same"


def test_one_patient_has_no_interval() -> None:
    single = estimate(np.array([0.2, 0.4]), np.array(["a", "a"]))
    assert single.mean == pytest.approx(0.3) and math.isnan(single.low) and math.isnan(single.high)


def test_estimate_of_nothing_is_nan() -> None:
    found = estimate(np.zeros(0), np.zeros(0, np.str_))
    assert math.isnan(found.mean) and math.isnan(found.low) and math.isnan(found.high)
