"""Strict models of rules and scores in files, which check types and ranges on reading."""

from typing import Annotated

from pydantic import Field

from pneumo_dist.config.schema import Area
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.stored import Strict

# A mean over films may exceed its limits by rounding, depending on the order of the sum.
Mean = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]
# A class probability is averaged in float32.
ClassProbability = Annotated[float, Field(ge=0, le=1 + 1e-4)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RuleModel(Strict):
    """A rule for masks. Unlike `Rule`, it requires every field."""

    triplet: Triplet
    smallest_part: Area
    gate: ClassProbability

    def rule(self) -> Rule:
        """Return the rule."""
        return Rule(self.triplet, self.smallest_part, self.gate)
