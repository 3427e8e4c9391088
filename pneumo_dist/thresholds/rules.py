"""Tuned rules for masks, each with its worth, and the part of thresholds.json that other commands use."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.config.rules import RuleName
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.refine import SizeCurve
from pneumo_dist.thresholds.worth import Estimate
from shards.errors import InputError

THRESHOLDS = "thresholds.json"
_NEEDED: Mapping[RuleName, str] = {
    "gate": "a classification head",
    "threshold-components": "to be tuned with --joint",
    "triplet-components": "to be tuned with --joint, for mean Dice",
    "stacking": "to be tuned on films with and without a pneumothorax",
}


@dataclass(frozen=True)
class TunedRule:
    """A tuned rule and its worth: mean Dice and share of non-empty masks over the films it was tuned on.

    Every film counts once in `dice`, whatever the objective of the tuning, so that rules can be compared. `unseen` is
    the mean Dice of each fold's films under a rule of this name from the other folds, where that was computed; that of
    the triplet is in `ThresholdsFile`.
    """

    name: RuleName
    rule: Rule
    dice: float
    called: float
    unseen: Estimate | None = None


@dataclass(frozen=True)
class ThresholdsFile:
    """The part of thresholds.json that other commands use.

    Attributes:
        objective: The objective of the tuning.
        rules: The tuned rules by name. A rule of RULES is missing if there was no data to tune it on.
        unseen: Mean Dice of each fold's films with a triplet tuned on the other folds; None if none could be tuned.
        curve: Mean Dice by the size of the smallest component, thinned; None if it was not tuned.
        digest: SHA-256 of the predictions.
        path: The file, for messages.
    """

    objective: Objective
    rules: Mapping[RuleName, TunedRule]
    unseen: Estimate | None
    curve: SizeCurve | None
    digest: str
    path: Path

    @property
    def triplet(self) -> Triplet:
        """The tuned triplet."""
        return self.rules["triplet"].rule.triplet

    def rule(self, name: RuleName) -> TunedRule:
        """Return a rule by its name. Raises InputError if it was not tuned."""
        if name not in self.rules:
            needed = _NEEDED.get(name, "to be tuned")
            raise InputError(f"{self.path}: has no rule {name}, which needs {needed}; it has {', '.join(self.rules)}")
        return self.rules[name]
