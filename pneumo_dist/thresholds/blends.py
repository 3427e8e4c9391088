"""Blends of candidates: the mean of their stored maps, each counted as often as it was picked."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.histograms import LEVELS, Histograms, film_histograms
from pneumo_dist.scoring.masks import label_map
from pneumo_dist.scoring.threads import in_order
from shards.errors import InputError

# How often each candidate counts.
Picks = tuple[int, ...]
# The most picks of a blend whose mean is exact.
MOST_PICKS = 1000
# Pixels whose sums stay in a core's cache.
_CACHED = 8192
# Histograms that are in memory at a time.
_MOST_BYTES = 1 << 30


def mixed(maps: Sequence[Map], blends: Sequence[Sequence[int]]) -> Map:
    """Return the mean of p8 maps (side, side) for each blend, uint8 (blends, side, side).

    A blend has at most MOST_PICKS picks. The mean is rounded once to the nearest level, halves up.
    """
    levels = np.stack([each.reshape(-1) for each in maps])
    picks = np.array(blends, np.float32)
    whole = picks.sum(axis=1, keepdims=True)
    assert whole.min() > 0 and whole.max() <= MOST_PICKS, "too few or too many picks"
    result = np.empty((len(picks), levels.shape[1]), np.uint8)
    for start in range(0, levels.shape[1], _CACHED):
        own = slice(start, start + _CACHED)
        # Exact in float32: sums stay below 2^23, and a mean is further from the next level than a division may err.
        sums = picks @ levels[:, own].astype(np.float32)
        sums += whole / 2
        sums /= whole
        result[:, own] = sums
    return result.reshape(len(picks), *maps[0].shape)


def reduced(picks: Picks) -> Picks:
    """Return the smallest picks with the same blend."""
    divisor = math.gcd(*picks)
    return tuple(count // divisor for count in picks)


def blend_histograms(
    candidates: Sequence[Predictions],
    blends: Sequence[Picks],
    on_film: Callable[[], None] = lambda: None,
    threads: int | None = None,
) -> Iterator[tuple[Picks, Histograms]]:
    """Yield each blend with the histograms of its films, int64 (n, 2, 256), in table order.

    A film's maps are read once for as many blends as fit into a gigabyte. The result does not depend on `threads`.

    Raises:
        InputError: A film has no label, or a map is damaged.
    """
    first = candidates[0]
    at_a_time = max(_MOST_BYTES // (len(first) * 2 * LEVELS * 4), 1)
    for start in range(0, len(blends), at_a_time):
        chosen = blends[start : start + at_a_time]
        used = [number for number in range(len(candidates)) if any(picks[number] for picks in chosen)]

        def measured(index: int, chosen: Sequence[Picks] = chosen, used: Sequence[int] = used) -> npt.NDArray[np.int32]:
            if first.rows[index]["rle"] is None:
                raise InputError(
                    f"{first.folder}: {first.rows[index]['key']} has no label to select on; use --split oof"
                )
            truth, grid = first.label(index), first.grid(index)
            maps = [candidates[number].p8(index) for number in used]
            films = mixed(maps, [[picks[number] for number in used] for picks in chosen])
            return np.stack([film_histograms(label_map(film, grid), truth) for film in films]).astype(np.int32)

        rows = np.empty((len(first), len(chosen), 2, LEVELS), np.int32)
        for index, row in enumerate(in_order(measured, range(len(first)), threads)):
            rows[index] = row
            on_film()
        for number, picks in enumerate(chosen):
            yield picks, rows[:, number].astype(np.int64)
