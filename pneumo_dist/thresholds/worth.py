"""Worth of tuned thresholds: on unseen films, near the optimum, and by size of the mask."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from pneumo_dist.scoring.arrays import Counts, Flags, Names
from pneumo_dist.scoring.counts import PixelCounts, counts_at, triplet_counts
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import LEVELS, Histograms, counts_above, level
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.objective import Objective
from shards.arrays import Floats

# Thresholds that lose less mean Dice than this count as equal to the best.
PLATEAU = 0.001


@dataclass(frozen=True)
class Estimate:
    """A mean over films with its 95 % interval by patient. The ends are nan if there is only one patient."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SizeRow:
    """Scores of the positive films whose labels have `smallest` to `largest` label-grid pixels."""

    smallest: int
    largest: int
    films: int
    sensitivity: float
    dice: float


@dataclass(frozen=True)
class Surface:
    """Mean Dice, float64 (tops, areas), at one bottom. `tops` are thresholds, `areas` are label-grid pixels."""

    tops: Floats
    areas: Counts
    dice: Floats


def not_cross_tuned(positive: Flags, folds: Counts, objective: Objective) -> str | None:
    """Explain why thresholds cannot be tuned on the other folds of each fold; None if they can.

    `positive` bool (n,) and `folds` int64 (n,) describe the films.
    """
    if len(np.unique(folds)) < 2:
        return "all films are in one fold"
    for fold in np.unique(folds):
        missing = objective.lacks(positive[folds != fold])
        if missing is not None:
            return f"outside fold {fold} there are no {missing}"
    return None


def cross_tuned(histograms: Histograms, folds: Counts, objective: Objective) -> Floats | None:
    """Return the Dice of each film (n,) under thresholds of the other folds; None if they cannot be tuned."""
    if not_cross_tuned(histograms[:, 1].sum(-1) > 0, folds, objective) is not None:
        return None
    dices = np.zeros(len(histograms))
    for fold in np.unique(folds):
        is_in = folds == fold
        dices[is_in] = triplet_counts(histograms[is_in], objective.search(histograms[~is_in])).dice
    return dices


def estimate(values: Floats, groups: Names, draws: int = 2000) -> Estimate:
    """Return the mean of `values` (n,) over films, with its 95 % interval; all nan for no films.

    The interval is the percentile interval of B. Efron, "Bootstrap methods", Annals of Statistics 1979. It draws
    patients with replacement; `groups` (n,) names the patient of each film. Its ends are nan for a single patient.
    """
    average = float(values.mean()) if len(values) else math.nan
    _, patient = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(patient, values), np.bincount(patient).astype(np.float64)
    if len(sums) < 2:
        return Estimate(average, math.nan, math.nan)

    def mean(sums: Floats, counts: Floats, axis: int = -1) -> Floats:
        return np.asarray(sums.sum(axis) / counts.sum(axis))

    interval = stats.bootstrap(
        (sums, counts), mean, paired=True, vectorized=True, n_resamples=draws, batch=100, method="percentile", rng=0
    ).confidence_interval
    return Estimate(average, float(interval.low), float(interval.high))


def by_size(counts: PixelCounts, rows: int = 10) -> list[SizeRow]:
    """Divide the positive films into `rows` bins of nearly equal number by the size of their labels, smallest first."""
    positive = np.flatnonzero(counts.positive)
    ranked = positive[np.argsort(counts.truth[positive], kind="stable")]
    bins = [counts.select(films) for films in np.array_split(ranked, rows) if len(films)]
    return [
        SizeRow(
            smallest=int(each.truth.min()),
            largest=int(each.truth.max()),
            films=len(each),
            sensitivity=float(each.called.mean()),
            dice=float(each.dice.mean()),
        )
        for each in bins
    ]


def given_up(histograms: Histograms, triplet: Triplet) -> int:
    """Count the positive films that are empty only because of `area`: they have pixels above `bottom`."""
    counts = triplet_counts(histograms, triplet)
    without_area = triplet_counts(histograms, replace(triplet, area=0))
    return int((counts.positive & ~counts.called & without_area.called).sum())


def surface(histograms: Histograms, best: Triplet, weights: Floats, areas: int = 96) -> Surface:
    """Return the mean Dice at the best bottom for every top and about `areas` areas, from 0 to above the largest."""
    above = counts_above(histograms)
    truth, chosen = histograms[:, 1].sum(-1), level(best.bottom)
    hidden = (truth == 0).astype(np.float64)
    gain = weights * (dice(above[:, 1, chosen], above[:, 0, chosen], truth) - hidden)
    largest = int(above[:, 0].max()) + 1
    steps = np.unique([0, best.area, *np.geomspace(1, largest, areas).round().astype(np.int64)])
    values = np.zeros((LEVELS - 1, len(steps)))
    for top in range(LEVELS - 1):
        order = np.argsort(-above[:, 0, top], kind="stable")
        sums = np.append(0.0, gain[order].cumsum())
        values[top] = sums[np.searchsorted(-above[order, 0, top], -steps, side="right")]
    mean = (values + (weights * hidden).sum()) / weights.sum()
    return Surface(np.arange(LEVELS - 1) / 255, steps, mean)


def plateau(histograms: Histograms, best: Triplet, weights: Floats) -> dict[str, tuple[float, float]]:
    """Return the range in which each threshold can move alone while the mean Dice loses less than PLATEAU."""
    above, truth = counts_above(histograms), histograms[:, 1].sum(-1)
    counts = above[:, 0, level(best.top)]
    candidates: dict[str, list[float]] = {
        "top": [value / 255 for value in range(LEVELS - 1)],
        "area": np.unique([0, best.area, *counts, *(counts + 1)]).tolist(),
        "bottom": [value / 255 for value in range(LEVELS)],
    }

    def mean(**moved: Any) -> float:
        return float(np.average(counts_at(above, truth, replace(best, **moved)).dice, weights=weights))

    goal = mean() - PLATEAU
    ranges = {}
    for name, values in candidates.items():
        first = last = values.index(getattr(best, name))
        while first > 0 and mean(**{name: values[first - 1]}) > goal:
            first -= 1
        while last + 1 < len(values) and mean(**{name: values[last + 1]}) > goal:
            last += 1
        ranges[name] = (float(values[first]), float(values[last]))
    return ranges
