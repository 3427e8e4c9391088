"""Fits the stacked gate on out-of-fold films, and finds its threshold together with that of the masks.

A gate is a logistic regression with an L2 penalty (scikit-learn) over the features of `scoring.stacking`. Its numbers
are rounded to six digits. Newton's method ends far below that, so that the last bits of a sum, which differ between
CPUs and numbers of threads, rarely reach a stored digit. No threshold lies between films whose probabilities differ by
less than `GAP`, so that they do not reach a call either.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.arrays import Counts, Flags
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.dice import dice
from pneumo_dist.scoring.histograms import Histograms, counts_above
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stacking import PART, Stacking, feature_names, map_features
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.refine import FilmComponents
from pneumo_dist.thresholds.worth import not_cross_tuned
from shards.arrays import Floats
from shards.errors import InputError

AREAS = (0.1, 0.3, 0.5, 0.7, 0.9)
GAP = 1e-9
_DIGITS = 6
# Inverse strength of the penalty, on standardised features; scikit-learn's default.
_STRENGTH, _TOLERANCE, _STEPS = 1.0, 1e-10, 1000


@dataclass(frozen=True)
class GateFilms:
    """Labelled films for a gate: histograms int64 (n, 2, 256), features float64 (n, k), their names, folds (n,).

    `outside` says that the class probabilities are not those of the networks that predicted the maps.
    """

    histograms: Histograms
    features: Floats
    names: tuple[str, ...]
    folds: Counts
    outside: bool = False

    @property
    def positive(self) -> Flags:
        """Whether each film's label has any pixel."""
        return np.asarray(self.histograms[:, 1].sum(-1) > 0)

    def select(self, films: Flags) -> "GateFilms":
        """Return some of the films, chosen by flags (n,)."""
        return replace(self, histograms=self.histograms[films], features=self.features[films], folds=self.folds[films])


def gate_films(
    predictions: Predictions, histograms: Histograms, components: Sequence[FilmComponents], threshold: float
) -> GateFilms:
    """Return the features of labelled predictions, with the class probability if every film has one.

    `components` are those of the maps above `threshold`. Raises InputError for films of the holdout.
    """
    held = next((row["key"] for row in predictions.rows if row["split"] == "holdout"), None)
    if held is not None:
        raise InputError(f"{predictions.folder}: {held} is a holdout film, on which no gate is fitted; use --split oof")
    classes = [row["class_probability"] for row in predictions.rows]
    names = feature_names(AREAS, threshold, with_class=None not in classes)
    part = next(name for name in names if name.startswith(PART))
    features = [
        map_features(names, histogram[0], {part: int(found.sizes.max(initial=0))}, class_probability)
        for histogram, found, class_probability in zip(histograms, components, classes, strict=True)
    ]
    outside = predictions.outside and None not in classes
    return GateFilms(histograms, np.array(features, np.float64), names, predictions.folds, outside)


def best_stacking(films: GateFilms, objective: Objective) -> Rule | None:
    """Fit a gate on films and return the rule with its best threshold; None if the films lack a class.

    A called film's mask is everything above one threshold, an empty mask otherwise. Both thresholds are the exact best
    ones over all levels and all calls that the gate's ranking allows. Of equally good ones, the one that calls the
    fewest films wins, then the lowest level.
    """
    positive = films.positive
    if positive.all() or not positive.any():
        return None
    gate = fit_gate(films.features, positive, films.names)
    threshold, bottom = _best_cut(gate_probabilities(gate, films), films.histograms, objective)
    chosen = Triplet(0.0, 0, bottom / 255)
    return Rule(chosen, stacking=replace(gate, threshold=threshold), outside=films.outside and gate.needs_class)


