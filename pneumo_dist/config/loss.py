"""The schema of the loss: a weighted sum of terms, computed in float32."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import LARGEST, NotNegative, Schema

TERMS = ("bce", "dice", "focal", "lovasz", "classification")
"""The weights of LossConfig."""


class LossConfig(Schema):
    """A weighted sum of loss terms; a weight of 0 leaves its term out."""

    bce: NotNegative = 1.0
    """Weight of binary cross-entropy, mean over pixels."""
    dice: NotNegative = 1.0
    """Weight of the Dice loss."""
    focal: NotNegative = 1.0
    """Weight of the focal loss, no alpha, mean over pixels."""
    lovasz: NotNegative = 0.0
    """Weight of the symmetric Lovász hinge, mean over films."""
    classification: NotNegative = 0.0
    """Weight of binary cross-entropy of the classification head: does the film's mask hold any pixel?"""
    focal_gamma: NotNegative = 2.0
    """Focusing exponent of the focal loss."""
    dice_over: Literal["batch", "image"] = "batch"
    """batch: Dice of the micro-batch as one vector; image: of each film, averaged."""
    dice_form: Literal["linear", "log"] = "linear"
    """linear: 1 − Dice; log: −log Dice."""
    dice_epsilon: Annotated[float, Field(ge=1e-12, le=LARGEST)] = 1e-6
    """Added to numerator and denominator of Dice."""
    dice_scope: Literal["rank", "global"] = "rank"
    """rank: Dice of the rank's own micro-batch; global, in training: of all ranks' micro-batches as one vector."""

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if sum(getattr(self, name) for name in TERMS) <= 0:
            raise ValueError("at least one loss weight must be above 0")
        return self

    @model_validator(mode="after")
    def _one_vector(self) -> Self:
        if self.dice_scope == "global" and self.dice_over == "image":
            raise ValueError("dice_scope: global needs dice_over: batch; Dice of a film is the same in either scope")
        return self
