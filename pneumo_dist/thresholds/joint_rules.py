"""The rules whose smallest component is searched together with the threshold, and with the triplet, and their worth."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from pneumo_dist.config.rules import RuleName
from pneumo_dist.scoring.arrays import Counts, Names
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.thresholds.joint import JointSearch, best_threshold
from pneumo_dist.thresholds.levels import FilmLevels, scores_under
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.rules import TunedRule
from pneumo_dist.thresholds.steps import PartSteps
from pneumo_dist.thresholds.worth import Estimate, estimate, not_cross_tuned
from shards.arrays import Floats


def joint_rules(films: Sequence[FilmLevels], objective: Objective, folds: Counts, groups: Names) -> list[TunedRule]:
    """Return the rules threshold-components and triplet-components, each the exact best for an objective.

    The second one is not searched for a specificity: its search bounds mean Dice.
    """
    searches: dict[RuleName, Callable[[PartSteps], Rule]] = {
        "threshold-components": partial(_threshold, objective.specificity)
    }
    if objective.specificity is None:
        searches["triplet-components"] = _triplet
    rules = {name: search(_steps(films, objective)) for name, search in searches.items()}
    unseen = {name: _cross_tuned(films, objective, folds, search) for name, search in searches.items()}
    return [_tuned(name, rule, films, groups, unseen[name]) for name, rule in rules.items()]


def _threshold(specificity: float | None, steps: PartSteps) -> Rule:
    return best_threshold(steps, specificity)[0]


def _triplet(steps: PartSteps) -> Rule:
    return JointSearch(steps).best()[0]


def _steps(films: Sequence[FilmLevels], objective: Objective) -> PartSteps:
    return PartSteps(films, objective.film_weights(np.array([film.truth > 0 for film in films])))


def _cross_tuned(
    films: Sequence[FilmLevels], objective: Objective, folds: Counts, search: Callable[[PartSteps], Rule]
) -> Floats | None:
    """Return the Dice of each film (n,) under a rule of the other folds; None if none can be tuned."""
    if not_cross_tuned(np.array([film.truth > 0 for film in films]), folds, objective) is not None:
        return None
    dices = np.zeros(len(films))
    for fold in np.unique(folds):
        others = [film for film, number in zip(films, folds, strict=True) if number != fold]
        own = [film for film, number in zip(films, folds, strict=True) if number == fold]
        dices[folds == fold] = scores_under(own, search(_steps(others, objective)))[0]
    return dices


def _tuned(name: RuleName, rule: Rule, films: Sequence[FilmLevels], groups: Names, unseen: Floats | None) -> TunedRule:
    dices, called = scores_under(films, rule)
    worth: Estimate | None = None if unseen is None else estimate(unseen, groups)
    return TunedRule(name, rule, float(dices.mean()), float(called.mean()), worth)
