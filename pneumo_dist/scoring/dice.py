"""Dice of films from exact pixel counts, and its means over films."""

import math
from dataclasses import dataclass

import numpy as np

from pneumo_dist.scoring.arrays import Counts, Flags
from shards.arrays import Floats


def dice(intersection: Counts, predicted: Counts, truth: Counts) -> Floats:
    """Return 2|X∩Y| / (|X| + |Y|) in float64, and 1 where both masks are empty."""
    total = predicted + truth
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


@dataclass(frozen=True)
class Score:
    """Mean Dice over all films, over positive films (nan if there are none), and of empty masks everywhere."""

    dice: float
    positive_dice: float
    always_empty: float
    films: int
    positives: int


def score_of(dices: Floats, positive: Flags) -> Score:
    """Return the mean scores of films from the Dice of each (n,) and from whether its label has any pixel (n,)."""
    return Score(
        dice=float(dices.mean()),
        positive_dice=float(dices[positive].mean()) if positive.any() else math.nan,
        always_empty=float((~positive).mean()),
        films=len(dices),
        positives=int(positive.sum()),
    )
