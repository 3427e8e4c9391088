"""thresholds.json as a strict model: a rule calls films empty, so it is what tune wrote or nothing."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from pneumo_dist.config.schema import Area
from pneumo_dist.scoring.stored import Digest, Mean, RuleModel, TripletModel
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.tune import TunedRule
from shards.stored import Strict

FORMAT_VERSION = 1
RULES = ("triplet", "components", "gate")
_Count = Annotated[int, Field(ge=0, le=2**40)]


class VersionModel(Strict):
    """What every version tells; files of before 0.2.0 note none, theirs is 1."""

    format_version: object = FORMAT_VERSION


class TunedRuleModel(Strict):
    """A rule and what it came to."""

    rule: RuleModel
    dice: Mean
    called: Mean

    def alternative(self) -> TunedRule:
        """Return the rule with its scores."""
        return TunedRule(self.rule.rule(), self.dice, self.called)


class EstimateModel(Strict):
    """A mean with its interval; null is what JSON has for nan."""

    mean: Mean | None
    low: Mean | None
    high: Mean | None


class ScoreModel(Strict):
    """The scores of the films that were tuned on."""

    dice: Mean
    positive_dice: Mean | None
    always_empty: Mean
    films: Annotated[int, Field(ge=1, le=2**40)]
    positives: _Count


class CurveModel(Strict):
    """Mean Dice by the size of the smallest part."""

    sizes: Annotated[list[Area], Field(min_length=1)]
    dice: Annotated[list[Mean], Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.sizes) != len(self.dice) or self.sizes != sorted(set(self.sizes)):
            raise ValueError("sizes rise, and each has its dice")
        return self


class ThresholdsModel(Strict):
    """What commands take from thresholds.json."""

    objective: str
    triplet: TripletModel
    rules: dict[Literal["triplet", "components", "gate"], TunedRuleModel]
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
        return self


class ScoresModel(ThresholdsModel):
    """With the scores that a bundle's card tells."""

    score: ScoreModel
