"""Exact search for the smallest component together with a threshold, or with the triplet.

Both searches return the optimum over every level and every size. Of equally good rules, the one of the smallest size
wins, then that of the lowest top, the largest area and the lowest bottom.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pneumo_dist.scoring.arrays import Counts, Flags
from pneumo_dist.scoring.histograms import LEVELS
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.threads import in_order
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.steps import Gains, PartSteps

# Bottom levels whose running sums fit into a core's cache.
_STRIP = 32
# Sums of fewer gains take less time than to start threads.
_WORTH_THREADS = 1_000_000


def best_threshold(steps: PartSteps, specificity: float | None = None) -> tuple[Rule, float]:
    """Return the best threshold with the best size of the smallest component, and its mean Dice.

    The sum over films at a level is a step function of the size, which is computed for all sizes at once.

    Args:
        steps: The films.
        specificity: If set, consider only rules that leave at least this share of the negative films empty. Of these,
            the rules that call the most positive films win, and Dice decides between them.
    """
    best: list[tuple[int, int]] = []
    for bottom in range(LEVELS):
        called, sums = _by_size(steps, bottom, specificity)[1:]
        best.append(max(zip(called.tolist(), sums.tolist(), strict=True), default=(-1, 0)))
    called_most = max(called for called, _ in best)
    value = max(value for called, value in best if called == called_most)
    ties = [
        (int(sizes[np.flatnonzero((called == called_most) & (sums >= value - steps.slack))[0]]), bottom)
        for bottom in range(LEVELS)
        if best[bottom][0] == called_most and best[bottom][1] >= value - steps.slack
        for sizes, called, sums in [_by_size(steps, bottom, specificity)]
    ]
    size, bottom = min(ties)
    return Rule(Triplet(bottom / 255, 0, bottom / 255), smallest_part=size), steps.mean(value)


def _by_size(steps: PartSteps, bottom: int, specificity: float | None) -> tuple[Counts, Counts, Gains]:
    """Return the sizes that are allowed at a level, the positive films they call (0 without a limit), and the sums."""
    sizes, sums = steps.sums(bottom)
    if specificity is None:
        return sizes, np.zeros_like(sizes), sums
    right, wrong = (
        len(films) - np.searchsorted(np.sort(steps.largest[bottom, films]), np.maximum(sizes, 1))
        for films in (steps.positive, steps.negative)
    )
    allowed = wrong <= math.floor((1.0 - specificity) * len(steps.negative) + 1e-9)
    return sizes[allowed], right[allowed], sums[allowed]


@dataclass(frozen=True)
class _Found:
    """A sum of gains, and the rule that gives it, in levels."""

    value: int
    size: int
    top: int
    area: int
    bottom: int

    def rule(self) -> Rule:
        return Rule(Triplet(self.top / 255, self.area, self.bottom / 255), smallest_part=self.size)


class JointSearch:
    """The search for top, area, bottom and size together. Branch and bound over intervals of sizes.

    If every film may choose its own best size of an interval, the best triplet for these gains bounds that of each size
    in the interval. An interval whose bound is below a known rule is left out. Any other is halved, and only the pairs
    of top and bottom whose bound is high enough stay.
    """

    def __init__(self, steps: PartSteps, threads: int | None = None) -> None:
        self._steps, self._threads = steps, threads
        self._orders = np.argsort(-steps.above[: LEVELS - 1], axis=1, kind="stable")

    def best(self) -> tuple[Rule, float]:
        """Return the best rule and its mean Dice."""
        sizes, slack = self._steps.sizes, self._steps.slack
        known = self._ascend().value - slack
        # The first of all rules in the order of ties: it keeps no film's mask.
        best = _Found(0, 0, 0, int(self._steps.above[0].max()) + 1, 0)
        pending = [(0, len(sizes), np.ones((LEVELS - 1, LEVELS), np.bool_))]
        while pending:
            start, end, pairs = pending.pop()
            floor = max(known, best.value + slack + 1)
            bound = self._bound(int(sizes[start]), int(sizes[end - 1]), pairs)
            pairs = bound >= floor
            if not pairs.any():
                continue
            if end - start == 1:
                best = self._first(int(sizes[start]), bound)
                continue
            middle = (start + end) // 2
            pending += [(middle, end, pairs), (start, middle, pairs)]  # smaller sizes are searched first
        return best.rule(), self._steps.mean(best.value)

    def _ascend(self) -> _Found:
        """Return a good rule: the best triplet and the best size for each other, in turns, while they improve."""
        pairs = np.ones((LEVELS - 1, LEVELS), np.bool_)
        best, size = None, 0
        while True:
            found = self._first(size, self._bound(size, size, pairs))
            if best is not None and found.value <= best.value:
                return best
            best = found
            size = self._best_size(best)

    def _best_size(self, rule: _Found) -> int:
        called = self._steps.above[rule.top] >= rule.area
        sizes = self._steps.sizes[:: max(len(self._steps.sizes) // 1000, 1)]
        sums = [int(self._steps.best_gains(rule.bottom, int(size), int(size))[called].sum()) for size in sizes]
        return int(sizes[int(np.argmax(sums))])

    def _bound(self, smallest: int, largest: int, pairs: Flags) -> Gains:
        """Return the highest sum over areas for each pair of top and bottom, int64 (255, 256).

        It is exact for a single size, and a bound of all sizes of an interval. Pairs that are left out have the lowest
        value.
        """
        bottoms = np.flatnonzero(pairs.any(0))
        gains = np.stack([self._steps.best_gains(int(bottom), smallest, largest) for bottom in bottoms], axis=1)
        result = np.full(pairs.shape, np.iinfo(np.int64).min)

        def of_top(top: int) -> Gains:
            own = np.flatnonzero(pairs[top, bottoms])
            order, ends = self._prefixes(top)
            return np.concatenate([np.maximum(sums.max(0), 0) for sums in _running(gains, own, order, ends)])

        tops = np.flatnonzero(pairs.any(1)).tolist()
        is_long = int(pairs.sum()) * len(gains) > _WORTH_THREADS
        for top, sums in zip(
            tops, in_order(of_top, tops, self._threads) if is_long else map(of_top, tops), strict=True
        ):
            result[top, bottoms[pairs[top, bottoms]]] = sums
        return result

    def _prefixes(self, top: int) -> tuple[Counts, Counts]:
        """Return the films by their count above a top, highest first, and the ends of the prefixes of equal counts."""
        order = self._orders[top]
        ranked = self._steps.above[top, order]
        return order, np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def _first(self, size: int, sums: Gains) -> _Found:
        """Return the best rule of a size, from the exact sums of pairs: the first of equally good ones."""
        value = int(sums.max())
        least = value - self._steps.slack
        top = int(np.flatnonzero((sums >= least).any(1))[0])
        bottoms = np.flatnonzero(sums[top] >= least)
        if least <= 0:
            return _Found(value, size, top, int(self._steps.above[top].max()) + 1, int(bottoms[0]))
        gains = np.stack([self._steps.best_gains(int(bottom), size, size) for bottom in bottoms], axis=1)
        order, ends = self._prefixes(top)
        running = gains[order].cumsum(0)[ends]
        kept = int(np.flatnonzero((running >= least).any(1))[0])
        bottom = int(bottoms[np.flatnonzero(running[kept] >= least)[0]])
        return _Found(value, size, top, int(self._steps.above[top, order[ends[kept]]]), bottom)


def _running(gains: Gains, bottoms: Counts, order: Counts, ends: Counts) -> Iterator[Gains]:
    """Yield the sums of prefixes of films for strips of bottoms."""
    for start in range(0, len(bottoms), _STRIP):
        strip = gains[:, bottoms[start : start + _STRIP]].take(order, axis=0)
        yield np.cumsum(strip, axis=0, out=strip)[ends]
