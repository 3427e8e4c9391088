"""Paired differences between the Dice of two ensembles on the same films."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pneumo_dist.maps.store import Predictions
from pneumo_dist.report.evaluate import EvaluatedFilms
from pneumo_dist.scoring.arrays import Counts, Names
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats
from shards.errors import InputError


@dataclass(frozen=True)
class Paired:
    """Dice of one ensemble minus Dice of another on the same films. `p` is from Wilcoxon's signed-rank test."""

    name: str
    films: int
    difference: Estimate
    better: int
    equal: int
    worse: int
    p: float


def paired(name: str, mine: Floats, other: Floats, groups: Names) -> Paired:
    """Compare the Dice of two ensembles on the same films, float64 (n,) each. The interval draws from `groups` (n,)."""
    difference = mine - other
    differs = np.abs(difference) > 1e-12
    return Paired(
        name=name,
        films=len(difference),
        difference=estimate(difference, groups),
        better=int((difference[differs] > 0).sum()),
        equal=int((~differs).sum()),
        worse=int((difference[differs] < 0).sum()),
        p=float(stats.wilcoxon(difference[differs]).pvalue) if differs.any() else math.nan,
    )


def aligned(mine: Predictions, other: Predictions) -> tuple[Counts, Counts]:
    """Return the positions of the films that two predictions share, int64 (n,) each.

    Raises InputError if they share no film, or if the labels of a film differ.
    """
    index_of = {row["key"]: index for index, row in enumerate(other.rows)}
    pairs = [(i, index_of[row["key"]]) for i, row in enumerate(mine.rows) if row["key"] in index_of]
    if not pairs:
        raise InputError(
            f"{other.folder}: has no film in common with {mine.folder}; compare ensembles of the same shards"
        )
    for i, j in pairs:
        row, other_row = mine.rows[i], other.rows[j]
        if any(row[column] != other_row[column] for column in ("rle", "label_height", "label_width")):
            raise InputError(
                f"{other.folder}: {row['key']} has a different label than in {mine.folder}; predict both with the same "
                "shards"
            )
    in_mine, in_other = np.array(pairs, np.int64).T
    return in_mine, in_other


def differences(split: str, mine: EvaluatedFilms, other: EvaluatedFilms) -> list[Paired]:
    """Return the paired differences over all films that both have, and over the positive films among them.

    Raises InputError if they share no film, or if the labels of a film differ.
    """
    in_mine, in_other = aligned(mine.predictions, other.predictions)
    dices = mine.counts.dice[in_mine], other.counts.dice[in_other]
    groups, positive = mine.groups[in_mine], mine.counts.positive[in_mine]
    rows = [paired(f"{split}, all films", dices[0], dices[1], groups)]
    if positive.any():
        rows.append(paired(f"{split}, positive films", dices[0][positive], dices[1][positive], groups[positive]))
    return rows
