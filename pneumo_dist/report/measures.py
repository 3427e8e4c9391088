"""Measures of a set of films: Dice, sensitivity, specificity, AUROC, AUPRC, false positives and lesions.

A film is called positive if its mask has any pixel under the rule. All pixels are label-grid pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from pneumo_dist.scoring.arrays import Flags, Map, Names
from pneumo_dist.scoring.counts import PixelCounts
from pneumo_dist.scoring.crop import occupied
from pneumo_dist.scoring.histograms import Histograms
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats

AVERAGED = ("dice", "positive_dice", "sensitivity", "specificity", "auroc", "auprc")


@dataclass(frozen=True)
class Calls:
    """Numbers of films that are rightly or wrongly called positive (`tp`, `fp`) or not called positive (`tn`, `fn`)."""

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True)
class Measures:
    """Scores of a set of films. A score is nan if the films it averages over are missing.

    `dice` and `positive_dice` are means over all films and over positive films. `always_empty` is the mean Dice of
    empty masks everywhere. `ppv` and `npv` are the shares of right calls among the films called positive, and among the
    others. `auroc` and `auprc` (average precision) rank films by `image_scores`.
    """

    films: int
    positives: int
    calls: Calls
    always_empty: float
    dice: Estimate
    positive_dice: Estimate
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    auroc: Estimate
    auprc: Estimate


@dataclass(frozen=True)
class FalsePositives:
    """Predicted pixels per film without a pneumothorax, over all these films and over the `called` ones only."""

    negatives: int
    called: int
    mean: float
    median: float
    called_mean: float
    called_median: float


def measure(counts: PixelCounts, scores: Floats, groups: Names) -> Measures:
    """Return the measures of films with image `scores` (n,). Intervals draw from `groups` (n,)."""
    positive, dices, called = counts.positive, counts.dice, counts.called
    shown, is_right = called.astype(np.float64), (called == positive).astype(np.float64)
    ranking = ranked_estimates(positive, scores, groups)
    return Measures(
        films=len(counts),
        positives=int(positive.sum()),
        calls=count_calls(counts),
        always_empty=float((~positive).mean()),
        dice=estimate(dices, groups),
        positive_dice=estimate(dices[positive], groups[positive]),
        sensitivity=estimate(shown[positive], groups[positive]),
        specificity=estimate(1.0 - shown[~positive], groups[~positive]),
        ppv=estimate(is_right[called], groups[called]),
        npv=estimate(is_right[~called], groups[~called]),
        auroc=ranking[0],
        auprc=ranking[1],
    )


def count_calls(counts: PixelCounts) -> Calls:
    """Count the films by label and call."""
    positive, called = counts.positive, counts.called
    cells = (positive & called, ~positive & called, positive & ~called, ~positive & ~called)
    return Calls(*(int(np.count_nonzero(films)) for films in cells))


def image_scores(histograms: Histograms, area: int) -> Floats:
    """Return the `scoring.masks.image_score` of each film, float64 (n,), from its histogram.

    An area of 0 would give all films one score. The largest probability is used instead, which then decides whether a
    mask has pixels.
    """
    at_least = histograms[:, 0, ::-1].cumsum(-1)
    reached = (at_least >= max(area, 1)).sum(-1)
    return np.asarray(np.maximum(reached - 1, 0) / 255)


def auroc(positive: Flags, scores: Floats) -> float:
    """Return the area under the ROC curve; nan if one class is missing."""
    return float(roc_auc_score(positive, scores)) if len(np.unique(positive)) == 2 else math.nan


def auprc(positive: Flags, scores: Floats) -> float:
    """Return the average precision; nan if one class is missing."""
    return float(average_precision_score(positive, scores)) if len(np.unique(positive)) == 2 else math.nan


def ranked_estimates(positive: Flags, scores: Floats, groups: Names, draws: int = 2000) -> tuple[Estimate, Estimate]:
    """Return AUROC and average precision with 95 % percentile intervals, which draw groups with replacement.

    Draws with films of one class only are ignored. The ends are nan for a single group.
    """
    values = auroc(positive, scores), auprc(positive, scores)
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < 2 or math.isnan(values[0]):
        return Estimate(values[0], math.nan, math.nan), Estimate(values[1], math.nan, math.nan)
    random, shares = np.random.default_rng(0), np.full(len(names), 1 / len(names))
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    drawn = []
    for _ in range(0, draws, 100):
        often = random.multinomial(len(names), shares, 100)[:, member[order]].astype(np.float64)
        counts = (np.add.reduceat(often * kind[order], starts, axis=1) for kind in (positive, ~positive))
        drawn.append(drawn_areas(*counts))
    areas = np.concatenate(drawn, axis=1)
    low, high = np.nanquantile(areas, [0.025, 0.975], axis=1)
    first, second = (Estimate(value, float(low[i]), float(high[i])) for i, value in enumerate(values))
    return first, second


def drawn_areas(positives: Floats, negatives: Floats) -> Floats:
    """Return AUROC and average precision of k draws, float64 (2, k); nan for draws that lack a class.

    The inputs (k, m) count the films of each draw by their score, in rising order of the distinct scores. scikit-learn
    takes one draw at a time and spends more time on checking its input than on computing.
    """
    true, false = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (positives, negatives))
    total, others = true[:, :1], false[:, :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        wins = (negatives * (true - positives / 2)).sum(1) / (total * others)[:, 0]
        precision = np.where(true + false > 0, true / (true + false), 0.0)
        average = (positives * precision).sum(1) / total[:, 0]
    return np.where((total * others)[:, 0] > 0, np.stack([wins, average]), math.nan)


def fold_average(rows: Sequence[Measures], name: str) -> tuple[float, float]:
    """Return the mean and standard deviation of a measure over the folds that have it; nan for too few folds."""
    values = [value for value in (float(getattr(row, name).mean) for row in rows) if not math.isnan(value)]
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def false_positives(counts: PixelCounts) -> FalsePositives:
    """Return the predicted pixels on the films without a pneumothorax."""
    pixels = counts.predicted[~counts.positive]
    called = pixels[pixels > 0]
    averages = [
        float(average(films)) if len(films) else math.nan
        for films in (pixels, called)
        for average in (np.mean, np.median)
    ]
    return FalsePositives(len(pixels), len(called), *averages)


def touched_lesions(truth: Map, mask: Map) -> Flags:
    """Return for each 8-connected component of a 0/1 label whether any of its pixels is predicted, bool (k,)."""
    box = occupied(truth)
    if box is None:
        return np.zeros(0, np.bool_)
    count, components = cv2.connectedComponents(truth[box], connectivity=8)
    return np.asarray(np.bincount(components[mask[box] != 0], minlength=count)[1:] > 0)
