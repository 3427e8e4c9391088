"""Histograms of a film's map: they hold every count that any triplet of thresholds needs.

Films are looked at once, and a search never touches a mask again.
"""

import math

import numpy as np
import numpy.typing as npt

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.arrays import Counts

LEVELS = 256
Histograms = npt.NDArray[np.int64]


def level(threshold: float) -> int:
    """Return t such that p8 > t exactly when p8 / 255 > threshold (guarding thresholds like 0.6 = 153/255)."""
    return math.floor(threshold * 255 + 1e-6)


def film_histograms(label_map: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> Histograms:
    """Return int64 (2, 256): counts of map values over all pixels, and over the pixels where `truth` is not 0."""
    everywhere = np.bincount(label_map.reshape(-1), minlength=LEVELS)
    labelled = np.bincount(label_map[truth != 0], minlength=LEVELS)
    return np.stack([everywhere, labelled]).astype(np.int64)


def counts_above(histograms: Histograms) -> Histograms:
    """Return, along the last axis, how many pixels lie above each level 0..255."""
    return histograms[..., ::-1].cumsum(-1)[..., ::-1] - histograms


def gather_histograms(found: list[Counts], ranks: Ranks) -> Histograms:
    """Return every rank's films as int64 (n, 2, 256) in table order; entries are [row number, 512 counts]."""
    mine = np.stack(found) if found else np.zeros((0, 513), np.int64)
    rows = np.concatenate(ranks.gather_array(mine))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    assert len(np.unique(rows[:, 0])) == len(rows), "a film was scored twice"
    return np.asarray(rows[:, 1:].reshape(-1, 2, 256))
