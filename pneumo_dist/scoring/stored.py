"""Rules and scores as files keep them: types and ranges are checked when they are read."""

from typing import Annotated

from pydantic import Field

from pneumo_dist.config.schema import Area, Probability
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.stored import Strict

# A mean over films that is summed in another order may pass its ends by a bit.
Mean = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]
# A class probability is a mean in float32.
ClassProbability = Annotated[float, Field(ge=0, le=1 + 1e-4)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TripletModel(Strict):
    """A triplet of thresholds."""

    top: Probability
    area: Area
    bottom: Probability


class RuleModel(Strict):
    """A rule for masks."""

    triplet: TripletModel
    smallest_part: Area
    gate: ClassProbability

    def rule(self) -> Rule:
        """Return the rule."""
        triplet = Triplet(self.triplet.top, self.triplet.area, self.triplet.bottom)
        return Rule(triplet, self.smallest_part, self.gate)
