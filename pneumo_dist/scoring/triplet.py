"""Exact Dice on the label grid from integer histograms, and the exact best triplet.

The histogram of a film's p8 map over all pixels and over its label's pixels holds every count that any triplet of
thresholds needs, so films are looked at once and a search never touches a mask again.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Levels = 256
Histograms = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Triplet:
    """Fewer than `area` label-grid pixels with p > top make a film empty; else its mask is p > bottom."""

    top: float
    area: int
    bottom: float


def level(threshold: float) -> int:
    """Return t such that p8 > t exactly when p8 / 255 > threshold (guarding thresholds like 0.6 = 153/255)."""
    return math.floor(threshold * 255 + 1e-6)


def film_histograms(label_map: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> Histograms:
    """Return int64 (2, 256): counts of map values over all pixels, and over the pixels where `truth` is not 0."""
    everywhere = np.bincount(label_map.reshape(-1), minlength=Levels)
    labelled = np.bincount(label_map[truth != 0], minlength=Levels)
    return np.stack([everywhere, labelled]).astype(np.int64)


def counts_above(histograms: Histograms) -> Histograms:
    """Return, along the last axis, how many pixels lie above each level 0..255."""
    return histograms[..., ::-1].cumsum(-1)[..., ::-1] - histograms


def dice(intersection: Histograms, predicted: Histograms, truth: Histograms) -> npt.NDArray[np.float64]:
    """Return 2|X∩Y| / (|X| + |Y|) in float64, 1 where both are empty."""
    total = predicted + truth
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


def film_dice(histograms: Histograms, triplet: Triplet) -> npt.NDArray[np.float64]:
    """Return the Dice of each film, float64 (n,), for histograms of shape (n, 2, 256)."""
    return dice_of_counts(counts_above(histograms), histograms[:, 1].sum(-1), triplet)


def dice_of_counts(above: Histograms, truth: Histograms, triplet: Triplet) -> npt.NDArray[np.float64]:
    """Return the Dice of each film from what `counts_above` found, int64 (n, 2, 256), and label pixels, int64 (n,)."""
    predicted, hits = triplet_counts(above, triplet)
    return dice(hits, predicted, truth)


def triplet_counts(above: Histograms, triplet: Triplet) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the pixels of each film's mask and how many of them are labelled, int64 (n,) each, from `counts_above`."""
    kept = above[:, 0, level(triplet.top)] >= triplet.area
    predicted, hits = above[:, :, level(triplet.bottom)].T
    return np.where(kept, predicted, 0), np.where(kept, hits, 0)


@dataclass(frozen=True)
class Score:
    """Mean Dice over films, over positive films (nan without any), and of predicting empty everywhere."""

    dice: float
    positive_dice: float
    always_empty: float
    films: int
    positives: int


def score(histograms: Histograms, triplet: Triplet) -> Score:
    """Return the scores of a triplet; each film of `histograms` (n, 2, 256) counts once."""
    return score_of(film_dice(histograms, triplet), histograms[:, 1].sum(-1) > 0)


def score_of(dices: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> Score:
    """Return the scores of films, from the Dice of each and whether its label has any pixel, (n,) each."""
    return Score(
        dice=float(dices.mean()),
        positive_dice=float(dices[positive].mean()) if positive.any() else math.nan,
        always_empty=float((~positive).mean()),
        films=len(dices),
        positives=int(positive.sum()),
    )


def best_triplet(
    histograms: Histograms, weights: npt.NDArray[np.float64] | None = None, specificity: float | None = None
) -> tuple[Triplet, float]:
    """Return the triplet with the highest mean Dice over every top and bottom level and every area, and that mean.

    `weights` float64 (n,) say how much each film counts; None counts all alike. With `specificity`, among triplets
    that leave at least that share of the films without a pneumothorax empty, those that call most positive films come
    first, and Dice decides between them.

    Among films sorted by their count above `top`, an area keeps the first so many: one running sum gives the score
    of every area for every bottom at once. Ties go to the lowest top, then the largest area, then the lowest bottom.
    """
    assert len(histograms), "no films to tune on"
    above = counts_above(histograms)
    truth = histograms[:, 1].sum(-1)
    shares = np.ones(len(histograms)) if weights is None else weights
    hidden = (truth == 0).astype(np.float64)
    gain = shares[:, None] * (dice(above[:, 1], above[:, 0], truth[:, None]) - hidden[:, None])
    allowed = None if specificity is None else math.floor((1.0 - specificity) * hidden.sum() + 1e-9)
    best, found = (-1, -math.inf), Triplet(0.0, 0, 0.0)
    for top in range(Levels - 1):
        counts = above[:, 0, top]
        order = np.argsort(-counts, kind="stable")
        ranked = counts[order]
        # Films with one count cannot be told apart: an area ends where the count changes.
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        sums = np.vstack([np.zeros(Levels), gain[order].cumsum(0)[ends]])
        called = 0
        if allowed is not None:
            wrong, right = (np.append(0, part[order].cumsum()[ends]) for part in (truth == 0, truth > 0))
            called = int(right[wrong <= allowed].max())
            sums[(wrong > allowed) | (right < called)] = -math.inf
        kept, bottom = np.unravel_index(int(sums.argmax()), sums.shape)
        value = float(sums[kept, bottom])
        if called > best[0] or (called == best[0] and value > best[1] + 1e-12):
            best = (called, value)
            area = int(ranked[0]) + 1 if kept == 0 else int(ranked[ends[kept - 1]])
            found = Triplet(top / 255, area, int(bottom) / 255)
    return found, float((best[1] + (shares * hidden).sum()) / shares.sum())
