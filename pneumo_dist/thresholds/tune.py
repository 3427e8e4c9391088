"""Thresholds from out-of-fold predictions: the exact best triplet on the label grid, and what it is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pneumo_dist.predict.store import Predictions
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import SCORING
from pneumo_dist.scoring.arrays import Counts, Floats, Names
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.histograms import Histograms, film_histograms, gather_histograms
from pneumo_dist.scoring.masks import Rule, label_map
from pneumo_dist.scoring.triplet import Triplet
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
from pneumo_dist.thresholds.worth import (
    SizeRow,
    bootstrap_interval,
    by_size,
    cross_tuned,
    given_up,
    not_cross_tuned,
    plateau,
)
from shards.errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A mean over films with its 95 % interval by patient; the ends are nan where there is one patient alone."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class TunedRule:
    """A rule for masks, its mean Dice over the films it was tuned on, and the share whose masks are not empty.

    Whatever it was tuned for, every film counts once in `dice`: rules are compared by it.
    """

    rule: Rule
    dice: float
    called: float


@dataclass(frozen=True)
class TuningResult:
    """The best triplet and its scores over the films it was tuned on, and per fold.

    `dice` is the mean Dice of these films. `unseen` is it under thresholds that were tuned on the other folds, None
    where they could not be, and `no_unseen` says why. `called` is the share of films whose masks are not empty,
    `given_up` the positive films that only `area` makes empty, `plateau` how far each threshold can move alone,
    `by_size` the positive films in parts of equal number. `patients` counts the groups that intervals draw from: as
    many as films where patients are unknown. `components` is a fixed threshold without small parts, `curve` its Dice
    by their size, and `gate` the triplet with the classification gate: None where there is nothing to tune them on.
    """

    objective: Objective
    triplet: Triplet
    score: Score
    folds: dict[int, Score]
    dice: Estimate
    unseen: Estimate | None
    called: float
    given_up: int
    plateau: dict[str, tuple[float, float]]
    by_size: list[SizeRow]
    patients: int
    components: TunedRule | None = None
    gate: TunedRule | None = None
    curve: SizeCurve | None = None
    no_unseen: str | None = None


def prediction_histograms(
    predictions: Predictions, ranks: Ranks, on_film: Callable[[], None] | None = None
) -> Histograms:
    """Return int64 (n, 2, 256) of labelled predictions in table order, the work dealt to the ranks.

    Raises InputError where a film has no label.
    """
    return film_measures(predictions, ranks, None, on_film)[0]


def film_measures(
    predictions: Predictions, ranks: Ranks, threshold: float | None, on_film: Callable[[], None] | None = None
) -> tuple[Histograms, list[FilmComponents]]:
    """Return the histograms of labelled predictions, int64 (n, 2, 256), and their parts above a threshold, if asked.

    Each film is looked at once; the work is dealt to the ranks and every rank gets all of it, in table order. Raises
    InputError where a film has no label.
    """
    found: list[Counts] = []
    parts: list[Counts] = []
    for index in range(ranks.rank, len(predictions), ranks.world):
        ranks.beat(SCORING)
        text, grid = predictions.rows[index]["rle"], predictions.grid(index)
        if text is None:
            raise InputError(
                f"{predictions.folder}: {predictions.rows[index]['key']} has no label to tune on; use --split oof"
            )
        truth, film = predictions.label(index), label_map(predictions.p8(index), grid)
        found.append(np.concatenate([[index], film_histograms(film, truth).reshape(-1)]))
        if threshold is not None:
            own = film_components(film, truth, threshold)
            parts.append(np.stack([np.full_like(own.sizes, index), own.sizes, own.hits], axis=1))
        if on_film:
            on_film()
    histograms = gather_histograms(found, ranks)
    if threshold is None:
        return histograms, []
    rows = np.concatenate(ranks.gather_array(np.concatenate([np.zeros((0, 3), np.int64), *parts])))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    starts = np.searchsorted(rows[:, 0], np.arange(len(histograms) + 1))
    return histograms, [
        FilmComponents(rows[start:end, 1], rows[start:end, 2], int(truth))
        for start, end, truth in zip(starts[:-1], starts[1:], histograms[:, 1].sum(-1), strict=True)
    ]


def tune(
    predictions: Predictions,
    histograms: Histograms,
    objective: Objective | None = None,
    components: Sequence[FilmComponents] = (),
    threshold: float = 0.5,
) -> TuningResult:
    """Return the exact best triplet over every top and bottom level and every area, and what it is worth.

    With `components`, the parts above `threshold`, also the exact best size of the smallest part that is kept.
    """
    chosen = objective or Objective()
    triplet = chosen.search(histograms)
    folds, groups = predictions.folds, predictions.groups
    counts = triplet_counts(histograms, triplet)
    weights = chosen.film_weights(counts.positive)
    unseen = cross_tuned(histograms, folds, chosen)
    curve = size_curve(components, weights) if components else None
    return TuningResult(
        objective=chosen,
        triplet=triplet,
        score=counts.score(),
        folds={int(fold): counts.part(folds == fold).score() for fold in np.unique(folds)},
        dice=_estimate(counts.dice, groups),
        unseen=None if unseen is None else _estimate(unseen, groups),
        called=float(counts.called.mean()),
        given_up=given_up(histograms, triplet),
        plateau=plateau(histograms, triplet, weights),
        by_size=by_size(counts),
        patients=len(np.unique(groups)),
        components=None if curve is None else _smallest_part(curve, components, threshold, chosen),
        gate=_gate(predictions, counts, triplet, chosen),
        curve=curve,
        no_unseen=not_cross_tuned(counts.positive, folds, chosen),
    )


def _smallest_part(
    curve: SizeCurve, components: Sequence[FilmComponents], threshold: float, objective: Objective
) -> TunedRule:
    size = best_size(curve, components, objective.specificity)
    return _tuned_rule(Rule(Triplet(threshold, 0, threshold), smallest_part=size), component_counts(components, size))


def _gate(predictions: Predictions, counts: PixelCounts, triplet: Triplet, objective: Objective) -> TunedRule | None:
    """Return the triplet with its best gate, None where a film has no class probability."""
    found = [row["class_probability"] for row in predictions.rows]
    if None in found:
        return None
    probabilities = np.array(found, np.float64)
    weights, hidden = objective.film_weights(counts.positive), (~counts.positive).astype(np.float64)
    below = np.inf
    if objective.specificity is not None:  # a gate adds to specificity, and must not take from sensitivity
        below = float(probabilities[counts.positive & counts.called].min(initial=np.inf))
    gate, _ = best_gate(probabilities, counts.dice, hidden, weights, below)
    return _tuned_rule(Rule(triplet, gate=gate), counts.emptied((probabilities <= gate) & (gate > 0)))


def _tuned_rule(rule: Rule, counts: PixelCounts) -> TunedRule:
    return TunedRule(rule, float(counts.dice.mean()), float(counts.called.mean()))


def _estimate(values: Floats, groups: Names) -> Estimate:
    return Estimate(float(values.mean()), *bootstrap_interval(values, groups))
