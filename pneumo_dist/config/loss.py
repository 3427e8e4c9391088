"""Schema of the loss."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import LARGEST, NotNegative, Positive, Schema

TERMS = ("bce", "dice", "focal", "lovasz", "classification")
"""The weights of LossConfig."""


class LossConfig(Schema):
    """A weighted sum of loss terms, computed in float32. A weight of 0 excludes its term."""

    bce: NotNegative = 1.0
    """Weight of binary cross-entropy, averaged over pixels."""
    dice: NotNegative = 1.0
    """Weight of the Dice loss."""
    focal: NotNegative = 1.0
    """Weight of the focal loss without alpha, averaged over pixels."""
    lovasz: NotNegative = 0.0
    """Weight of the symmetric Lovász hinge loss, averaged over films; a surrogate of IoU."""
    classification: NotNegative = 0.0
    """Weight of the classification head's binary cross-entropy; a film is positive if its mask has a pixel."""
    bce_positive_weight: Positive = 1.0
    """Weight of the pixels of pneumothoraces in binary cross-entropy, relative to all other pixels."""
    focal_gamma: NotNegative = 2.0
    """Exponent gamma of the focal loss; a larger one reduces the loss of pixels that are already right."""
    dice_over: Literal["batch", "image"] = "batch"
    """batch: compute Dice over the whole micro-batch; image: compute it per film and average."""
    dice_films: Literal["all", "positive"] = "all"
    """Films that enter Dice: all, or only those whose mask has a pixel. A micro-batch without such a film has a Dice
    loss of 0."""
    dice_form: Literal["linear", "log"] = "linear"
    """Form of the Dice loss. linear: 1 − Dice; log: −log Dice."""
    dice_epsilon: Annotated[float, Field(ge=1e-12, le=LARGEST)] = 1e-6
    """Smoothing term, added to numerator and denominator of Dice."""
    dice_scope: Literal["rank", "global"] = "rank"
    """rank: compute Dice over each rank's micro-batch; global: in training, compute it over the micro-batches of all
    ranks as one vector."""

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if sum(getattr(self, name) for name in TERMS) <= 0:
            raise ValueError("at least one loss weight must be above 0")
        return self

    @model_validator(mode="after")
    def _one_vector(self) -> Self:
        if self.dice_scope == "global" and self.dice_over == "image":
            raise ValueError(
                "dice_scope: global needs dice_over: batch, because the Dice of a film is the same in either scope"
            )
        return self