def fit_gate(features: Floats, positive: Flags, names: tuple[str, ...]) -> Stacking:
    """Fit a gate, whose threshold is 1/2, on features (n, k) of films with flags (n,) of both kinds."""
    from sklearn.linear_model import LogisticRegression  # takes a second, and submit does not need it

    # Sums that are rounded once are the same on every machine, in every order.
    means = [math.fsum(column) / len(features) for column in features.T.tolist()]
    spreads = [
        math.sqrt(math.fsum((value - mean) ** 2 for value in column) / len(features))
        for column, mean in zip(features.T.tolist(), means, strict=True)
    ]
    means, scales = [_rounded(each) for each in means], [_rounded(each) if each > GAP else 1.0 for each in spreads]
    model = LogisticRegression(C=_STRENGTH, solver="newton-cholesky", tol=_TOLERANCE, max_iter=_STEPS)
    model.fit((features - means) / scales, positive)
    coefficients = [_rounded(each) for each in model.coef_[0].tolist()]
    intercept = _rounded(float(model.intercept_[0]))
    return Stacking(names, tuple(means), tuple(scales), tuple(coefficients), intercept, 0.5)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def gate_probabilities(gate: Stacking, films: GateFilms) -> Floats:
    """Return the probability of each film, float64 (n,), as `apply_rule` computes it."""
    return np.array([gate.probability(row) for row in films.features.tolist()])


def stacking_counts(films: GateFilms, rule: Rule) -> PixelCounts:
    """Return the exact pixel counts of films under a rule with a gate, without making a mask."""
    gate = rule.stacking
    assert gate is not None, "a rule without a gate"
    return triplet_counts(films.histograms, rule.triplet).emptied(gate_probabilities(gate, films) <= gate.threshold)


def cross_rules(films: GateFilms, objective: Objective) -> dict[int, Rule] | None:
    """Return the rule for each fold, fitted and tuned on the films of the other folds; None if one cannot be."""
    if not_cross_tuned(films.positive, films.folds, objective) is not None:
        return None
    rules = {}
    for fold in np.unique(films.folds).tolist():
        rule = best_stacking(films.select(films.folds != fold), objective)
        if rule is None:
            return None
        rules[fold] = rule
    return rules


def cross_stacked(films: GateFilms, objective: Objective) -> Floats | None:
    """Return the Dice of each film (n,) under the rule of its fold in `cross_rules`; None if there are none."""
    rules = cross_rules(films, objective)
    if rules is None:
        return None
    dices = np.zeros(len(films.folds))
    for fold, rule in rules.items():
        is_in = films.folds == fold
        dices[is_in] = stacking_counts(films.select(is_in), rule).dice
    return dices


def _best_cut(probabilities: Floats, histograms: Histograms, objective: Objective) -> tuple[float, int]:
    """Return the threshold of the gate and the level of the masks with the best mean Dice for the objective.

    The films that a threshold calls are a prefix of all films in falling order of probability, so that one running sum
    gives the score of all thresholds for all levels.
    """
    above, truth = counts_above(histograms), histograms[:, 1].sum(-1)
    hidden = (truth == 0).astype(np.float64)
    gain = dice(above[:, 1], above[:, 0], truth[:, None]) - hidden[:, None]
    gain *= objective.film_weights(truth > 0)[:, None]
    order = np.argsort(-probabilities, kind="stable")
    # The last entry of a prefix: the next film, or a probability of 0, is more than GAP away.
    ranked = np.append(probabilities[order], 0.0)
    ends = np.flatnonzero(ranked[:-1] - ranked[1:] > GAP)
    sums = np.concatenate([np.zeros((1, gain.shape[1])), gain[order].cumsum(axis=0)[ends]])
    if objective.specificity is not None:
        sums = np.where(_allowed(above[order, 0] > 0, truth[order] > 0, ends, objective.specificity), sums, -np.inf)
    kept, bottom = divmod(int(sums.argmax()), sums.shape[1])
    if kept == 0:
        return 1.0, bottom
    end = ends[kept - 1]
    return float((ranked[end] + ranked[end + 1]) / 2), bottom


def _allowed(shown: Flags, positive: Flags, ends: npt.NDArray[np.intp], specificity: float) -> Flags:
    """Return which prefixes and levels leave enough negative films empty and call the most positive films.

    `shown` (n, 256) says whether a mask at a level has a pixel. The films are ranked. The first prefix is empty.
    """
    wrong, right = (
        np.concatenate([np.zeros((1, shown.shape[1]), np.int64), (shown & kind[:, None]).cumsum(axis=0)[ends]])
        for kind in (~positive, positive)
    )
    allowed = wrong <= math.floor((1.0 - specificity) * (~positive).sum() + 1e-9)
    return np.asarray(allowed & (right == right[allowed].max()))
