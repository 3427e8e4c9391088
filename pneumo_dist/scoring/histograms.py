"""Histograms of probability maps, which hold every pixel count that a triplet of thresholds needs.

Each film is read once. The search over triplets then works on histograms alone.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from pneumo_dist.scoring.arrays import Counts
from pneumo_dist.scoring.crop import occupied

if TYPE_CHECKING:
    from pneumo_dist.ranks.ranks import Ranks

LEVELS = 256
Histograms = npt.NDArray[np.int64]


def level(threshold: float) -> int:
    """Return t such that p8 > t exactly if p8 / 255 > threshold, also for thresholds like 0.6 = 153/255."""
    return math.floor(threshold * 255 + 1e-6)


def film_histograms(label_map: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8] | None) -> Histograms:
    """Return int64 (2, 256): the histogram of a map over all pixels, and over the pixels where `truth` is not 0.

    `truth` is None for a film without a pneumothorax.
    """
    box = None if truth is None else occupied(truth)
    labelled = np.zeros(LEVELS, np.int64)
    if truth is not None and box is not None:
        labelled = _counts(label_map[box], truth[box])
    return np.stack([_counts(label_map, None), labelled])


def _counts(levels: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8] | None) -> Counts:
    """Return how often each level occurs where the mask is not 0, int64 (256,), in a quarter of NumPy's time."""
    total = np.zeros(LEVELS, np.int64)
    # OpenCV returns float32, which holds the counts of this many pixels exactly.
    rows = max(2**24 // levels.shape[1], 1)
    for start in range(0, len(levels), rows):
        part = None if mask is None else mask[start : start + rows]
        found = cv2.calcHist([levels[start : start + rows]], [0], part, [LEVELS], [0, LEVELS])
        total += found.reshape(-1).astype(np.int64)
    return total


def counts_above(histograms: Histograms) -> Histograms:
    """Return the number of pixels above each level 0..255, along the last axis."""
    return histograms[..., ::-1].cumsum(-1)[..., ::-1] - histograms


def gather_histograms(rows: Sequence[npt.NDArray[np.integer]], ranks: "Ranks | None") -> Histograms:
    """Gather the histograms of all ranks, int64 (n, 2, 256), in table order.

    Args:
        rows: This rank's films, each as the film's row number followed by its 512 counts.
        ranks: The ranks that share the work; all of them must call. None for a process that works alone.
    """
    # No label grid has 2^31 pixels, and every rank receives the counts of all films.
    mine = np.array(rows, np.int32).reshape(-1, 1 + 2 * LEVELS)
    gathered = mine if ranks is None else np.concatenate(ranks.gather_array(mine))
    order = np.argsort(gathered[:, 0], kind="stable")
    assert len(np.unique(gathered[:, 0])) == len(gathered), "a film was scored twice"
    return gathered[order, 1:].astype(np.int64).reshape(-1, 2, LEVELS)
