"""The triplet rule, and the exact search for the best one."""

import math
from dataclasses import dataclass

import numpy as np

from pneumo_dist.scoring.arrays import Floats
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import LEVELS, Histograms, counts_above


@dataclass(frozen=True)
class Triplet:
    """Fewer than `area` label-grid pixels with p > top make a film empty; else its mask is p > bottom."""

    top: float
    area: int
    bottom: float


def best_triplet(
    histograms: Histograms, weights: Floats | None = None, specificity: float | None = None
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
    for top in range(LEVELS - 1):
        counts = above[:, 0, top]
        order = np.argsort(-counts, kind="stable")
        ranked = counts[order]
        # Films with one count cannot be told apart: an area ends where the count changes.
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        sums = np.vstack([np.zeros(LEVELS), gain[order].cumsum(0)[ends]])
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
