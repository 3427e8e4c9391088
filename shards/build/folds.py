"""Assigns folds and a holdout: grouped, stratified, and a pure function of the arguments."""

import warnings
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from shards.arrays import Integers
from shards.errors import InputError

HOLDOUT = -1
# Trains in every fold and is never validated on. Set only by a CSV of folds.
ALWAYS = -2


def assign_folds(groups: Sequence[str], strata: Sequence[int], folds: int, holdout: float, seed: int) -> Integers:
    """Return the fold of each film, -1 for the holdout. No group is split, and strata are balanced.

    `holdout` is a share of the films, rounded to a simple fraction (see `check_split`). The result depends on the order
    of the films and on which films share a group, not on the names of the groups. Raises InputError if there are too
    few groups or positives.
    """
    share = check_split(folds, holdout, seed)
    codes = _codes(groups)
    labels = np.asarray(strata, np.int64)
    result = np.zeros(len(codes), np.int64)
    trainable = np.arange(len(codes))
    if share > 0:
        parts = _split(codes, labels, share.denominator, seed, f"--holdout {holdout}")
        result[parts < share.numerator] = HOLDOUT
        trainable = np.flatnonzero(result != HOLDOUT)
    result[trainable] = _split(codes[trainable], labels[trainable], folds, seed, f"--folds {folds}")
    return result


def check_split(folds: int, holdout: float, seed: int) -> Fraction:
    """Return the holdout's share as a fraction; the films are split into as many parts as its denominator.

    Twentieths fit most shares, hundredths the others. Raises InputError for options that no dataset can satisfy.
    """
    if folds < 2:
        raise InputError(f"--folds {folds}: at least 2 folds are needed")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}: give a whole number from 0 to 4294967295")
    if not (holdout == 0 or 0.01 <= holdout <= 0.95):
        raise InputError(f"--holdout {holdout}: give 0, or a share of the films from 0.01 to 0.95")
    coarse, fine = (Fraction(holdout).limit_denominator(parts) for parts in (20, 100))
    return coarse if abs(coarse - Fraction(holdout)) <= Fraction(holdout) / 20 and coarse < 1 else fine


def _split(codes: Integers, labels: Integers, parts: int, seed: int, option: str) -> Integers:
    groups = len(np.unique(codes))
    if groups < parts:
        raise InputError(
            f"{option} needs at least {parts} patients, there are {groups}; give a smaller number or share"
        )
    part_of = np.zeros(len(codes), np.int64)
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Small datasets have classes with fewer films than parts. An impossible split raises ValueError.
        warnings.simplefilter("ignore", UserWarning)
        try:
            for part, (_, chosen) in enumerate(splitter.split(codes, labels, groups=codes)):
                part_of[chosen] = part
        except ValueError as error:
            raise InputError(f"{option}: too few films for so many parts ({error})") from None
    return part_of


def _codes(groups: Sequence[str]) -> Integers:
    """Number the groups by first appearance, so that another patient salt does not move a film."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


def size_strata(areas: Integers, folds: int) -> Integers:
    """Return the stratum of each film: 0 without a mask, 1 to 10 for deciles of mask area.

    Few positives make fewer strata, so that each has at least `folds` films (if there are that many).
    """
    strata = np.zeros(len(areas), np.int64)
    positive = np.flatnonzero(areas > 0)
    bins = max(1, min(10, len(positive) // max(folds, 1)))
    ranks = np.argsort(np.argsort(areas[positive], kind="stable"), kind="stable")
    strata[positive] = 1 + ranks * bins // max(len(positive), 1)
    return strata


def extend_folds(groups: Sequence[str], strata: Sequence[int], known: Integers) -> Integers:
    """Return the folds of new films; the first `len(known)` films have the folds `known`.

    A film of a known group gets the fold of that group (or the holdout). New groups, largest first, go to the fold that
    lacks most films of their strata, relative to its share of the known films.
    """
    fold_of = {group: int(fold) for group, fold in zip(groups, known.tolist(), strict=False)}
    parts = sorted(set(known.tolist()))
    share = {part: float((known == part).mean()) for part in parts}
    held = Counter(zip(known.tolist(), strata, strict=False))
    members: dict[str, list[int]] = {}
    for index in range(len(known), len(groups)):
        members.setdefault(groups[index], []).append(index)
    result = np.zeros(len(groups) - len(known), np.int64)
    for group, indices in sorted(members.items(), key=lambda item: (-len(item[1]), item[1])):
        films = Counter(strata[index] for index in indices)
        if group not in fold_of:
            fold_of[group] = min(parts, key=lambda p: (sum(n * held[p, s] / share[p] for s, n in films.items()), p))
        for stratum, count in films.items():
            held[fold_of[group], stratum] += count
        result[np.array(indices) - len(known)] = fold_of[group]
    return result
