"""What a rule adds to its triplet: the smallest part that is kept and the gate, and the exact best value of each.

Parts are 8-connected; the gate empties films that the image-level head finds empty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pneumo_dist.scoring.arrays import Counts, Flags, Floats, Map
from pneumo_dist.scoring.counts import PixelCounts
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import level


@dataclass(frozen=True)
class FilmComponents:
    """The 8-connected parts of a label-grid map above a threshold: int64 (k,) pixels of each, and how many of these are
    labelled; and the pixels of the whole label."""

    sizes: Counts
    hits: Counts
    truth: int


@dataclass(frozen=True)
class SizeCurve:
    """Mean Dice float64 (n,) without parts of fewer than `sizes` int64 (n,) pixels; in between it does not change."""

    sizes: Counts
    dice: Floats

    @property
    def best(self) -> tuple[int, float]:
        """The smallest of the best sizes, and its mean Dice."""
        place = int(np.flatnonzero(self.dice >= self.dice.max() - 1e-12)[0])
        return int(self.sizes[place]), float(self.dice[place])

    def thinned(self, count: int, size: int) -> "SizeCurve":
        """Return the curve at about `count` of its sizes, evenly spread over their logarithm, and at its `size`.

        Between these, it may change.
        """
        wanted = np.geomspace(1, int(self.sizes[-1]) + 1, count) - 1
        places = np.searchsorted(self.sizes, [*wanted, 0, size, self.sizes[-1]], side="right") - 1
        return self.part(np.unique(places))

    def part(self, places: Flags | Counts) -> "SizeCurve":
        """Return some points, by truths (n,) or by positions (k,)."""
        return SizeCurve(self.sizes[places], self.dice[places])


def film_components(film: Map, truth: Map, threshold: float) -> FilmComponents:
    """Return the parts of a label-grid map with p > threshold, beside its label."""
    above = (film > level(threshold)).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    hits = np.bincount(parts[truth != 0], minlength=count)
    return FilmComponents(
        stats[1:, cv2.CC_STAT_AREA].astype(np.int64), hits[1:].astype(np.int64), int((truth != 0).sum())
    )


def best_size(curve: SizeCurve, films: Sequence[FilmComponents], specificity: float | None = None) -> int:
    """Return the smallest size of the best mean Dice.

    With `specificity`, among sizes that leave at least that share of the films without a label empty, those that call
    most of the others positive come first, and Dice decides between them.
    """
    if specificity is None:
        return curve.best[0]
    largest = np.array([film.sizes.max(initial=0) for film in films])
    positive = np.array([film.truth > 0 for film in films])
    right, wrong = (
        len(own) - np.searchsorted(np.sort(own), np.maximum(curve.sizes, 1))
        for own in (largest[positive], largest[~positive])
    )
    allowed = wrong <= math.floor((1.0 - specificity) * (~positive).sum() + 1e-9)
    return curve.part(allowed & (right == right[allowed].max())).best[0]


def component_counts(films: Sequence[FilmComponents], smallest: int) -> PixelCounts:
    """Return what is left of films without parts of fewer than `smallest` pixels."""
    kept = [film.sizes >= smallest for film in films]
    counts = [
        (int(film.sizes[own].sum()), int(film.hits[own].sum()), film.truth)
        for film, own in zip(films, kept, strict=True)
    ]
    return PixelCounts(*np.array(counts, np.int64).T)


def size_curve(films: Sequence[FilmComponents], weights: Floats | None = None) -> SizeCurve:
    """Return the mean Dice for every size that makes a difference, exactly; `weights` say how much each film counts.

    A film changes only where one of its own parts falls out: the changes of all films, in order of size, add up.
    """
    assert films, "no films to tune on"
    start, sizes, changes = 0.0, [np.zeros(0, np.int64)], [np.zeros(0)]
    shares = np.ones(len(films)) if weights is None else weights
    for film, share in zip(films, shares, strict=True):
        order = np.argsort(film.sizes, kind="stable")
        left = [np.append(0, part[order][::-1].cumsum())[::-1] for part in (film.sizes, film.hits)]
        values = share * dice(left[1], left[0], np.array(film.truth))
        start += float(values[0])
        sizes.append(film.sizes[order] + 1)
        changes.append(np.diff(values))
    every, place = np.unique(np.concatenate(sizes), return_inverse=True)
    steps = np.bincount(place, np.concatenate(changes), minlength=len(every))
    return SizeCurve(np.append(0, every), (start + np.append(0.0, steps.cumsum())) / shares.sum())


def best_gate(
    probabilities: Floats, shown: Floats, hidden: Floats, weights: Floats, below: float = np.inf
) -> tuple[float, float]:
    """Return the gate with the highest weighted mean Dice, exactly, and that mean; 0 where no gate is better.

    `probabilities` are the films' class probabilities, `shown` their Dice with the mask that they have, `hidden` that
    of an empty one, all float64 (n,). A gate empties the films whose probability is not above it, so only the films'
    own probabilities need to be tried: in their order, the changes add up. The lowest of equal gates wins.
    None is as high as `below`: films of this probability keep their masks.
    """
    order = np.argsort(probabilities, kind="stable")
    ranked = probabilities[order]
    # Films of one probability cannot be told apart.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    change = (weights * (hidden - shown))[order].cumsum()[ends]
    change[(ranked[ends] <= 0) | (ranked[ends] >= below)] = -np.inf  # a gate of 0 is none
    whole = float((weights * shown).sum())
    place = int(change.argmax())
    if change[place] <= 1e-12:
        return 0.0, whole / float(weights.sum())
    return float(ranked[ends[place]]), (whole + float(change[place])) / float(weights.sum())
