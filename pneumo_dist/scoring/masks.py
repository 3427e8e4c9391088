"""The path from a stored prediction to a mask, shared by validation, tune, submit and report. Imports no torch."""

from dataclasses import dataclass

import cv2
import numpy as np

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.crop import occupied
from pneumo_dist.scoring.histograms import level
from pneumo_dist.scoring.stacking import Stacking
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset.grid import content_box
from shards.dataset.table import LabelGrid


@dataclass(frozen=True)
class Rule:
    """Turns a map into a mask: applies the triplet, then removes components below `smallest_part` label-grid pixels.

    A film gets an empty mask if its class probability is not above `gate`, or if the probability that `stacking` gives
    it is not above its threshold. A gate of 0 needs no class probability. `outside` says that the class probabilities
    are not those of the networks that predicted the maps.
    """

    triplet: Triplet
    smallest_part: int = 0
    gate: float = 0.0
    stacking: Stacking | None = None
    outside: bool = False

    @property
    def needs_class(self) -> bool:
        """Whether the rule needs a class probability."""
        return self.gate > 0 or (self.stacking is not None and self.stacking.needs_class)


def label_map(p8: Map, grid: LabelGrid) -> Map:
    """Crop the padding of a stored prediction and resize it to the film's label grid, uint8 (height, width)."""
    top, bottom, left, right = content_box(grid.padding, grid.stored, p8.shape[0])
    content = p8[top:bottom, left:right]
    if content.shape == (grid.height, grid.width):
        return content
    return np.asarray(cv2.resize(content, (grid.width, grid.height), interpolation=cv2.INTER_LINEAR_EXACT), np.uint8)


def apply_triplet(film: Map, triplet: Triplet) -> Map:
    """Return the 0/1 mask of a label-grid map: empty if fewer than `area` pixels exceed `top`, else p > bottom."""
    if np.count_nonzero(film > level(triplet.top)) < triplet.area:
        return np.zeros_like(film)
    return (film > level(triplet.bottom)).astype(np.uint8)


def remove_small(mask: Map, smallest: int) -> Map:
    """Remove the 8-connected components of fewer than `smallest` pixels from a 0/1 mask. Holes stay holes."""
    box = occupied(mask)
    if box is None:
        return mask
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=8)
    is_kept = stats[:, cv2.CC_STAT_AREA] >= smallest
    is_kept[0] = False  # the background
    kept = np.zeros_like(mask)
    kept[box] = is_kept[components]
    return kept


def apply_rule(film: Map, rule: Rule, class_probability: float | None = None) -> Map:
    """Return the 0/1 mask of a label-grid map under a rule. `class_probability` is in 0..1, and None if not needed."""
    if rule.gate > 0:
        assert class_probability is not None, "a gate needs a class probability"
        if class_probability <= rule.gate:
            return np.zeros_like(film)
    stacking = rule.stacking
    if stacking is not None and stacking.film_probability(film, class_probability) <= stacking.threshold:
        return np.zeros_like(film)
    mask = apply_triplet(film, rule.triplet)
    return remove_small(mask, rule.smallest_part) if rule.smallest_part > 1 else mask


def rule_score(film: Map, rule: Rule, class_probability: float | None = None) -> float:
    """Return the score by which a rule calls a label-grid map positive: that of its stacked gate or of its triplet."""
    if rule.stacking is not None:
        return rule.stacking.film_probability(film, class_probability)
    return image_score(film, rule.triplet.area)


def image_score(film: Map, area: int) -> float:
    """Return the area-th largest pixel probability, which exceeds `top` exactly when a triplet calls it positive."""
    if area <= 0:
        return 1.0
    if area > film.size:
        return 0.0
    return float(np.partition(film.reshape(-1), film.size - area)[film.size - area]) / 255
