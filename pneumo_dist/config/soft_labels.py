"""Schema of what a stage learns from maps of other networks, and from films without labels."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from pneumo_dist.config.schema import Positive, Probability, Schema, Unit, Whole

Share = Annotated[float, Field(gt=0, lt=1)]
Source = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)?$", max_length=401)]


class DistillationConfig(Schema):
    """Maps of other networks that are mixed into the labels of training films (Hinton et al., arXiv:1503.02531)."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Annotated[Source, Field(alias="from")]
    """EXPERIMENT/STAGE or ENSEMBLE whose maps are mixed into the labels; `predict --split train` writes them for each
    fold, by that fold's networks."""
    share: Probability = 0.5
    """Share of the map in a film's label; the rest is its mask."""


class MeanTeacherConfig(Schema):
    """Consistency with the moving average of the weights on other views of the same films."""

    weight: Positive = 1.0
    """Weight of the mean squared difference of the two probabilities, beside the loss of films with labels."""
    ramp_up_epochs: Annotated[Whole, Unit("epochs")] = 5
    """Number of first epochs over which the weight rises, as exp(−5(1 − t)²) for t from 0 to 1."""


class UnlabelledConfig(Schema):
    """What a stage learns from the split `unlabelled`: pseudo-labels, consistency with a mean teacher, or both."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Annotated[Source | None, Field(alias="from")] = None
    """EXPERIMENT/STAGE or ENSEMBLE whose maps are the labels of these films; `predict --split unlabelled` writes them.
    null is no pseudo-labels."""
    share: Share = 0.5
    """Share of these films in each micro-batch; share x micro_batch must be a whole number. The epoch still has every
    film with a label, so it has more steps."""
    mean_teacher: MeanTeacherConfig | None = None
    """Consistency with the moving average of the weights, which needs optim.ema_decay; null is none."""

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.source is None and self.mean_teacher is None:
            raise ValueError("give from (pseudo-labels), mean_teacher, or both")
        return self
