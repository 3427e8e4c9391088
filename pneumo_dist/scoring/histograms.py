"""Histograms of films that several ranks scored, each film once."""

import numpy as np
import numpy.typing as npt

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.triplet import Histograms


def gather_histograms(found: list[npt.NDArray[np.int64]], ranks: Ranks) -> Histograms:
    """Return every rank's films as int64 (n, 2, 256) in table order; entries are [row number, 512 counts]."""
    mine = np.stack(found) if found else np.zeros((0, 513), np.int64)
    rows = np.concatenate(ranks.gather_array(mine))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    assert len(np.unique(rows[:, 0])) == len(rows), "a film was scored twice"
    return np.asarray(rows[:, 1:].reshape(-1, 2, 256))
