"""Two ensembles on the same films: the differences of their Dice, film by film."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pneumo_dist.report.inputs import EvaluatedFilms
from pneumo_dist.report.measures import estimate
from pneumo_dist.scoring.arrays import Floats, Names
from pneumo_dist.thresholds.tune import Estimate
from shards.errors import InputError


@dataclass(frozen=True)
class Paired:
    """Dice of one ensemble minus that of another on the same `films`; `p` is of Wilcoxon's signed-rank test."""

    name: str
    films: int
    difference: Estimate
    better: int
    equal: int
    worse: int
    p: float


def paired(name: str, mine: Floats, other: Floats, groups: Names) -> Paired:
    """Return the difference of two ensembles' Dice on the same films, float64 (n,) each; `groups` as in `measure`."""
    difference = mine - other
    apart = np.abs(difference) > 1e-12
    return Paired(
        name=name,
        films=len(difference),
        difference=estimate(difference, groups),
        better=int((difference[apart] > 0).sum()),
        equal=int((~apart).sum()),
        worse=int((difference[apart] < 0).sum()),
        p=float(stats.wilcoxon(difference[apart]).pvalue) if apart.any() else math.nan,
    )


def differences(split: str, mine: EvaluatedFilms, other: EvaluatedFilms) -> list[Paired]:
    """Return the paired differences over all films that both have, and over the positive ones of these.

    Raises InputError where they share no film and where a film's labels differ.
    """
    place = {row["key"]: index for index, row in enumerate(other.predictions.rows)}
    pairs = [(i, place[row["key"]]) for i, row in enumerate(mine.predictions.rows) if row["key"] in place]
    if not pairs:
        raise InputError(
            f"{other.predictions.folder}: has no film in common with {mine.predictions.folder}; compare ensembles of "
            "the same shards"
        )
    own, theirs = np.array(pairs).T
    for i, j in pairs:
        key, facts = mine.predictions.rows[i]["key"], ("rle", "label_height", "label_width")
        if any(mine.predictions.rows[i][fact] != other.predictions.rows[j][fact] for fact in facts):
            raise InputError(
                f"{other.predictions.folder}: {key} has another label than in {mine.predictions.folder}; predict both "
                "with the same shards"
            )
    dices = mine.counts.dice[own], other.counts.dice[theirs]
    groups, positive = mine.groups[own], mine.counts.positive[own]
    found = [paired(f"{split}, all films", dices[0], dices[1], groups)]
    if positive.any():
        found.append(paired(f"{split}, positive films", dices[0][positive], dices[1][positive], groups[positive]))
    return found
