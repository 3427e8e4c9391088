"""What a rule makes of films, in label-grid pixels: the counts that every score of masks comes from."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pneumo_dist.scoring.arrays import Counts, Flags, Floats
from pneumo_dist.scoring.dice import Score, dice, score_of
from pneumo_dist.scoring.histograms import Histograms, counts_above, level
from pneumo_dist.scoring.triplet import Triplet


@dataclass(frozen=True)
class PixelCounts:
    """Films under a rule, int64 (n,) each: pixels of their masks, how many of these are labelled, and the labels'."""

    predicted: Counts
    hits: Counts
    truth: Counts

    @cached_property
    def dice(self) -> Floats:
        """The Dice of each film, float64 (n,)."""
        return dice(self.hits, self.predicted, self.truth)

    @property
    def positive(self) -> Flags:
        """Whether each film's label has any pixel."""
        return np.asarray(self.truth > 0)

    @property
    def called(self) -> Flags:
        """Whether each film is called positive: its mask has any pixel."""
        return np.asarray(self.predicted > 0)

    def __len__(self) -> int:
        return len(self.truth)

    def part(self, films: Flags | Counts) -> "PixelCounts":
        """Return some of the films, by truths (n,) or by positions (k,)."""
        return PixelCounts(self.predicted[films], self.hits[films], self.truth[films])

    def emptied(self, films: Flags) -> "PixelCounts":
        """Return the counts with the masks of these films empty."""
        return PixelCounts(np.where(films, 0, self.predicted), np.where(films, 0, self.hits), self.truth)

    def score(self) -> Score:
        """Return the means over films; each counts once."""
        return score_of(self.dice, self.positive)


def triplet_counts(histograms: Histograms, triplet: Triplet) -> PixelCounts:
    """Return what the triplet rule makes of films (n, 2, 256), exactly, without looking at a mask."""
    return counts_at(counts_above(histograms), histograms[:, 1].sum(-1), triplet)


def counts_at(above: Histograms, truth: Counts, triplet: Triplet) -> PixelCounts:
    """Return the same from what `counts_above` found, int64 (n, 2, 256), and the label's pixels, int64 (n,)."""
    kept = above[:, 0, level(triplet.top)] >= triplet.area
    predicted, hits = above[:, :, level(triplet.bottom)].T
    return PixelCounts(np.where(kept, predicted, 0), np.where(kept, hits, 0), truth)
