"""The rules under which `compare` scores runs: those that can be tuned on the other folds of each fold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pneumo_dist.maps.store import Predictions, check_gate
from pneumo_dist.report.evaluate import evaluate
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stacking import PART, threshold_of
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.rules import ThresholdsFile
from pneumo_dist.thresholds.stacking import best_stacking, cross_stacked, gate_films, stacking_counts
from pneumo_dist.thresholds.tune import film_measures, prediction_histograms
from pneumo_dist.thresholds.worth import cross_tuned
from shards.arrays import Floats
from shards.errors import InputError

ComparedRule = Literal["triplet", "stacking"]


@dataclass(frozen=True)
class ScoredFilms:
    """Out-of-fold films under a rule: their pixel counts, and their Dice (n,) under rules of the other folds."""

    rule: Rule
    counts: PixelCounts
    unseen: Floats | None


def score_films(
    predictions: Predictions,
    thresholds: ThresholdsFile | None,
    name: ComparedRule,
    on_film: Callable[[], None] | None = None,
) -> ScoredFilms:
    """Score labelled predictions under the tuned rule of a name; without thresholds, it is tuned here for mean Dice.

    Raises InputError for a rule that was not tuned or cannot be, and for one with class probabilities from outside.
    """
    objective = Objective() if thresholds is None else thresholds.objective
    if name == "triplet":
        histograms = prediction_histograms(predictions, None, on_film)
        triplet = objective.search(histograms) if thresholds is None else thresholds.triplet
        unseen = cross_tuned(histograms, predictions.folds, objective)
        return ScoredFilms(Rule(triplet), triplet_counts(histograms, triplet), unseen)
    rule = None if thresholds is None else thresholds.rule(name).rule
    if rule is not None:
        check_gate(predictions, rule)
    part = _part_threshold(rule)
    films = gate_films(predictions, *film_measures(predictions, None, part, on_film), part)
    rule = rule or best_stacking(films, objective)
    if rule is None:
        raise InputError(f"{predictions.folder}: a stacked gate needs films with and without a pneumothorax")
    return ScoredFilms(rule, stacking_counts(films, rule), cross_stacked(films, objective))


def rule_counts(predictions: Predictions, rule: Rule, on_film: Callable[[], None] | None = None) -> PixelCounts:
    """Return the pixel counts of labelled predictions under a rule. Raises InputError as `evaluate` does."""
    if rule.stacking is not None:
        return evaluate(predictions, rule, on_film=on_film).counts
    return triplet_counts(prediction_histograms(predictions, None, on_film), rule.triplet)


def _part_threshold(rule: Rule | None) -> float:
    """Return the threshold of the largest part among a gate's features."""
    names = () if rule is None or rule.stacking is None else rule.stacking.features
    return next((threshold_of(name) for name in names if name.startswith(PART)), 0.5)
