"""Schema of an experiment. `load.py` loads it from YAML."""

import re
import sys
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.loss import TERMS, LossConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.optim import OptimConfig, ScheduleConfig
from pneumo_dist.config.schema import (
    Batch,
    Count,
    Epochs,
    FilePath,
    Mean,
    Name,
    Schema,
    Sha256,
    Side,
    Std,
    Steps,
    Unit,
    Whole,
)
from pneumo_dist.config.soft_labels import DistillationConfig, UnlabelledConfig
from shards.errors import InputError

# A year at most.
Minutes = Annotated[float, Field(gt=0, le=525_600), Unit("min")]


# Name of the torch loader up to version 0.4.0. Configs and checkpoints with that name still load.
OLD_LOADER = "host"
OLD_LOADER_NAME = BeforeValidator(lambda value: "torch" if value == OLD_LOADER else value)


class DataConfig(Schema):
    """Loading and normalisation of images."""

    mean: Mean = (0.485, 0.456, 0.406)
    """Mean of each channel, on a scale of 0 to 1; the default is ImageNet's."""
    std: Std = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, on a scale of 0 to 1; the default is ImageNet's."""
    loader: Annotated[Literal["dali", "torch", "synthetic"], OLD_LOADER_NAME] = (
        "dali" if sys.platform == "linux" else "torch"
    )
    """dali: a DALI pipeline; torch: torch's DataLoader with OpenCV; synthetic: the same batch every time, to measure
    computation without loading."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of CPU threads of the DALI pipeline, or of worker processes of the torch loader, per rank; null takes the
    rank's CPUs but one, at most 8."""
    prefetch: Annotated[int, Field(ge=1, le=16)] = 2
    """Number of batches that the DALI pipeline, or each worker process, prepares in advance."""
    channels_last: bool = False
    """Use the memory format channels_last for images and network, which is often faster on GPUs."""
    image_dtype: Literal["float32", "float16"] = "float32"
    """Type of the loaded images; float16 halves their memory and rounds by a twentieth of a grey level."""
    cache_dir: FilePath | None = None
    """Folder on the node's local disk to which a fold's shards are copied before training, e.g. for a slow shared file
    system; null reads them from the shards folder."""


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


class InitConfig(Schema):
    """Start of the first stage: the best checkpoint of another experiment in the same fold, or a file of weights."""

    experiment: Name | None = None
    """Name of the other experiment, which is also its folder below --runs."""
    stage: Name | None = None
    """Stage of the other experiment."""
    file: FilePath | None = None
    """File with the weights of the whole network, as safetensors or of torch.save, for example a published checkpoint;
    prefixes of the names, such as module., are removed."""
    sha256: Sha256 | None = None
    """Expected SHA-256 of the file, in hexadecimal."""
    trained_on: Literal["unknown", "this_fold", "other_films"] = "unknown"
    """Films that the file's network was trained on: this_fold for the training films of the same fold only, other_films
    for none of these films. With unknown, out-of-fold and holdout predictions are refused."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.experiment is None) != (self.stage is None) or (self.file is None) != (self.sha256 is None):
            raise ValueError("experiment and stage must be set together, and so must file and sha256")
        if (self.experiment is None) == (self.file is None):
            raise ValueError("set either experiment and stage, or file and sha256")
        if self.file is None and self.trained_on != "unknown":
            raise ValueError("trained_on is about file; remove it, because checkpoints record their films")
        return self


class RuntimeConfig(Schema):
    """How the machine computes. Results differ only by rounding."""

    compile: bool = False
    """Compile the network with torch.compile."""
    tf32: bool = True
    """Allow TF32 in float32 convolutions and matrix products on GPUs."""
    fused: bool | None = None
    """Use the fused kernels of the optimizer; null means on GPUs only."""
    deterministic: bool = False
    """Use only deterministic operations, and fail on one that has no deterministic version."""
    start_minutes: Minutes = 30.0
    """Maximum minutes without progress before a stage's first step, while data loads and the network compiles; the run
    is then ended."""
    watchdog_minutes: Minutes = 30.0
    """Maximum minutes without progress of a rank in a step, a validation or a save; the run is then ended and the slow
    rank is named."""


class Experiment(Schema):
    """Everything that determines a training run, except the fold, the shards and the machine."""

    name: Name
    """Name of the experiment and of its folder below --runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the film order, augmentation, initial weights and dropout."""
    amp: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    """Autocast type; auto is bf16 on hardware that supports it, and otherwise fp16 with a gradient scaler on GPUs and
    float32 on CPUs."""
    model: ModelConfig = ModelConfig()
    """Network."""
    data: DataConfig = DataConfig()
    """Loading and normalisation."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Settings of the machine."""
    init: InitConfig | None = None
    """Weights that the first stage starts from; null is the model's initial weights."""
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1, max_length=1000)]
    """Stages, in order. A stage's key at the top level of the file is the default of all stages."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must be unique: {', '.join(names)}")
        for stage in self.stages:
            taken = [name for name in names if re.fullmatch(rf"{re.escape(stage.name)}-\d+", name)]
            if stage.repeat and taken:
                raise ValueError(f"stage {taken[0]}: this name is reserved for repetitions of {stage.name}; rename it")
        return self

    @model_validator(mode="after")
    def _head(self) -> Self:
        for stage in self.stages:
            if (self.model.classification is not None) != (stage.loss.classification > 0):
                raise ValueError(
                    f"stage {stage.name}: set model.classification and loss.classification above 0 together, because "
                    "a head without a loss does not train"
                )
            of_maps = [name for name in TERMS if name != "classification" and getattr(stage.loss, name) > 0]
            if self.model.is_classifier and of_maps:
                raise ValueError(
                    f"stage {stage.name}: arch classifier has no map for loss.{' and loss.'.join(of_maps)}; set "
                    f"{', '.join(f'{name}: 0' for name in of_maps)}"
                )
            if not self.model.is_classifier and not of_maps:
                raise ValueError(
                    f"stage {stage.name}: loss.classification alone does not train the map of arch {self.model.arch}; "
                    "set another loss above 0, or arch: classifier"
                )
        return self

    @model_validator(mode="after")
    def _labels(self) -> Self:
        for stage in self.stages:
            soft = [name for name in ("distillation", "unlabelled") if getattr(stage, name) is not None]
            if soft and self.model.is_classifier:
                raise ValueError(f"stage {stage.name}: {soft[0]} is for networks with a map; set it to null")
        return self

    @model_validator(mode="after")
    def _batch_norms(self) -> Self:
        for stage in self.stages:
            if stage.freeze_batch_norm and self.model.norm != "batch":
                raise ValueError(
                    f"stage {stage.name}: freeze_batch_norm is about batch norms, which model.norm: {self.model.norm} "
                    "replaces; set it to false"
                )
        return self

    def stage(self, name: str) -> StageConfig:
        """Return a stage by its name. Raises InputError for an unknown name."""
        by_name = {stage.name: stage for stage in self.stages}
        if name not in by_name:
            raise InputError(f"--stage {name}: experiment {self.name} has the stages {', '.join(by_name)}")
        return by_name[name]


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
