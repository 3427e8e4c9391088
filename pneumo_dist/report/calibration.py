"""Calibration of the image score: from the area-th largest pixel probability to the chance of a pneumothorax."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumo_dist.scoring.arrays import Counts, Flags, Floats

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Films in equally wide bins of a score, empty ones left out: count, mean score, share of positives."""

    films: Counts
    score: Floats
    share: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of score and share, each film counted once."""
        return float(np.average(np.abs(self.score - self.share), weights=self.films))


@dataclass(frozen=True)
class Calibration:
    """Brier score and reliability of the image score as it is, and calibrated on other films."""

    brier_before: float
    brier_after: float
    before: Reliability
    after: Reliability


def calibrate(scores: Floats, positive: Flags, folds: Counts) -> Calibration | None:
    """Return what calibration on the other folds is worth; all inputs are (n,).

    None for films of one fold, and where the films outside a fold are all positive or all negative.
    """
    calibrated = cross_calibrated(scores, positive, folds)
    return None if calibrated is None else _compared(scores, calibrated, positive)


def calibrate_by(fitted_scores: Floats, fitted_positive: Flags, scores: Floats, positive: Flags) -> Calibration | None:
    """Return what calibration that was fitted on some films (m,) is worth on others (n,).

    None where either films are all positive or all negative.
    """
    if any(len(np.unique(truths)) < 2 for truths in (fitted_positive, positive)):
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
    """Return each film's chance of being positive, float64 (n,), by logistic regression fitted on the other folds."""
    numbers = np.unique(folds)
    if len(numbers) < 2 or any(len(np.unique(positive[folds != fold])) < 2 for fold in numbers):
        return None
    chances = np.zeros(len(scores))
    for fold in numbers:
        own = folds == fold
        chances[own] = _fitted(scores[~own], positive[~own])(scores[own])
    return chances


def _fitted(scores: Floats, positive: Flags) -> Callable[[Floats], Floats]:
    """Return what makes chances of image scores, fitted on these films."""
    # J. Platt, "Probabilistic outputs for support vector machines", 1999: two numbers, so that few films suffice.
    # Scaled, so that the regularisation, which keeps a separating score finite, suits scores of any spread.
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(_logit(scores)[:, None], positive)
    return lambda others: np.asarray(model.predict_proba(_logit(others)[:, None])[:, 1])


def _logit(scores: Floats) -> Floats:
    # Half a level of p8 away from 0 and 1, whose logits are infinite.
    inside = np.clip(scores, 0.5 / 255, 1 - 0.5 / 255)
    return np.asarray(np.log(inside / (1 - inside)))


def reliability(scores: Floats, positive: Flags, bins: int = BINS) -> Reliability:
    """Return films in `bins` parts of 0..1; a score of 1 belongs to the last part."""
    part = np.minimum((scores * bins).astype(np.int64), bins - 1)
    films = np.bincount(part, minlength=bins)
    kept = films > 0
    sums = [np.bincount(part, values.astype(np.float64), minlength=bins)[kept] for values in (scores, positive)]
    return Reliability(films[kept], *(total / films[kept] for total in sums))
