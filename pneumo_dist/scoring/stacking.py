"""A stacked gate: a logistic regression on a film's map and class probability that decides whether its mask is empty.

Stacking is D. H. Wolpert, "Stacked Generalization", Neural Networks 1992. `thresholds.stacking` fits the gate, which is
plain numbers. Every command computes the features of one film at a time by the same functions, so that a film gets the
same call wherever it is made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pneumo_dist.scoring.arrays import Counts, Map
from pneumo_dist.scoring.crop import occupied
from pneumo_dist.scoring.histograms import LEVELS, film_histograms, level

CLASS, MASS, MAXIMUM = "class_probability", "mass", "maximum"
AREA, PART = "area_above_", "largest_part_above_"
# Areas and mass count in pixels of a film of 1024 x 1024, so that a film's own resolution does not matter.
_PIXELS = 2**20
# A probability of 0 or 1 has no finite logit.
_NEAREST = 1e-6


@dataclass(frozen=True)
class Stacking:
    """A logistic regression on standardised features of a film, and the threshold of its probability.

    Attributes:
        features: Names of the features: CLASS, MASS, MAXIMUM, and AREA or PART with a threshold.
        means: Mean of each feature.
        scales: What the difference from the mean is divided by, above 0.
        coefficients: Coefficient of each standardised feature.
        intercept: Intercept of the regression.
        threshold: A film whose probability is not above it gets an empty mask.
    """

    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    threshold: float

    @property
    def needs_class(self) -> bool:
        """Whether the class probability is one of the features."""
        return CLASS in self.features

    def probability(self, features: Sequence[float]) -> float:
        """Return the probability of a pneumothorax, in 0..1, from the features in the order of their names."""
        terms = zip(features, self.means, self.scales, self.coefficients, strict=True)
        return sigmoid(self.intercept + sum((value - mean) / scale * by for value, mean, scale, by in terms))

    def film_probability(self, film: Map, class_probability: float | None) -> float:
        """Return the probability of a pneumothorax for a label-grid map, uint8 (height, width)."""
        parts = {name: _largest_part(film, threshold_of(name)) for name in self.features if name.startswith(PART)}
        values = map_features(self.features, film_histograms(film, None)[0], parts, class_probability)
        return self.probability(values)


def feature_names(areas: Sequence[float], part: float, with_class: bool) -> tuple[str, ...]:
    """Return the names of the features of a gate.

    Args:
        areas: Thresholds above which the pixels are counted.
        part: Threshold above which the largest 8-connected part is measured.
        with_class: Whether the class probability is a feature.
    """
    counted = (*(f"{AREA}{threshold!r}" for threshold in areas), f"{PART}{part!r}")
    return ((CLASS,) if with_class else ()) + (MASS, MAXIMUM, *counted)


def threshold_of(name: str) -> float:
    """Return the threshold in a feature's name, nan for a name without one."""
    for prefix in (AREA, PART):
        if name.startswith(prefix):
            try:
                return float(name.removeprefix(prefix))
            except ValueError:
                return math.nan
    return math.nan


def is_feature(name: str) -> bool:
    """Return whether this is the name of a feature."""
    return name in (CLASS, MASS, MAXIMUM) or 0 <= threshold_of(name) <= 1


def map_features(
    names: Sequence[str], histogram: Counts, parts: Mapping[str, int], class_probability: float | None
) -> tuple[float, ...]:
    """Return the features of a film in the order of their names.

    Areas, mass (the sum of the probabilities) and part are log(1 + x), x in pixels of a film of 1024 x 1024. The
    maximum and the class probability are logits; a level m of 255 counts as (m + 1/2) / 256.

    Args:
        names: Names of the features.
        histogram: Number of label-grid pixels at each level of the map, int64 (256,).
        parts: Pixels of the largest 8-connected part, for each name that starts with PART.
        class_probability: The class probability in 0..1; it may be None if it is no feature.
    """
    pixels = int(histogram.sum())

    def value(name: str) -> float:
        if name == CLASS:
            assert class_probability is not None, "the gate needs a class probability"
            inside = min(max(class_probability, _NEAREST), 1 - _NEAREST)
            return math.log(inside / (1 - inside))
        if name == MAXIMUM:
            highest = int(np.flatnonzero(histogram)[-1])
            return math.log((highest + 0.5) / (LEVELS - 0.5 - highest))
        if name == MASS:
            count = int(histogram @ np.arange(LEVELS)) / (LEVELS - 1)
        elif name.startswith(AREA):
            count = int(histogram[level(threshold_of(name)) + 1 :].sum())
        else:
            count = parts[name]
        return math.log1p(_PIXELS * count / pixels)

    return tuple(map(value, names))


def _largest_part(film: Map, threshold: float) -> int:
    """Return the pixels of the largest 8-connected part with p > threshold; 0 without one."""
    above = (film > level(threshold)).view(np.uint8)
    box = occupied(above)
    if box is None:
        return 0
    stats = cv2.connectedComponentsWithStats(above[box], connectivity=8)[2]
    return int(stats[1:, cv2.CC_STAT_AREA].max())


def sigmoid(value: float) -> float:
    """Return 1 / (1 + exp(-value)), without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    raised = math.exp(value)
    return raised / (1 + raised)
