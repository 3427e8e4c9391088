"""Tunes thresholds on out-of-fold predictions: finds the exact best rules and estimates their worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumo_dist.config.rules import RuleName
from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.arrays import Counts, Names
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.histograms import Histograms, film_histograms, gather_histograms
from pneumo_dist.scoring.masks import Rule, label_map
from pneumo_dist.scoring.threads import in_order
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.joint_rules import joint_rules
from pneumo_dist.thresholds.levels import FilmLevels
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.refine import (
    FilmComponents,
    SizeCurve,
    best_gate,
    best_size,
    component_counts,
    film_components,
    size_curve,
)
from pneumo_dist.thresholds.rules import THRESHOLDS, ThresholdsFile, TunedRule
from pneumo_dist.thresholds.stacking import (
    GateFilms,
    best_stacking,
    cross_stacked,
    gate_films,
    stacking_counts,
)
from pneumo_dist.thresholds.worth import (
    Estimate,
    SizeRow,
    by_size,
    cross_tuned,
    estimate,
    given_up,
    not_cross_tuned,
    plateau,
)
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.ranks.ranks import Ranks

_Row = npt.NDArray[np.int32]
# Points of the stored curve: one for every component size of ten thousand films would take megabytes.
CURVE_POINTS = 200


@dataclass(frozen=True)
class TuningResult:
    """The tuned rules, and the worth of the triplet among them.

    Attributes:
        thresholds: The rules and scores that thresholds.json keeps for other commands.
        score: Scores of the triplet over all films.
        folds: Scores of the triplet over the films of each fold.
        dice: Mean Dice of the triplet over all films, with its interval.
        given_up: Number of positive films that are empty only because of the triplet's area.
        plateau: Range in which each threshold can move alone.
        by_size: Scores of the positive films in bins of label size.
        patients: Number of groups that intervals draw from, which equals the number of films if patients are unknown.
        curve: Mean Dice by the size of the smallest component, at every size; None without components.
        no_unseen: Why `thresholds.unseen` is None, else None.
    """

    thresholds: ThresholdsFile
    score: Score
    folds: dict[int, Score]
    dice: Estimate
    given_up: int
    plateau: dict[str, tuple[float, float]]
    by_size: list[SizeRow]
    patients: int
    curve: SizeCurve | None
    no_unseen: str | None


def prediction_histograms(
    predictions: Predictions, ranks: "Ranks | None" = None, on_film: Callable[[], None] | None = None
) -> Histograms:
    """Return the histograms of labelled predictions, int64 (n, 2, 256), as `film_measures` does."""
    return film_measures(predictions, ranks, None, on_film)[0]


def film_measures(
    predictions: Predictions,
    ranks: "Ranks | None",
    threshold: float | None,
    on_film: Callable[[], None] | None = None,
    threads: int | None = None,
) -> tuple[Histograms, list[FilmComponents]]:
    """Read each labelled film once and return everything that tuning needs of it.

    The ranks share the films. Every rank gets the result for all of them, in table order. Without ranks, this process
    reads all films. The result does not depend on `threads`, by default one for each CPU.

    Returns:
        The histograms, int64 (n, 2, 256), and the components above `threshold`: an empty list if it is None.

    Raises:
        InputError: A film has no label.
    """

    def measured(index: int) -> tuple[_Row, Counts]:
        return _measured(predictions, index, threshold)

    beat = _heartbeat(ranks)
    histogram_rows: list[_Row] = []
    component_rows: list[Counts] = [np.zeros((0, 3), np.int64)]
    films = range(len(predictions)) if ranks is None else range(ranks.rank, len(predictions), ranks.world)
    for histogram_row, components in in_order(measured, films, threads):
        histogram_rows.append(histogram_row)
        component_rows.append(components)
        beat()
        if on_film:
            on_film()
    histograms = gather_histograms(histogram_rows, ranks)
    if threshold is None:
        return histograms, []
    rows = np.concatenate(component_rows)
    if ranks is not None:
        rows = np.concatenate(ranks.gather_array(rows))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    starts = np.searchsorted(rows[:, 0], np.arange(len(histograms) + 1))
    return histograms, [
        FilmComponents(rows[start:end, 1], rows[start:end, 2], int(truth))
        for start, end, truth in zip(starts[:-1], starts[1:], histograms[:, 1].sum(-1), strict=True)
    ]


def _heartbeat(ranks: "Ranks | None") -> Callable[[], None]:
    """Return a function that reports progress to the watchdog of the ranks."""
    if ranks is None:
        return lambda: None
    from pneumo_dist.ranks.watchdog import SCORING  # imports torch

    return lambda: ranks.beat(SCORING)


def _measured(predictions: Predictions, index: int, threshold: float | None) -> tuple[_Row, Counts]:
    """Return a film's row for `gather_histograms`, and for each component above `threshold` its film, size and hits."""
    if predictions.rows[index]["rle"] is None:
        raise InputError(
            f"{predictions.folder}: {predictions.rows[index]['key']} has no label to tune on; use --split oof"
        )
    truth, film = predictions.label(index), label_map(predictions.p8(index), predictions.grid(index))
    row = np.concatenate([[index], film_histograms(film, truth).reshape(-1)]).astype(np.int32)
    if threshold is None:
        return row, np.zeros((0, 3), np.int64)
    found = film_components(film, truth, threshold)
    return row, np.stack([np.full_like(found.sizes, index), found.sizes, found.hits], axis=1)


