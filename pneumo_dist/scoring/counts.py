"""Pixel counts of masks and labels, from which every score of masks is computed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pneumo_dist.scoring.arrays import Counts, Flags
from pneumo_dist.scoring.dice import Score, dice, score_of
from pneumo_dist.scoring.histograms import Histograms, counts_above, level
from pneumo_dist.scoring.triplet import Triplet
from shards.arrays import Floats


@dataclass(frozen=True)
class PixelCounts:
    """Label-grid pixels of each film under a rule, int64 (n,): of its mask, of mask and label, and of its label."""

    predicted: Counts
    hits: Counts
    truth: Counts

    @cached_property
    def dice(self) -> Floats:
        """Dice of each film, float64 (n,)."""
        return dice(self.hits, self.predicted, self.truth)

    @property
    def positive(self) -> Flags:
        """Whether each film's label has any pixel."""
        return np.asarray(self.truth > 0)

    @property
    def called(self) -> Flags:
        """Whether each film is called positive, which means that its mask has any pixel."""
        return np.asarray(self.predicted > 0)

    def __len__(self) -> int:
        return len(self.truth)

    def select(self, films: Flags | Counts) -> "PixelCounts":
        """Return the counts of some films, chosen by flags (n,) or by positions (k,)."""
        return PixelCounts(self.predicted[films], self.hits[films], self.truth[films])

    def emptied(self, films: Flags) -> "PixelCounts":
        """Return the counts after the masks of these films (n,) are emptied."""
        return PixelCounts(np.where(films, 0, self.predicted), np.where(films, 0, self.hits), self.truth)

    def score(self) -> Score:
        """Return the mean scores; every film counts once."""
        return score_of(self.dice, self.positive)


def triplet_counts(histograms: Histograms, triplet: Triplet) -> PixelCounts:
    """Return the exact counts of films (n, 2, 256) under a triplet, without making a mask."""
    return counts_at(counts_above(histograms), histograms[:, 1].sum(-1), triplet)


def counts_at(above: Histograms, truth: Counts, triplet: Triplet) -> PixelCounts:
    """Return the same from the result of `counts_above`, int64 (n, 2, 256), and the label pixels, int64 (n,)."""
    called = above[:, 0, level(triplet.top)] >= triplet.area
    predicted, hits = above[:, :, level(triplet.bottom)].T
    return PixelCounts(np.where(called, predicted, 0), np.where(called, hits, 0), truth)
