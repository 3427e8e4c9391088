"""Films of any values, and their Dice counted pixel by pixel."""

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.triplet import Triplet

Film = tuple[Map, Map]


def film_of(values: st.SearchStrategy[int], side: int) -> st.SearchStrategy[Film]:
    shape = (side, side + 1)
    return st.tuples(
        hnp.arrays(np.uint8, shape, elements=values),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 1), fill=st.nothing()),
    )


def naive_dice(film: Map, truth: Map, triplet: Triplet) -> float:
    probability = film.astype(np.float64) / 255
    predicted = probability > triplet.bottom
    if (probability > triplet.top).sum() < triplet.area:
        predicted = np.zeros_like(predicted)
    labelled = truth != 0
    if not predicted.any() and not labelled.any():
        return 1.0
    return 2.0 * float((predicted & labelled).sum()) / float(predicted.sum() + labelled.sum())


def stack(films: list[Film]) -> npt.NDArray[np.int64]:
    return np.stack([film_histograms(*film) for film in films])
