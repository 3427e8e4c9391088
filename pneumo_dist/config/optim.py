"""The schema of optimisation: optimizer, learning-rate schedule, averages of weights."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import Count, NotNegative, Positive, Schema, Whole


class OptimConfig(Schema):
    """Optimizer and gradient clipping."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer, torch's own."""
    lr: Positive = 1e-4
    """Learning rate at the stage's start."""
    lr_scale: Literal["none", "linear", "sqrt"] = "none"
    """How lr follows global_batch from lr_batch: not at all, in proportion, or by the square root."""
    lr_batch: Count | None = None
    """The global batch that lr is stated for; needed unless lr_scale is none."""
    weight_decay: NotNegative = 0.0
    """Weight decay (coupled in adam and sgd, decoupled in adamw)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    clip_norm: Positive | None = None
    """Largest norm of the whole gradient; null does not clip."""
    max_bad_steps: Count = 20
    """Steps in a row with a non-finite gradient that end the run."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay a step of the exponential moving average of the weights, which then is validated, ranked and predicts."""

    swa_epochs: Count | None = None
    """Last epochs of the stage whose final weights are averaged in equal parts (stochastic weight averaging). From the
    first of them on the average, with batch-norm statistics measured anew on the training films, takes the place that
    ema_decay's has."""

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.swa_epochs is not None and self.ema_decay is not None:
            raise ValueError("swa_epochs and ema_decay are two averages of the weights; set one of them to null")
        return self

    @model_validator(mode="after")
    def _scale(self) -> Self:
        if self.lr_scale != "none" and self.lr_batch is None:
            raise ValueError(f"lr_scale {self.lr_scale} needs lr_batch, the global batch that lr is stated for")
        return self

    def scaled_lr(self, global_batch: int) -> float:
        """Return the learning rate for a global batch."""
        if self.lr_scale == "none" or self.lr_batch is None:
            return self.lr
        ratio = global_batch / self.lr_batch
        return self.lr * (ratio if self.lr_scale == "linear" else ratio**0.5)


class ScheduleConfig(Schema):
    """Learning rate over the epochs of a stage."""

    name: Literal["constant", "plateau", "cosine", "restarts", "multistep", "poly"] = "constant"
    """constant; plateau = ReduceLROnPlateau; cosine = CosineAnnealingLR; restarts = CosineAnnealingWarmRestarts;
    multistep = MultiStepLR; poly = PolynomialLR."""
    warmup_steps: Whole = 0
    """Optimizer steps at the stage's start over which the rate rises linearly from 0 to the schedule's."""
    watch: Literal["score", "loss"] = "score"
    """plateau: whether the validation score or the validation loss must gain."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """plateau and multistep: factor of a reduction."""
    patience: Whole = 2
    """plateau: epochs without a gain before a reduction."""
    threshold: NotNegative = 1e-7
    """plateau: smallest relative gain."""
    min_lr: NotNegative = 1e-7
    """plateau, cosine and restarts: lowest learning rate."""
    t_max: Count | None = None
    """cosine: epochs of half a period; null is the stage's epochs. restarts: epochs to the first restart; poly: epochs
    to the end."""
    t_mult: Count = 1
    """restarts: factor of each period to the one before."""
    milestones: tuple[Count, ...] = ()
    """multistep: epochs after which the rate is multiplied by factor."""
    power: Positive = 0.9
    """poly: exponent of the share of epochs left."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name == "multistep" and not self.milestones:
            raise ValueError("multistep needs milestones")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones rise")
        return self
