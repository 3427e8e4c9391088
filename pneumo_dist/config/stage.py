"""Schema of a stage of training, and how its batch is divided among the ranks."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.loss import LossConfig
from pneumo_dist.config.optim import OptimConfig, ScheduleConfig
from pneumo_dist.config.schema import Batch, Count, Epochs, Minutes, Name, Schema, Side, Steps, Unit, Whole
from pneumo_dist.config.soft_labels import DistillationConfig, UnlabelledConfig


class StageConfig(Schema):
    """One stage of training. Each stage starts from the best checkpoint of an earlier one."""

    name: Name
    """Name of the stage and of its folder."""
    image_size: Side = 512
    """Side of the network's square input in training, in pixels. Validation and prediction use the same, unless
    eval_image_size is set."""
    eval_image_size: Side | None = None
    """Side of the whole film in validation and prediction, in pixels. Training then takes crops of image_size from the
    film at this side, each at a random position. null: training, validation and prediction use the whole film at
    image_size."""
    epochs: Epochs = 10
    """Maximum number of epochs."""
    early_stop: Epochs | None = None
    """Number of epochs without a better score after which the stage ends; null disables early stopping. With init_from
    best_so_far, a better score is one above that of the checkpoint that the stage started from."""
    global_batch: Annotated[int, Field(ge=1, le=2**20), Unit("films")] = 8
    """Number of films per optimizer step, over all ranks."""
    micro_batch: Batch = 2
    """Number of films per rank and forward pass; gradients accumulate until global_batch is reached."""
    eval_batch: Batch = 8
    """Number of films per forward pass in validation and prediction."""
    sample_rate: Annotated[float, Field(ge=0.001, le=1)] | None = None
    """Fraction of positive films among those drawn for an epoch; 1 draws only positives, null uses every film once."""
    sample_rate_end: Annotated[float, Field(ge=0.001, le=1)] | None = None
    """Fraction of positive films in the last epoch; null keeps sample_rate throughout."""
    sample_rate_schedule: Literal["linear", "cosine"] = "linear"
    """How the fraction changes from sample_rate to sample_rate_end over the epochs of the stage."""
    size_classes: Annotated[int, Field(ge=2, le=16)] | None = None
    """Number of classes of mask area, equally wide in log area, from which positives are drawn in equal numbers; null
    draws each positive once per epoch."""
    always_train: bool = False
    """Also train on the films marked always_train."""
    distillation: DistillationConfig | None = None
    """Maps of other networks to learn from, beside the masks; null is masks alone."""
    unlabelled: UnlabelledConfig | None = None
    """What to learn from films without labels; null is nothing."""
    freeze_encoder_epochs: Annotated[Whole, Unit("epochs")] = 0
    """Number of first epochs in which the encoder, including its batch norms, is frozen."""
    freeze_batch_norm: bool = False
    """Keep the statistics and the weights of all batch norms as they are when the stage starts, for micro-batches that
    are too small to estimate statistics."""
    init_from: Literal["previous", "best_so_far"] = "previous"
    """Checkpoint that the stage starts from: the best of the previous stage, or the best of all earlier stages, which
    leaves out a stage without gain. The checkpoint that `init` names counts as that of an earlier stage."""
    repeat: Literal["until_no_gain"] | None = None
    """until_no_gain: repeat the stage from its best checkpoint, as NAME-2, NAME-3, …, while it scores higher than the
    checkpoint that it started from; null runs it once."""
    optim: OptimConfig = OptimConfig()
    """Optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""
    loss: LossConfig = LossConfig()
    """Loss."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of training films."""
    top_k: Annotated[Count, Unit("files")] = 3
    """Number of checkpoints to keep, those with the best validation scores."""
    save_every: Steps | None = None
    """Number of optimizer steps between checkpoints within an epoch; null saves only by save_minutes."""
    save_minutes: Minutes = 10.0
    """Maximum minutes between checkpoints."""

    @property
    def film_size(self) -> int:
        """Side of a whole film in validation and prediction, in pixels."""
        return self.image_size if self.eval_image_size is None else self.eval_image_size

    @model_validator(mode="after")
    def _crop_of_film(self) -> Self:
        if self.film_size < self.image_size:
            raise ValueError(
                f"eval_image_size {self.eval_image_size} is less than image_size {self.image_size}, but crops are no "
                "larger than the film; raise it, or set it to null"
            )
        return self

    @model_validator(mode="after")
    def _sampling(self) -> Self:
        if self.sample_rate is None and (self.sample_rate_end is not None or self.size_classes is not None):
            raise ValueError("sample_rate_end and size_classes need a sample_rate")
        return self

    @property
    def has_soft_labels(self) -> bool:
        """Whether films have targets between 0 and 1, or none at all."""
        return self.distillation is not None or self.unlabelled is not None

    @property
    def unlabelled_films(self) -> int:
        """Number of films without labels in each micro-batch."""
        return 0 if self.unlabelled is None else round(self.unlabelled.share * self.micro_batch)

    @property
    def labelled_batch(self) -> int:
        """Number of films with labels per optimizer step, over all ranks."""
        return self.global_batch - self.global_batch * self.unlabelled_films // self.micro_batch

    @model_validator(mode="after")
    def _without_labels(self) -> Self:
        if self.unlabelled is None:
            return self
        count = self.unlabelled.share * self.micro_batch
        if abs(count - round(count)) > 1e-9 or not 0 < round(count) < self.micro_batch:
            raise ValueError(
                f"unlabelled.share {self.unlabelled.share:g} of micro_batch {self.micro_batch} is not a whole number "
                "of films that leaves some with labels; change one of them"
            )
        if self.unlabelled.mean_teacher is not None and self.optim.ema_decay is None:
            raise ValueError("unlabelled.mean_teacher needs optim.ema_decay: the teacher is the moving average")
        return self

    @model_validator(mode="after")
    def _last_epochs(self) -> Self:
        averaged = self.optim.swa_epochs
        if averaged is None:
            return self
        if self.early_stop is not None:
            raise ValueError("optim.swa_epochs needs a fixed number of epochs; set early_stop: null")
        trainable = self.epochs - self.freeze_encoder_epochs
        if averaged > trainable:
            raise ValueError(
                f"optim.swa_epochs {averaged} is more than the {trainable} epochs in which the encoder is not frozen"
            )
        return self


class BatchError(ValueError):
    """A batch that cannot be divided among the ranks."""


def accumulation(stage: StageConfig, world: int) -> int:
    """Return the number of micro-steps per optimizer step.

    Raises BatchError, naming valid values, if the ranks cannot divide the batch.
    """
    unit = world * stage.micro_batch
    if stage.global_batch % unit == 0:
        return stage.global_batch // unit
    below = stage.global_batch // unit * unit
    nearest = " or ".join(str(value) for value in (below, below + unit) if value)
    divisors = [m for m in range(1, stage.global_batch + 1) if stage.global_batch % (m * world) == 0]
    micro = min(divisors, key=lambda m: abs(m - stage.micro_batch), default=None)
    other = f", or micro_batch: {micro}" if micro else ""
    raise BatchError(
        f"stage {stage.name}: global_batch {stage.global_batch} is not a multiple of {world} ranks x micro_batch "
        f"{stage.micro_batch}; set global_batch: {nearest}{other}"
    )
