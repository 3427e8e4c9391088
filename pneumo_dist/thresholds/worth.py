"""What tuned thresholds are worth: on films that they were not tuned on, around the best, and by size of the mask."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from pneumo_dist.scoring.arrays import Counts, Flags, Floats, Names
from pneumo_dist.scoring.counts import PixelCounts, counts_at, triplet_counts
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import LEVELS, Histograms, counts_above, level
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.objective import Objective

# Thresholds that lose less than this are as good as the best.
PLATEAU = 0.001


@dataclass(frozen=True)
class SizeRow:
    """The positive films whose masks have `smallest` to `largest` label-grid pixels: the share of them that is called
    positive, and their mean Dice."""

    smallest: int
    largest: int
    films: int
    sensitivity: float
    dice: float


@dataclass(frozen=True)
class Surface:
    """Mean Dice float64 (tops, areas) at one bottom: `tops` are thresholds, `areas` label-grid pixels."""

    tops: Floats
    areas: Counts
    dice: Floats


def not_cross_tuned(positive: Flags, folds: Counts, objective: Objective) -> str | None:
    """Return why no thresholds can be tuned on the other folds of each fold, in words; None where they can.

    `positive` bool (n,) and `folds` (n,) are those of the films.
    """
    if len(np.unique(folds)) < 2:
        return "all films are of one fold"
    for fold in np.unique(folds):
        lack = objective.lacks(positive[folds != fold])
        if lack is not None:
            return f"besides fold {fold} there are no {lack}"
    return None


def cross_tuned(histograms: Histograms, folds: Counts, objective: Objective) -> Floats | None:
    """Return the Dice of each film under thresholds tuned on the other folds; None where `not_cross_tuned` says why."""
    if not_cross_tuned(histograms[:, 1].sum(-1) > 0, folds, objective) is not None:
        return None
    dices = np.zeros(len(histograms))
    for fold in np.unique(folds):
        own = folds == fold
        dices[own] = triplet_counts(histograms[own], objective.search(histograms[~own])).dice
    return dices


def bootstrap_interval(values: Floats, groups: Names, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the mean over films, by drawing patients with replacement.

    `groups` names each film's patient. The percentile interval of B. Efron, "Bootstrap methods", Annals of Statistics
    1979. Both ends are nan for a single patient.
    """
    _, patient = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(patient, values), np.bincount(patient).astype(np.float64)
    if len(sums) < 2:
        return float("nan"), float("nan")

    def mean(sums: Floats, counts: Floats, axis: int = -1) -> Floats:
        return np.asarray(sums.sum(axis) / counts.sum(axis))

    found = stats.bootstrap(
        (sums, counts), mean, paired=True, vectorized=True, n_resamples=draws, batch=100, method="percentile", rng=0
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def by_size(counts: PixelCounts, rows: int = 10) -> list[SizeRow]:
    """Return the positive films in `rows` parts of nearly equal number by the size of their masks, smallest first."""
    positive = np.flatnonzero(counts.positive)
    ranked = positive[np.argsort(counts.truth[positive], kind="stable")]
    parts = [counts.part(part) for part in np.array_split(ranked, rows) if len(part)]
    return [
        SizeRow(
            smallest=int(part.truth.min()),
            largest=int(part.truth.max()),
            films=len(part),
            sensitivity=float(part.called.mean()),
            dice=float(part.dice.mean()),
        )
        for part in parts
    ]


def given_up(histograms: Histograms, triplet: Triplet) -> int:
    """Return how many positive films only `area` makes empty: they have pixels above `bottom`."""
    found = triplet_counts(histograms, triplet)
    without = triplet_counts(histograms, replace(triplet, area=0))
    return int((found.positive & ~found.called & without.called).sum())


def surface(histograms: Histograms, best: Triplet, weights: Floats, areas: int = 96) -> Surface:
    """Return the mean Dice of every top and of about `areas` areas, from 0 to past the largest, at the best bottom."""
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
    """Return how far each threshold can move, alone and without a gap, while the mean Dice loses less than PLATEAU."""
    above, truth = counts_above(histograms), histograms[:, 1].sum(-1)
    counts = above[:, 0, level(best.top)]
    ways: dict[str, list[float]] = {
        "top": [value / 255 for value in range(LEVELS - 1)],
        "area": np.unique([0, best.area, *counts, *(counts + 1)]).tolist(),
        "bottom": [value / 255 for value in range(LEVELS)],
    }

    def mean(**moved: Any) -> float:
        return float(np.average(counts_at(above, truth, replace(best, **moved)).dice, weights=weights))

    goal = mean() - PLATEAU
    found = {}
    for name, values in ways.items():
        first = last = values.index(getattr(best, name))
        while first > 0 and mean(**{name: values[first - 1]}) > goal:
            first -= 1
        while last + 1 < len(values) and mean(**{name: values[last + 1]}) > goal:
            last += 1
        found[name] = (float(values[first]), float(values[last]))
    return found
