"""Strict models of rules and scores in files, which check types and ranges on reading."""

from dataclasses import asdict
from typing import Annotated, Any, Self

import pydantic
from pydantic import Field

from pneumo_dist.config.schema import Area, Probability
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stacking import Stacking, is_feature
from pneumo_dist.scoring.triplet import Triplet
from shards.stored import Strict

# A mean over films may exceed its limits by rounding, depending on the order of the sum.
Mean = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]
# A class probability is averaged in float32.
ClassProbability = Annotated[float, Field(ge=0, le=1 + 1e-4)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


_MOST_FEATURES = 100
_Numbers = Annotated[list[float], Field(min_length=1, max_length=_MOST_FEATURES)]


class StackingModel(Strict):
    """A stacked gate."""

    features: Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=_MOST_FEATURES)]
    means: _Numbers
    scales: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=_MOST_FEATURES)]
    coefficients: _Numbers
    intercept: float
    threshold: Probability

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Self:
        unknown = [name for name in self.features if not is_feature(name)]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no feature")
        if len(set(self.features)) != len(self.features):
            raise ValueError("features has the same name twice")
        if any(len(each) != len(self.features) for each in (self.means, self.scales, self.coefficients)):
            raise ValueError("each feature has a mean, a scale and a coefficient")
        return self

    def stacking(self) -> Stacking:
        """Return the gate."""
        return Stacking(
            features=tuple(self.features),
            means=tuple(self.means),
            scales=tuple(self.scales),
            coefficients=tuple(self.coefficients),
            intercept=self.intercept,
            threshold=self.threshold,
        )


class RuleModel(Strict):
    """A rule for masks. Unlike `Rule`, it requires every field that all versions have written."""

    triplet: Triplet
    smallest_part: Area
    gate: ClassProbability
    stacking: StackingModel | None = None
    outside: bool = False

    def rule(self) -> Rule:
        """Return the rule."""
        stacking = None if self.stacking is None else self.stacking.stacking()
        return Rule(self.triplet, self.smallest_part, self.gate, stacking, self.outside)


def rule_content(rule: Rule) -> dict[str, Any]:
    """Return a rule as it is stored. What it does not use is left out, so that earlier versions read it, too."""
    unused = {"stacking": rule.stacking is None, "outside": not rule.outside}
    return {name: value for name, value in asdict(rule).items() if not unused.get(name, False)}
