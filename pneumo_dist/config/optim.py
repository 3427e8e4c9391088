"""Schema of the optimizer, the learning-rate schedule and the averages of weights."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import Count, Epochs, NotNegative, Positive, Schema, Steps, Unit, Whole


class OptimConfig(Schema):
    """Optimizer, gradient clipping and averages of weights."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer of torch."""
    lr: Positive = 1e-4
    """Initial learning rate of the stage."""
    lr_scale: Literal["none", "linear", "sqrt"] = "none"
    """Scale lr when global_batch differs from lr_batch: none, in proportion, or by the square root of the ratio."""
    lr_batch: Annotated[Count, Unit("films")] | None = None
    """Global batch that lr was chosen for; required unless lr_scale is none."""
    weight_decay: NotNegative = 0.0
    """Weight decay, coupled with the gradient in adam and sgd, decoupled in adamw."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    clip_norm: Positive | None = None
    """Maximum norm of the whole gradient; null does not limit it."""
    clip_value: Positive | None = None
    """Maximum absolute value of each element of the gradient, after clip_norm; null does not limit it."""
    max_bad_steps: Steps = 20
    """Number of consecutive steps with a non-finite gradient after which the run fails."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of an exponential moving average of the weights; null is no average. The average is validated,
    ranked and used to predict."""
    swa_epochs: Epochs | None = None
    """Number of last epochs whose final weights are averaged equally (stochastic weight averaging); null is no average.
    From the first of these epochs on, the average is validated, ranked and used to predict, with batch-norm statistics
    recomputed on the training films."""

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.swa_epochs is not None and self.ema_decay is not None:
            raise ValueError("swa_epochs and ema_decay both average the weights; set one of them to null")
        return self

    @model_validator(mode="after")
    def _scale(self) -> Self:
        if self.lr_scale != "none" and self.lr_batch is None:
            raise ValueError(f"lr_scale {self.lr_scale} needs lr_batch, the global batch that lr was chosen for")
        return self

    def scaled_lr(self, global_batch: int) -> float:
        """Return the learning rate for a global batch."""
        if self.lr_scale == "none" or self.lr_batch is None:
            return self.lr
        ratio = global_batch / self.lr_batch
        return self.lr * (ratio if self.lr_scale == "linear" else ratio**0.5)


class ScheduleConfig(Schema):
    """Schedule of the learning rate over the epochs of a stage."""

    name: Literal["constant", "plateau", "cosine", "restarts", "multistep", "poly"] = "constant"
    """constant, or a scheduler of torch: plateau is ReduceLROnPlateau, cosine CosineAnnealingLR, restarts
    CosineAnnealingWarmRestarts, multistep MultiStepLR and poly PolynomialLR."""
    warmup_steps: Annotated[Whole, Unit("steps")] = 0
    """Number of optimizer steps at the start of the stage over which the learning rate rises linearly from 0 to
    the schedule's."""
    watch: Literal["score", "loss"] = "score"
    """plateau: validation metric that must improve."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """plateau and multistep: factor that reduces the learning rate."""
    patience: Annotated[Whole, Unit("epochs")] = 2
    """plateau: number of epochs without improvement before a reduction."""
    threshold: NotNegative = 1e-7
    """plateau: minimum relative improvement."""
    min_lr: NotNegative = 1e-7
    """plateau, cosine and restarts: minimum learning rate."""
    t_max: Epochs | None = None
    """cosine: number of epochs of half a period; restarts: epochs until the first restart; poly: epochs until the
    learning rate is 0. null is the stage's epochs."""
    t_mult: Count = 1
    """restarts: ratio of each period to the previous one."""
    milestones: tuple[Count, ...] = ()
    """multistep: epochs after which the rate is multiplied by factor."""
    power: Positive = 0.9
    """poly: exponent of the fraction of epochs left; 1 is a linear decay."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name == "multistep" and not self.milestones:
            raise ValueError("multistep needs milestones")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must increase")
        return self