def tune(
    predictions: Predictions,
    histograms: Histograms,
    objective: Objective | None = None,
    components: Sequence[FilmComponents] = (),
    threshold: float = 0.5,
    levels: Sequence[FilmLevels] = (),
) -> TuningResult:
    """Find the best rules for an objective, mean Dice by default, and estimate their worth.

    The triplet is the exact best over all top levels, bottom levels and areas. With `components`, those of the films
    above `threshold`, the best size of the smallest component is tuned too, and a stacked gate is fitted if there are
    films with and without a pneumothorax. With class probabilities in the predictions, so is the best gate for the
    triplet. With `levels`, those of `level_measures`, the best size is also searched together with the threshold, and
    with the triplet.
    """
    chosen = objective or Objective()
    folds, groups = predictions.folds, predictions.groups
    triplet = chosen.search(histograms)
    counts = triplet_counts(histograms, triplet)
    unseen = cross_tuned(histograms, folds, chosen)
    rules = [_tuned_rule("triplet", Rule(triplet), counts)]
    curve = thinned = None
    if components:
        curve = size_curve(components, chosen.film_weights(counts.positive))
        size = best_size(curve, components, chosen.specificity)
        rule = Rule(Triplet(threshold, 0, threshold), smallest_part=size)
        rules.append(_tuned_rule("components", rule, component_counts(components, size)))
        thinned = curve.thinned(CURVE_POINTS, size)
    rules += joint_rules(levels, chosen, folds, groups) if levels else []
    rules += _gate_rules(predictions, counts, triplet, chosen)
    if components:
        rules += _stacking_rules(gate_films(predictions, histograms, components, threshold), groups, chosen)
    thresholds = ThresholdsFile(
        objective=chosen,
        rules={tuned.name: tuned for tuned in rules},
        unseen=None if unseen is None else estimate(unseen, groups),
        curve=thinned,
        digest=predictions.digest,
        path=predictions.folder.parent / THRESHOLDS,
    )
    return TuningResult(
        thresholds=thresholds,
        score=counts.score(),
        folds={int(fold): counts.select(folds == fold).score() for fold in np.unique(folds)},
        dice=estimate(counts.dice, groups),
        given_up=given_up(histograms, triplet),
        plateau=plateau(histograms, triplet, chosen.film_weights(counts.positive)),
        by_size=by_size(counts),
        patients=len(np.unique(groups)),
        curve=curve,
        no_unseen=not_cross_tuned(counts.positive, folds, chosen),
    )


def _gate_rules(
    predictions: Predictions, counts: PixelCounts, triplet: Triplet, objective: Objective
) -> list[TunedRule]:
    """Return the triplet with its best gate; no rule if a film has no class probability."""
    values = [row["class_probability"] for row in predictions.rows]
    if None in values:
        return []
    probabilities = np.array(values, np.float64)
    weights, hidden = objective.film_weights(counts.positive), (~counts.positive).astype(np.float64)
    below = np.inf
    if objective.specificity is not None:  # a gate may raise specificity, but must not lower sensitivity
        below = float(probabilities[counts.positive & counts.called].min(initial=np.inf))
    gate, _ = best_gate(probabilities, counts.dice, hidden, weights, below)
    gated = counts.emptied((probabilities <= gate) & (gate > 0))
    return [_tuned_rule("gate", Rule(triplet, gate=gate, outside=gate > 0 and predictions.outside), gated)]


def _stacking_rules(films: GateFilms, groups: Names, objective: Objective) -> list[TunedRule]:
    """Return the rule with the stacked gate; no rule if the films lack a class."""
    rule = best_stacking(films, objective)
    if rule is None:
        return []
    unseen = cross_stacked(films, objective)
    tuned = _tuned_rule("stacking", rule, stacking_counts(films, rule))
    return [tuned if unseen is None else replace(tuned, unseen=estimate(unseen, groups))]


def _tuned_rule(name: RuleName, rule: Rule, counts: PixelCounts) -> TunedRule:
    return TunedRule(name, rule, float(counts.dice.mean()), float(counts.called.mean()))
