"""Triplets of thresholds and the exact search for the best one."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pneumo_dist.config.schema import Area, Probability
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import LEVELS, Histograms, counts_above
from pneumo_dist.scoring.threads import in_order
from shards.arrays import Floats

if TYPE_CHECKING:
    from pneumo_dist.ranks.ranks import Ranks

# Bottom levels of a strip of running sums.
_STRIP = 32


@dataclass(frozen=True)
class Triplet:
    """Thresholds of a mask: empty if fewer than `area` label-grid pixels have p > top, else p > bottom."""

    top: Probability
    area: Area
    bottom: Probability


def best_triplet(
    histograms: Histograms,
    weights: Floats | None = None,
    specificity: float | None = None,
    threads: int | None = None,
) -> tuple[Triplet, float]:
    """Find the triplet with the highest mean Dice over every top level, bottom level and area.

    Films are sorted by their count above `top`. Every area then keeps a prefix of them, so one running sum gives the
    score of all areas for all bottoms. Ties go to the lowest top, then the largest area, then the lowest bottom.

    Args:
        histograms: Histograms of the films, int64 (n, 2, 256).
        weights: How much each film counts, float64 (n,). None counts all films alike.
        specificity: If set, consider only triplets that leave at least this share of the films without a pneumothorax
            empty. Of these, the triplets that call the most positive films win, and Dice decides between them.
        threads: Number of threads, by default one for each CPU of this process. The result does not depend on it.

    Returns:
        The triplet and its mean Dice.
    """
    search = _Search(histograms, weights, specificity)
    return search.best(list(in_order(search.best_of_top, range(LEVELS - 1), threads)))


def shared_best_triplet(histograms: Histograms, ranks: "Ranks") -> tuple[Triplet, float]:
    """Return the result of `best_triplet`, to the bit, on every rank. The ranks share the top levels.

    All ranks give the same histograms.
    """
    search = _Search(histograms)
    mine = [search.best_of_top(top) for top in range(ranks.rank, LEVELS - 1, ranks.world)]
    rows = np.concatenate(ranks.gather_array(np.array(mine, np.float64).reshape(-1, len(_TopBest._fields))))
    return search.best([_TopBest(*row) for row in rows.tolist()])


class _TopBest(NamedTuple):
    """The best of a top level: positive films called (0 without a specificity), sum of gains, area, bottom level."""

    top: float
    called: float
    value: float
    area: float
    bottom: float


class _Search:
    """The films of a search, prepared once for all top levels. The arguments are those of `best_triplet`."""

    def __init__(self, histograms: Histograms, weights: Floats | None = None, specificity: float | None = None) -> None:
        assert len(histograms), "no films to tune on"
        above = counts_above(histograms)
        truth = histograms[:, 1].sum(-1)
        shares = np.ones(len(histograms)) if weights is None else weights
        hidden = (truth == 0).astype(np.float64)
        gain = shares[:, None] * (dice(above[:, 1], above[:, 0], truth[:, None]) - hidden[:, None])
        self._counts = np.ascontiguousarray(above[:, 0].T)
        self._is_positive = truth > 0
        self._floor, self._total = float((shares * hidden).sum()), float(shares.sum())
        self._allowed = None if specificity is None else math.floor((1.0 - specificity) * hidden.sum() + 1e-9)
        # Running sums of all films and bottoms do not fit into a core's cache, those of a strip of bottoms do.
        self._strips = [np.ascontiguousarray(gain[:, start : start + _STRIP]) for start in range(0, LEVELS, _STRIP)]
        self._own = threading.local()

    def _sums(self) -> Floats:
        """Return the memory of this thread for running sums. Fresh memory for each strip would have to be zeroed."""
        if not hasattr(self._own, "sums"):
            self._own.sums = np.empty((self._counts.shape[1], _STRIP))
        sums: Floats = self._own.sums
        return sums

    def best_of_top(self, top: int) -> _TopBest:
        """Return the best area and bottom of a top level."""
        counts = self._counts[top]
        order = np.argsort(-counts, kind="stable")
        ranked = counts[order]
        # No area separates films with equal counts, so prefixes end where the count changes.
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        called, has_empty = 0, True
        if self._allowed is not None:
            is_positive = self._is_positive[order]
            wrong, right = (kind.cumsum()[ends] for kind in (~is_positive, is_positive))
            called = int(right[wrong <= self._allowed].max(initial=0))
            ends = ends[(wrong <= self._allowed) & (right == called)]
            has_empty = called == 0
        # Compared in the order of prefixes, then of bottoms. The empty prefix keeps no film and gains nothing.
        found = [(0.0, -1, 0)] if has_empty else []
        running = self._sums()
        for number, strip in enumerate(self._strips):
            np.take(strip, order, axis=0, out=running, mode="clip")
            sums = np.cumsum(running, axis=0, out=running)[ends]
            if sums.size:
                kept, bottom = divmod(int(sums.argmax()), _STRIP)
                found.append((float(sums[kept, bottom]), kept, number * _STRIP + bottom))
        value, kept, bottom = min(found, key=lambda each: (-each[0], each[1], each[2]))
        area = int(ranked[0]) + 1 if kept < 0 else int(ranked[ends[kept]])
        return _TopBest(top, called, value, area, bottom)

    def best(self, found: Sequence[_TopBest]) -> tuple[Triplet, float]:
        """Return the best triplet and its mean Dice from the best of every top level, in any order."""
        best = _TopBest(0.0, -1.0, -math.inf, 0.0, 0.0)
        for each in sorted(found):  # in the order of the tops: a small gain counts or not depending on the best so far
            if each.called > best.called or (each.called == best.called and each.value > best.value + 1e-12):
                best = each
        triplet = Triplet(int(best.top) / 255, int(best.area), int(best.bottom) / 255)
        return triplet, (best.value + self._floor) / self._total
