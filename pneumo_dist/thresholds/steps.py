"""How the Dice of films depends on the smallest component, above every level: steps between sizes of components.

The gain of a film is its weighted Dice less that of an empty mask, in integers of `UNIT`. Sums of integers do not
depend on their order, so a bound of a sum is never below it by rounding.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumo_dist.scoring.arrays import Counts, Map
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import LEVELS
from pneumo_dist.thresholds.levels import FilmLevels, Pixels
from shards.arrays import Floats

Gains = npt.NDArray[np.int64]
UNIT = 2.0**-40
_NEVER = np.iinfo(np.int64).min
_ENDLESS = np.iinfo(np.int32).max


class PartSteps:
    """The gains of films at every level and size.

    Attributes:
        slack: Sums that differ by no more than this may be equal before the rounding to integers.
        sizes: Sizes at which any gain changes, int64 (k,), with 0 for all components.
        above: Pixels above each level, int64 (256, n).
    """

    def __init__(self, films: Sequence[FilmLevels], weights: Floats) -> None:
        assert films, "no films to tune on"
        truth = np.array([film.truth for film in films], np.int64)
        self.slack = len(films)
        self.above: Counts = np.stack([film.above for film in films], axis=1).astype(np.int64)
        self.largest: Pixels = np.stack([film.largest for film in films], axis=1)
        self.positive, self.negative = np.flatnonzero(truth > 0), np.flatnonzero(truth == 0)
        self._lost = _rounded(weights[self.negative])
        self.floor, self.total = float(weights[self.negative].sum()), float(weights.sum())
        rows = [_film_steps(films[index], float(weights[index])) for index in self.positive.tolist()]
        levels = np.concatenate([np.zeros(0, np.uint8), *(row[0] for row in rows)])
        order = np.argsort(levels, kind="stable")
        self._low, self._high, self._gain = (
            np.concatenate([np.zeros(0, kind), *(row[part] for row in rows)])[order]
            for part, kind in ((1, np.int32), (2, np.int32), (3, np.int64))
        )
        levels = levels[order]
        # The first step of each film at each level begins at size 0.
        first = np.flatnonzero(self._low == 0)
        self._starts = first.reshape(LEVELS, len(self.positive))
        self._bounds = np.searchsorted(levels, np.arange(LEVELS + 1))
        beyond = self.largest[:, self.negative]
        self.sizes: Counts = np.unique(np.concatenate([[0], self._low, beyond[beyond > 0] + 1])).astype(np.int64)

    def best_gains(self, bottom: int, smallest: int, largest: int) -> Gains:
        """Return the best gain of each film, int64 (n,), at a level over all sizes from `smallest` to `largest`."""
        gains = np.zeros(self.above.shape[1], np.int64)
        gains[self.negative] = np.where(self.largest[bottom, self.negative] >= max(largest, 1), -self._lost, 0)
        own = slice(self._bounds[bottom], self._bounds[bottom + 1])
        if own.stop > own.start:
            is_there = (self._low[own] <= largest) & (self._high[own] >= smallest)
            values = np.where(is_there, self._gain[own], _NEVER)
            gains[self.positive] = np.maximum.reduceat(values, self._starts[bottom] - own.start)
        return gains

    def sums(self, bottom: int) -> tuple[Counts, Gains]:
        """Return the sum of all gains at a level by size: the sizes at which it changes (k,), and the sums (k,)."""
        own = slice(self._bounds[bottom], self._bounds[bottom + 1])
        low, gain = self._low[own], self._gain[own]
        change = np.diff(gain, prepend=0)
        is_first = low == 0
        change[is_first] = gain[is_first]
        most = self.largest[bottom, self.negative]
        is_called = most > 0
        start = int(change[is_first].sum() - self._lost[is_called].sum())
        places = np.concatenate([low[~is_first], most[is_called] + 1]).astype(np.int64)
        changes = np.concatenate([change[~is_first], self._lost[is_called]])
        order = np.argsort(places, kind="stable")
        places, changes = places[order], start + changes[order].cumsum()
        ends = np.flatnonzero(np.append(places[1:] != places[:-1], True)) if len(places) else places
        return np.append(0, places[ends]), np.append(start, changes[ends])

    def mean(self, value: int) -> float:
        """Return the mean Dice that belongs to a sum of gains."""
        return (value * UNIT + self.floor) / self.total


def _rounded(gains: Floats) -> Gains:
    return np.rint(gains / UNIT).astype(np.int64)


def _film_steps(film: FilmLevels, weight: float) -> tuple[Map, Pixels, Pixels, Gains]:
    """Return the steps of a positive film by level and size: level, first size, last size and gain of each."""
    count = np.diff(film.starts)
    level_of = np.repeat(np.arange(LEVELS, dtype=np.uint8), count)
    ends = film.starts[1:][level_of]
    predicted, hits = (np.append(0, each.cumsum(dtype=np.int64)) for each in (film.sizes, film.hits))
    # A component is kept with all larger ones.
    gain = _rounded(weight * dice(hits[ends] - hits[:-1], predicted[ends] - predicted[:-1], np.array(film.truth)))
    high = film.sizes
    is_first = np.zeros(len(high), np.bool_)
    is_first[film.starts[:-1][count > 0]] = True
    low = np.where(is_first, 0, np.append(high[:1], high[:-1] + 1))
    is_step = low <= high  # of components of equal size, the first one decides
    # Beyond its largest component, a film is empty.
    last = np.where(film.largest > 0, film.largest + 1, 0)
    levels = np.concatenate([level_of[is_step], np.arange(LEVELS, dtype=np.uint8)])
    lows = np.concatenate([low[is_step], last]).astype(np.int32)
    highs = np.concatenate([high[is_step], np.full(LEVELS, _ENDLESS, np.int32)])
    gains = np.concatenate([gain[is_step], np.zeros(LEVELS, np.int64)])
    order = np.lexsort((lows, levels))
    return levels[order], lows[order], highs[order], gains[order]
