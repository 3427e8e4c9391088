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
# Histograms that are in memory at a time.
_MOST_BYTES = 1 << 30


def blend(maps: Sequence[Map], picks: Sequence[int]) -> Map:
    """Return the mean of p8 maps, each counted `picks` times, rounded once to the nearest level, halves up."""
    total = np.zeros(maps[0].shape, np.int64)
    for each, count in zip(maps, picks, strict=True):
        if count:
            total += count * each.astype(np.int64)
    whole = sum(picks)
    return ((2 * total + whole) // (2 * whole)).astype(np.uint8)


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
            films = [label_map(blend(maps, [picks[number] for number in used]), grid) for picks in chosen]
            return np.stack([film_histograms(film, truth) for film in films]).astype(np.int32)

        rows = np.empty((len(first), len(chosen), 2, LEVELS), np.int32)
        for index, row in enumerate(in_order(measured, range(len(first)), threads)):
            rows[index] = row
            on_film()
        for number, picks in enumerate(chosen):
            yield picks, rows[:, number].astype(np.int64)
