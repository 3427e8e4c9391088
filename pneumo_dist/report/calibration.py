"""Calibration of the image score: maps the area-th largest pixel probability to the chance of a pneumothorax."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumo_dist.scoring.arrays import Counts, Flags
from shards.arrays import Floats

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Films in equally wide bins of a score, without empty bins: number, mean score and share of positives (k,)."""

    films: Counts
    score: Floats
    share: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance between score and share, with every film counted once."""
        return float(np.average(np.abs(self.score - self.share), weights=self.films))


@dataclass(frozen=True)
class Calibration:
    """Brier score and reliability of the image score, before and after calibration on other films."""

    brier_before: float
    brier_after: float
    before: Reliability
    after: Reliability


def calibrate(scores: Floats, positive: Flags, folds: Counts) -> Calibration | None:
    """Evaluate the calibration of each fold on the other folds. All inputs are (n,).

    Returns None for films of one fold, and if the films outside a fold are all positive or all negative.
    """
    calibrated = cross_calibrated(scores, positive, folds)
    return None if calibrated is None else _compared(scores, calibrated, positive)


def calibrate_by(fitted_scores: Floats, fitted_positive: Flags, scores: Floats, positive: Flags) -> Calibration | None:
    """Evaluate a calibration that is fitted on some films (m,) on other films (n,).

    Returns None if either set of films is all positive or all negative.
    """
    if any(len(np.unique(flags)) < 2 for flags in (fitted_positive, positive)):
        return None
    return _compared(scores, _fitted(fitted_scores, fitted_positive)(scores), positive)


def _compared(scores: Floats, calibrated: Floats, positive: Flags) -> Calibration:
    return Calibration(
        brier_before=float(brier_score_loss(positive, scores)),
        brier_after=float(brier_score_loss(positive, calibrated)),
        before=reliability(scores, positive),
        after=reliability(calibrated, positive),
    )


def cross_calibrated(scores: Floats, positive: Flags, folds: Counts) -> Floats | None:
    """Return the chance that each film is positive, float64 (n,), from a logistic regression on the other folds."""
    numbers = np.unique(folds)
    if len(numbers) < 2 or any(len(np.unique(positive[folds != fold])) < 2 for fold in numbers):
        return None
    chances = np.zeros(len(scores))
    for fold in numbers:
        is_in = folds == fold
        chances[is_in] = _fitted(scores[~is_in], positive[~is_in])(scores[is_in])
    return chances


def _fitted(scores: Floats, positive: Flags) -> Callable[[Floats], Floats]:
    """Fit a function on these films that maps image scores to chances."""
    # J. Platt, "Probabilistic outputs for support vector machines", 1999. It has two parameters, so few films suffice.
    # Scores are scaled so that the regularisation, which keeps the fit to separable films finite, suits any spread.
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(_logit(scores)[:, None], positive)
    return lambda others: np.asarray(model.predict_proba(_logit(others)[:, None])[:, 1])


def _logit(scores: Floats) -> Floats:
    # The logits of 0 and 1 are infinite: stay half a level away.
    inside = np.clip(scores, 0.5 / 255, 1 - 0.5 / 255)
    return np.asarray(np.log(inside / (1 - inside)))


def reliability(scores: Floats, positive: Flags, bins: int = BINS) -> Reliability:
    """Group films into `bins` equal bins of 0..1. A score of 1 falls into the last bin."""
    bin_of = np.minimum((scores * bins).astype(np.int64), bins - 1)
    films = np.bincount(bin_of, minlength=bins)
    filled = films > 0
    sums = [np.bincount(bin_of, values.astype(np.float64), minlength=bins)[filled] for values in (scores, positive)]
    return Reliability(films[filled], *(total / films[filled] for total in sums))
