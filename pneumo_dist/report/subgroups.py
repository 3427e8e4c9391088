"""Scores of subgroups by view, sex, age or any other column of the sample table. Small cells are not scored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumo_dist.scoring.arrays import Flags, Names
from pneumo_dist.scoring.counts import PixelCounts
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats
from shards.errors import InputError

# A score of fewer films says little, and may reveal something about single patients.
SMALLEST_CELL = 10
MOST_CELLS = 40
UNKNOWN = "unknown"
AGES = ((20, "under 20"), (40, "20 to 39"), (60, "40 to 59"), (80, "60 to 79"), (math.inf, "80 and over"))


@dataclass(frozen=True)
class Subgroup:
    """Films that share a value of a column. `films` are flags, bool (n,)."""

    name: str
    films: Flags


@dataclass(frozen=True)
class Cell:
    """Counts and means of a subgroup. Counts below SMALLEST_CELL, and means over fewer films than that, are None."""

    name: str
    films: int | None
    positives: int | None
    dice: Estimate | None
    positive_dice: Estimate | None
    sensitivity: Estimate | None
    specificity: Estimate | None


def split_by(column: str, values: npt.NDArray[np.generic]) -> list[Subgroup]:
    """Group films by their values (n,) of a column. Films without a value come last.

    Ages are grouped into bands of twenty years and other numbers into quartiles. Each text or boolean is a subgroup.
    Negative integers, nan and empty texts count as unknown. Raises InputError for a column with too many texts.
    """
    if values.dtype.kind == "b":
        names = np.where(values, "yes", "no").astype(object)
        return _subgroups(names, ["no", "yes"])
    if values.dtype.kind in "iuf":
        numbers = values.astype(np.float64)
        known = numbers >= 0 if values.dtype.kind == "i" else np.isfinite(numbers)
        names, order = _age_bands(numbers, known) if column == "age" else _quartiles(numbers, known)
        return _subgroups(names, order)
    names = np.array([str(value).strip() if value is not None else "" for value in values.tolist()], object)
    names[names == ""] = UNKNOWN
    texts = sorted(set(names.tolist()) - {UNKNOWN})
    if len(texts) > MOST_CELLS:
        raise InputError(
            f"column {column} of --by or --table: has {len(texts)} different texts; give a column with at most "
            f"{MOST_CELLS}"
        )
    return _subgroups(names, texts)


def _age_bands(numbers: Floats, known: Flags) -> tuple[npt.NDArray[np.object_], list[str]]:
    order = [name for _, name in AGES]
    names = np.array(order, object)[np.digitize(numbers, [limit for limit, _ in AGES[:-1]])]
    names[~known] = UNKNOWN
    return names, order


def _quartiles(numbers: Floats, known: Flags) -> tuple[npt.NDArray[np.object_], list[str]]:
    names = np.full(len(numbers), UNKNOWN, object)
    order: list[str] = []
    if known.any():
        quarter = np.digitize(numbers, np.quantile(numbers[known], [0.25, 0.5, 0.75]), right=True)
        for number in range(4):
            films = known & (quarter == number)
            if films.any():
                low, high = numbers[films].min(), numbers[films].max()
                order.append(f"{low:g} to {high:g}" if low < high else f"{low:g}")
                names[films] = order[-1]
    return names, order


def _subgroups(names: npt.NDArray[np.object_], order: Sequence[str]) -> list[Subgroup]:
    subgroups = [Subgroup(name, np.asarray(names == name)) for name in (*order, UNKNOWN)]
    return [subgroup for subgroup in subgroups if subgroup.films.any()]


def cells(subgroups: Sequence[Subgroup], counts: PixelCounts, groups: Names) -> list[Cell]:
    """Return the scores of each subgroup. Intervals draw from `groups` (n,)."""
    positive, dices, shown = counts.positive, counts.dice, counts.called

    def mean(values: npt.NDArray[np.generic], films: Flags) -> Estimate | None:
        enough = np.count_nonzero(films) >= SMALLEST_CELL
        return estimate(values[films].astype(np.float64), groups[films]) if enough else None

    return [
        Cell(
            name=each.name,
            films=_count(each.films),
            positives=_count(each.films & positive),
            dice=mean(dices, each.films),
            positive_dice=mean(dices, each.films & positive),
            sensitivity=mean(shown, each.films & positive),
            specificity=mean(~shown, each.films & ~positive),
        )
        for each in subgroups
    ]


def _count(films: Flags) -> int | None:
    count = int(films.sum())
    return count if count >= SMALLEST_CELL or count == 0 else None
