"""The connected components of films above every level, which a joint search for levels and component size needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.arrays import Flags, Map
from pneumo_dist.scoring.crop import occupied
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import LEVELS, level
from pneumo_dist.scoring.masks import Rule, label_map
from pneumo_dist.scoring.threads import in_order
from shards.arrays import Floats

if TYPE_CHECKING:
    from pneumo_dist.ranks.ranks import Ranks

Pixels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class FilmLevels:
    """The 8-connected components of a label-grid map above every level.

    Attributes:
        above: Pixels above each level, int32 (256,).
        largest: Pixels of the largest component above each level, int32 (256,); 0 where there is none.
        starts: Position of each level's first component, and their number, int32 (257,).
        sizes: Pixels of each component, int32 (k,), from the smallest of a level to its largest. Empty for a film
            without a pneumothorax: its Dice only depends on its largest component.
        hits: Labelled pixels of each component, int32 (k,).
        truth: Pixels of the whole label.
    """

    above: Pixels
    largest: Pixels
    starts: Pixels
    sizes: Pixels
    hits: Pixels
    truth: int

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(each.nbytes for each in (self.above, self.largest, self.starts, self.sizes, self.hits))

    def kept(self, bottom: int, smallest: int) -> tuple[int, int]:
        """Return the pixels of the components of at least `smallest` pixels above a level, and those in the label.

        Of a film without a pneumothorax, only the largest component counts.
        """
        if not self.truth:
            largest = int(self.largest[bottom])
            return (largest if largest >= smallest else 0), 0
        own = slice(self.starts[bottom], self.starts[bottom + 1])
        is_kept = self.sizes[own] >= smallest
        return int(self.sizes[own][is_kept].sum()), int(self.hits[own][is_kept].sum())


def film_levels(film: Map, truth: Map) -> FilmLevels:
    """Return the components of a label-grid map above every level, compared with its label."""
    is_labelled = truth != 0
    pixels = int(np.count_nonzero(is_labelled))
    present = np.bincount(film.reshape(-1), minlength=LEVELS)
    above = present.sum() - present.cumsum()
    largest, counts = np.zeros(LEVELS, np.int32), np.zeros(LEVELS, np.int64)
    sizes: list[Pixels] = [np.zeros(0, np.int32)]
    hits: list[Pixels] = [np.zeros(0, np.int32)]
    for bottom in range(LEVELS - 1):
        if not above[bottom]:
            break
        if bottom and not present[bottom]:  # the same pixels as above the level before
            largest[bottom], counts[bottom] = largest[bottom - 1], counts[bottom - 1]
            if pixels:
                sizes.append(sizes[-1])
                hits.append(hits[-1])
            continue
        mask = np.asarray(cv2.threshold(film, bottom, 1, cv2.THRESH_BINARY)[1], np.uint8)
        box = occupied(mask)
        assert box is not None
        film, is_labelled = film[box], is_labelled[box]  # higher levels are inside
        mask = mask[box]
        number, components = cv2.connectedComponents(mask, connectivity=8)
        # Counted over the mask alone, in a quarter of the time that OpenCV's statistics take.
        found = np.bincount(components[mask.view(np.bool_)], minlength=number)[1:]
        largest[bottom] = found.max()
        if pixels:
            order = np.argsort(found, kind="stable")
            counts[bottom] = len(found)
            sizes.append(found[order].astype(np.int32))
            hits.append(np.bincount(components[is_labelled], minlength=number)[1:][order].astype(np.int32))
    starts = np.append(0, counts.cumsum()).astype(np.int32)
    return FilmLevels(above.astype(np.int32), largest, starts, np.concatenate(sizes), np.concatenate(hits), pixels)


def level_measures(
    predictions: Predictions,
    ranks: "Ranks | None" = None,
    on_film: Callable[[], None] | None = None,
    threads: int | None = None,
) -> list[FilmLevels]:
    """Read each labelled film once and return its components above every level, in table order.

    The ranks share the films, and every rank gets the result for all of them. The result does not depend on `threads`.
    """

    def measured(index: int) -> FilmLevels:
        return film_levels(label_map(predictions.p8(index), predictions.grid(index)), predictions.label(index))

    films = range(len(predictions)) if ranks is None else range(ranks.rank, len(predictions), ranks.world)
    found: list[FilmLevels] = []
    for each in in_order(measured, films, threads):
        found.append(each)
        if ranks is not None:
            from pneumo_dist.ranks.watchdog import SCORING  # imports torch

            ranks.beat(SCORING)
        if on_film:
            on_film()
    return found if ranks is None else _gathered(found, list(films), ranks)


def _gathered(mine: Sequence[FilmLevels], films: Sequence[int], ranks: "Ranks") -> list[FilmLevels]:
    """Return the films of all ranks in table order."""
    empty: list[Pixels] = [np.zeros(0, np.int32)]
    heads = [
        np.concatenate([[film, each.truth], each.above, each.largest, each.starts])
        for film, each in zip(films, mine, strict=True)
    ]
    head = np.concatenate(ranks.gather_array(np.array(heads, np.int32).reshape(-1, 2 + 3 * LEVELS + 1)))
    sizes, hits = (
        np.concatenate(ranks.gather_array(np.concatenate([*empty, *parts])))
        for parts in ([each.sizes for each in mine], [each.hits for each in mine])
    )
    ends = head[:, -1].cumsum(dtype=np.int64)
    result: dict[int, FilmLevels] = {}
    for row, end in zip(head, ends, strict=True):
        own = slice(end - row[-1], end)
        above, largest, starts = np.split(row[2:], [LEVELS, 2 * LEVELS])
        result[int(row[0])] = FilmLevels(above, largest, starts, sizes[own], hits[own], int(row[1]))
    return [result[film] for film in sorted(result)]


def scores_under(films: Sequence[FilmLevels], rule: Rule) -> tuple[Floats, Flags]:
    """Return the Dice of each film (n,) under a rule without a gate, and whether its mask has any pixel (n,)."""
    top, bottom = level(rule.triplet.top), level(rule.triplet.bottom)
    counts = [
        (*(film.kept(bottom, rule.smallest_part) if film.above[top] >= rule.triplet.area else (0, 0)), film.truth)
        for film in films
    ]
    predicted, hits, truth = np.array(counts, np.int64).reshape(-1, 3).T
    return dice(hits, predicted, truth), np.asarray(predicted > 0)
