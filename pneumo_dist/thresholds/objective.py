"""Objectives that thresholds can be tuned for."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from pneumo_dist.scoring.arrays import Flags
from pneumo_dist.scoring.histograms import Histograms
from pneumo_dist.scoring.triplet import Triplet, best_triplet
from shards.arrays import Floats
from shards.errors import InputError


@dataclass(frozen=True)
class Objective:
    """The objective of a tuning: mean Dice over films, unless a field is set.

    Attributes:
        prevalence: Weight the films as if this share of them were positive.
        specificity: Leave at least this share of the negative films empty, then maximize sensitivity, then mean Dice.
    """

    prevalence: float | None = None
    specificity: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `dice`, `dice@prevalence=P` or `sensitivity@specificity=S`. Raises InputError for any other text."""
        name, _, number = text.partition("=")
        if text == "dice":
            return cls()
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name == "dice@prevalence" and 0 < value < 1:
            return cls(prevalence=value)
        if name == "sensitivity@specificity" and 0 <= value <= 1:
            return cls(specificity=value)
        raise InputError(
            f"--objective {text}: give dice, dice@prevalence=P with P between 0 and 1, or sensitivity@specificity=S "
            "with S from 0 to 1"
        )

    def __str__(self) -> str:
        if self.prevalence is not None:
            return f"dice@prevalence={self.prevalence:g}"
        return "dice" if self.specificity is None else f"sensitivity@specificity={self.specificity:g}"

    def film_weights(self, positive: Flags) -> Floats:
        """Return the weight of each film, float64 (n,), with a mean of 1.

        Raises InputError if a prevalence is set and the films are all positive or all negative.
        """
        if self.prevalence is None:
            return np.ones(len(positive))
        share = positive.mean()
        if share in (0.0, 1.0):
            raise InputError(f"--objective {self}: needs films with and without a pneumothorax")
        weights = np.where(positive, self.prevalence / share, (1.0 - self.prevalence) / (1.0 - share))
        return np.asarray(weights, np.float64)

    def lacks(self, positive: Flags) -> str | None:
        """Name the kind of films that the objective needs and that is missing; None if no kind is."""
        if self.prevalence is None and self.specificity is None:
            return None
        if not positive.any():
            return "films with a pneumothorax"
        return "films without a pneumothorax" if positive.all() else None

    def search(self, histograms: Histograms) -> Triplet:
        """Return the best triplet for the histograms of films, int64 (n, 2, 256), by exact search."""
        weights = self.film_weights(histograms[:, 1].sum(-1) > 0)
        return best_triplet(histograms, weights, self.specificity)[0]
