"""Exact search for what a rule adds to its triplet: the size of the smallest component, and the gate.

Components are 8-connected. The gate empties the masks of films that the classification head calls negative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pneumo_dist.scoring.arrays import Counts, Flags, Map
from pneumo_dist.scoring.counts import PixelCounts
from pneumo_dist.scoring.crop import occupied
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import level
from shards.arrays import Floats


@dataclass(frozen=True)
class FilmComponents:
    """The 8-connected components of a label-grid map above a threshold.

    Attributes:
        sizes: Pixels of each component, int64 (k,).
        hits: Labelled pixels of each component, int64 (k,).
        truth: Pixels of the whole label.
    """

    sizes: Counts
    hits: Counts
    truth: int


@dataclass(frozen=True)
class SizeCurve:
    """Mean Dice, float64 (n,), without components below `sizes` pixels, int64 (n,); constant between sizes."""

    sizes: Counts
    dice: Floats

    @property
    def best(self) -> tuple[int, float]:
        """The smallest of the best sizes, and its mean Dice."""
        index = int(np.flatnonzero(self.dice >= self.dice.max() - 1e-12)[0])
        return int(self.sizes[index]), float(self.dice[index])

    def thinned(self, count: int, size: int) -> "SizeCurve":
        """Return the curve at about `count` sizes, spread evenly over their logarithm, and at `size`.

        The thinned curve may change between its points.
        """
        targets = np.geomspace(1, int(self.sizes[-1]) + 1, count) - 1
        points = np.searchsorted(self.sizes, [*targets, 0, size, self.sizes[-1]], side="right") - 1
        return self.select(np.unique(points))

    def select(self, points: Flags | Counts) -> "SizeCurve":
        """Return some points of the curve, chosen by flags (n,) or by positions (k,)."""
        return SizeCurve(self.sizes[points], self.dice[points])


def film_components(film: Map, truth: Map, threshold: float) -> FilmComponents:
    """Return the components of a label-grid map with p > threshold, compared with its label."""
    above, pixels = (film > level(threshold)).view(np.uint8), cv2.countNonZero(truth)
    box = occupied(above)
    if box is None:
        return FilmComponents(np.zeros(0, np.int64), np.zeros(0, np.int64), pixels)
    count, components, stats, _ = cv2.connectedComponentsWithStats(above[box], connectivity=8)
    hits = np.bincount(components[truth[box] != 0], minlength=count)
    return FilmComponents(stats[1:, cv2.CC_STAT_AREA].astype(np.int64), hits[1:].astype(np.int64), pixels)


def best_size(curve: SizeCurve, films: Sequence[FilmComponents], specificity: float | None = None) -> int:
    """Return the size with the best mean Dice, the smallest of equally good ones.

    With `specificity`, consider only sizes that leave at least that share of the negative films empty. Of these, the
    sizes that call the most positive films win, and Dice decides between them.
    """
    if specificity is None:
        return curve.best[0]
    largest = np.array([film.sizes.max(initial=0) for film in films])
    positive = np.array([film.truth > 0 for film in films])
    right, wrong = (
        len(each) - np.searchsorted(np.sort(each), np.maximum(curve.sizes, 1))
        for each in (largest[positive], largest[~positive])
    )
    allowed = wrong <= math.floor((1.0 - specificity) * (~positive).sum() + 1e-9)
    return curve.select(allowed & (right == right[allowed].max())).best[0]


def component_counts(films: Sequence[FilmComponents], smallest: int) -> PixelCounts:
    """Return the pixel counts of films after components of fewer than `smallest` pixels are removed."""
    is_kept = [film.sizes >= smallest for film in films]
    counts = [
        (int(film.sizes[kept].sum()), int(film.hits[kept].sum()), film.truth)
        for film, kept in zip(films, is_kept, strict=True)
    ]
    return PixelCounts(*np.array(counts, np.int64).T)


def size_curve(films: Sequence[FilmComponents], weights: Floats | None = None) -> SizeCurve:
    """Return the exact mean Dice for every size at which it changes. `weights` (n,) are those of the films.

    The Dice of a film changes only at the sizes of its components. The curve is the running sum of these changes over
    all films, in order of size.
    """
    assert films, "no films to tune on"
    start, sizes, changes = 0.0, [np.zeros(0, np.int64)], [np.zeros(0)]
    shares = np.ones(len(films)) if weights is None else weights
    for film, share in zip(films, shares, strict=True):
        order = np.argsort(film.sizes, kind="stable")
        left = [np.append(0, pixels[order][::-1].cumsum())[::-1] for pixels in (film.sizes, film.hits)]
        values = share * dice(left[1], left[0], np.array(film.truth))
        start += float(values[0])
        sizes.append(film.sizes[order] + 1)
        changes.append(np.diff(values))
    every, position = np.unique(np.concatenate(sizes), return_inverse=True)
    steps = np.bincount(position, np.concatenate(changes), minlength=len(every))
    return SizeCurve(np.append(0, every), (start + np.append(0.0, steps.cumsum())) / shares.sum())


def best_gate(
    probabilities: Floats, shown: Floats, hidden: Floats, weights: Floats, below: float = np.inf
) -> tuple[float, float]:
    """Return the gate with the highest weighted mean Dice, and that mean. The gate is 0 if none improves the mean.

    A gate empties the masks of films whose class probability is not above it, so the films' own probabilities are the
    only candidates. The changes in Dice add up in order of probability. The lowest of equally good gates wins.

    Args:
        probabilities: Class probability of each film, float64 (n,).
        shown: Dice of each film with its mask, float64 (n,).
        hidden: Dice of each film with an empty mask, float64 (n,).
        weights: Weight of each film, float64 (n,).
        below: Upper limit of the gate, exclusive: films with this probability keep their masks.
    """
    order = np.argsort(probabilities, kind="stable")
    ranked = probabilities[order]
    # No gate separates films of equal probability.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    change = (weights * (hidden - shown))[order].cumsum()[ends]
    change[(ranked[ends] <= 0) | (ranked[ends] >= below)] = -np.inf  # a gate of 0 means no gate
    whole = float((weights * shown).sum())
    index = int(change.argmax())
    if change[index] <= 1e-12:
        return 0.0, whole / float(weights.sum())
    return float(ranked[ends[index]]), (whole + float(change[index])) / float(weights.sum())
