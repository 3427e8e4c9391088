"""Strict models of thresholds.json: a file that tune cannot have written is refused."""

from typing import Annotated, Self

import pydantic
from pydantic import Field

from pneumo_dist.config.rules import RuleName
from pneumo_dist.config.schema import Area
from pneumo_dist.scoring.stored import Digest, Mean, RuleModel
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.objective import Objective
from shards.stored import Strict

FORMAT_VERSION = 1
_Count = Annotated[int, Field(ge=0, le=2**40)]


class VersionModel(Strict):
    """The format version. Files written before 0.2.0 have none, which means 1."""

    format_version: object = FORMAT_VERSION


class EstimateModel(Strict):
    """A mean with its interval. JSON has no nan, so null is used."""

    mean: Mean | None
    low: Mean | None
    high: Mean | None


class TunedRuleModel(Strict):
    """A rule and its worth."""

    rule: RuleModel
    dice: Mean
    called: Mean
    dice_tuned_on_other_folds: EstimateModel | None = None


class ScoreModel(Strict):
    """Scores of the films that the thresholds were tuned on."""

    dice: Mean
    positive_dice: Mean | None
    always_empty: Mean
    films: Annotated[int, Field(ge=1, le=2**40)]
    positives: _Count


class CurveModel(Strict):
    """Mean Dice by the size of the smallest component."""

    sizes: Annotated[list[Area], Field(min_length=1)]
    dice: Annotated[list[Mean], Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.sizes) != len(self.dice) or self.sizes != sorted(set(self.sizes)):
            raise ValueError("sizes rise, and each has its dice")
        return self


class ThresholdsModel(Strict):
    """The part of thresholds.json that other commands use."""

    objective: str
    triplet: Triplet
    rules: dict[RuleName, TunedRuleModel]
    dice_tuned_on_other_folds: EstimateModel | None
    components_curve: CurveModel | None
    predictions_sha256: Digest

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Self:
        Objective.parse(self.objective)
        if "triplet" not in self.rules:
            raise ValueError("rules has no triplet")
        if self.rules["triplet"].rule.triplet != self.triplet:
            raise ValueError("triplet and rules.triplet differ")
        if "stacking" in self.rules and self.rules["stacking"].rule.stacking is None:
            raise ValueError("rules.stacking has no stacked gate")
        return self


class ScoresModel(ThresholdsModel):
    """The same with the scores, which a bundle's model card shows."""

    score: ScoreModel
