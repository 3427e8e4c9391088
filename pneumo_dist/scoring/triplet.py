"""Triplets of thresholds and the exact search for the best one."""

import math
from dataclasses import dataclass

import numpy as np

from pneumo_dist.config.schema import Area, Probability
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import LEVELS, Histograms, counts_above
from shards.arrays import Floats


@dataclass(frozen=True)
class Triplet:
    """Thresholds of a mask: empty if fewer than `area` label-grid pixels have p > top, else p > bottom."""

    top: Probability
    area: Area
    bottom: Probability


def best_triplet(
    histograms: Histograms, weights: Floats | None = None, specificity: float | None = None
) -> tuple[Triplet, float]:
    """Find the triplet with the highest mean Dice over every top level, bottom level and area.

    Films are sorted by their count above `top`. Every area then keeps a prefix of them, so one running sum gives the
    score of all areas for all bottoms. Ties go to the lowest top, then the largest area, then the lowest bottom.

    Args:
        histograms: Histograms of the films, int64 (n, 2, 256).
        weights: How much each film counts, float64 (n,). None counts all films alike.
        specificity: If set, consider only triplets that leave at least this share of the films without a pneumothorax
            empty. Of these, the triplets that call the most positive films win, and Dice decides between them.

    Returns:
        The triplet and its mean Dice.
    """
    assert len(histograms), "no films to tune on"
    above = counts_above(histograms)
    truth = histograms[:, 1].sum(-1)
    shares = np.ones(len(histograms)) if weights is None else weights
    hidden = (truth == 0).astype(np.float64)
    gain = shares[:, None] * (dice(above[:, 1], above[:, 0], truth[:, None]) - hidden[:, None])
    allowed = None if specificity is None else math.floor((1.0 - specificity) * hidden.sum() + 1e-9)
    best, triplet = (-1, -math.inf), Triplet(0.0, 0, 0.0)
    for top in range(LEVELS - 1):
        counts = above[:, 0, top]
        order = np.argsort(-counts, kind="stable")
        ranked = counts[order]
        # No area separates films with equal counts, so prefixes end where the count changes.
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        sums = np.vstack([np.zeros(LEVELS), gain[order].cumsum(0)[ends]])
        called = 0
        if allowed is not None:
            wrong, right = (np.append(0, kind[order].cumsum()[ends]) for kind in (truth == 0, truth > 0))
            called = int(right[wrong <= allowed].max())
            sums[(wrong > allowed) | (right < called)] = -math.inf
        kept, bottom = np.unravel_index(int(sums.argmax()), sums.shape)
        value = float(sums[kept, bottom])
        if called > best[0] or (called == best[0] and value > best[1] + 1e-12):
            best = (called, value)
            area = int(ranked[0]) + 1 if kept == 0 else int(ranked[ends[kept - 1]])
            triplet = Triplet(top / 255, area, int(bottom) / 255)
    return triplet, float((best[1] + (shares * hidden).sum()) / shares.sum())
