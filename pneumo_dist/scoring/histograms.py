"""Histograms of probability maps, which hold every pixel count that a triplet of thresholds needs.

Each film is read once. The search over triplets then works on histograms alone.
"""

import math

import numpy as np
import numpy.typing as npt

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.arrays import Counts

LEVELS = 256
Histograms = npt.NDArray[np.int64]


def level(threshold: float) -> int:
    """Return t such that p8 > t exactly if p8 / 255 > threshold, also for thresholds like 0.6 = 153/255."""
    return math.floor(threshold * 255 + 1e-6)


def film_histograms(label_map: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> Histograms:
    """Return int64 (2, 256): the histogram of a map over all pixels, and over the pixels where `truth` is not 0."""
    everywhere = np.bincount(label_map.reshape(-1), minlength=LEVELS)
    labelled = np.bincount(label_map[truth != 0], minlength=LEVELS)
    return np.stack([everywhere, labelled]).astype(np.int64)


def counts_above(histograms: Histograms) -> Histograms:
    """Return the number of pixels above each level 0..255, along the last axis."""
    return histograms[..., ::-1].cumsum(-1)[..., ::-1] - histograms


def gather_histograms(rows: list[Counts], ranks: Ranks) -> Histograms:
    """Gather the histograms of all ranks, int64 (n, 2, 256), in table order.

    Args:
        rows: This rank's films, each as the film's row number followed by its 512 counts.
        ranks: The ranks that share the work. All of them must call.
    """
    mine = np.stack(rows) if rows else np.zeros((0, 513), np.int64)
    gathered = np.concatenate(ranks.gather_array(mine))
    gathered = gathered[np.argsort(gathered[:, 0], kind="stable")]
    assert len(np.unique(gathered[:, 0])) == len(gathered), "a film was scored twice"
    return np.asarray(gathered[:, 1:].reshape(-1, 2, 256))
