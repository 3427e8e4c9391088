"""The schema of an experiment: one file, an ordered list of stages, every value checked.

`load.py` loads it from YAML. All models are frozen and refuse unknown keys.
"""

import re
import sys
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.loss import LossConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.optim import OptimConfig, ScheduleConfig
from pneumo_dist.config.schema import (
    Batch,
    Count,
    FilePath,
    Mean,
    Name,
    Schema,
    Side,
    Std,
    Whole,
)
from shards.errors import InputError

# At most a year.
Minutes = Annotated[float, Field(gt=0, le=525_600)]


# The torch loader was called host up to 0.4.0; configs and checkpoints with that name still load.
OLD_LOADER = "host"
OLD_LOADER_NAME = BeforeValidator(lambda value: "torch" if value == OLD_LOADER else value)


class DataConfig(Schema):
    """How images reach the network."""

    mean: Mean = (0.485, 0.456, 0.406)
    """Channel means on a scale of 0 to 1 (ImageNet's)."""
    std: Std = (0.229, 0.224, 0.225)
    """Channel standard deviations on a scale of 0 to 1 (ImageNet's)."""
    loader: Annotated[Literal["dali", "torch", "synthetic"], OLD_LOADER_NAME] = (
        "dali" if sys.platform == "linux" else "torch"
    )
    """dali: the DALI graph; torch: torch's DataLoader with OpenCV; synthetic: one ready batch again and again, for
    measuring computation alone."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of the DALI pipeline, or worker processes of the torch loader, per rank."""
    prefetch: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches that the pipeline, or each worker process, prepares ahead."""
    channels_last: bool = False
    """Give images and network the memory format channels last."""
    image_dtype: Literal["float32", "float16"] = "float32"
    """What the loader hands over; float16 halves its bytes at a rounding of a twentieth of a grey level."""
    cache_dir: FilePath | None = None
    """Folder on a node's own disk to copy a fold's shards to before training; null reads them where they are."""


class StageConfig(Schema):
    """One stage of training; each starts from the best checkpoint of the one before."""

    name: Name
    """Name of the stage and of its folder."""
    image_size: Side = 512
    """Side of the network's square input, pixels."""
    epochs: Count = 10
    """Most epochs of the stage."""
    early_stop: Count | None = None
    """Epochs without a better score that end the stage; null never."""
    global_batch: Annotated[int, Field(ge=1, le=2**20)] = 8
    """Films per optimizer step, over all ranks."""
    micro_batch: Batch = 2
    """Films per rank and forward pass."""
    eval_batch: Batch = 8
    """Films per forward pass of validation and prediction."""
    sample_rate: Annotated[float, Field(ge=0.001, le=1)] | None = None
    """Share of positive films in an epoch's draw; 1 takes positives only, null every film once."""
    sample_rate_end: Annotated[float, Field(ge=0.001, le=1)] | None = None
    """Share in the last epoch; null keeps sample_rate throughout."""
    sample_rate_schedule: Literal["linear", "cosine"] = "linear"
    """How the share moves from sample_rate to sample_rate_end over the stage's epochs."""
    size_classes: Annotated[int, Field(ge=2, le=16)] | None = None
    """Draw positives in equal numbers from so many classes of mask area, equally wide in log area; null draws each
    positive once an epoch."""
    always_train: bool = False
    """Also train on the films marked always_train."""
    freeze_encoder_epochs: Whole = 0
    """First epochs in which the encoder does not train, its batch norms included."""
    repeat: Literal["until_no_gain"] | None = None
    """until_no_gain: run the stage again from its best checkpoint, as NAME-2, NAME-3, …, while the score rises."""
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    top_k: Count = 3
    """Checkpoints kept by validation score."""
    save_every: Count | None = None
    """Optimizer steps between checkpoints within an epoch; null saves by the clock alone."""
    save_minutes: Minutes = 10.0
    """Most minutes between checkpoints."""

    @model_validator(mode="after")
    def _sampling(self) -> Self:
        if self.sample_rate is None and (self.sample_rate_end is not None or self.size_classes is not None):
            raise ValueError("sample_rate_end and size_classes need a sample_rate")
        return self

    @model_validator(mode="after")
    def _last_epochs(self) -> Self:
        wanted = self.optim.swa_epochs
        if wanted is None:
            return self
        if self.early_stop is not None:
            raise ValueError("optim.swa_epochs needs to know the last epochs; set early_stop: null")
        if wanted > self.epochs - self.freeze_encoder_epochs:
            raise ValueError(
                f"optim.swa_epochs {wanted} are more than the {self.epochs} epochs without the "
                f"{self.freeze_encoder_epochs} in which the encoder is frozen"
            )
        return self


class InitConfig(Schema):
    """Another experiment whose best checkpoint of the same fold the first stage starts from."""

    experiment: Name
    """Its name, which is its folder beside this experiment's."""
    stage: Name
    """Its stage."""


class RuntimeConfig(Schema):
    """How the machine computes; results differ in rounding only."""

    compile: bool = False
    """Compile the network (torch.compile)."""
    tf32: bool = True
    """Let float32 convolutions and products use TF32 on GPUs."""
    fused: bool = False
    """Use the optimizer's fused kernels."""
    deterministic: bool = False
    """Refuse operations whose result depends on timing."""
    start_minutes: Minutes = 30.0
    """Minutes without progress before a stage's first step (loading, compiling) that end the run."""
    watchdog_minutes: Minutes = 30.0
    """Minutes without progress of any rank in a step, a validation, a save that end the run; the slow rank is named."""


class Experiment(Schema):
    """Everything that decides a training run but the fold, the shards and the machine."""

    name: Name
    """Name of the experiment and of its folder."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of order, augmentation, initial weights and dropout."""
    amp: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    """Autocast type: auto is bf16 where the hardware has it, else fp16 with a scaler on GPU, float32 on CPU."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    init: InitConfig | None = None
    """Where the first stage starts from; null is new weights."""
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1, max_length=1000)]
    """Ordered stages; a stage's keys at the file's top level are defaults for all of them."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ: {', '.join(names)}")
        for stage in self.stages:
            taken = [name for name in names if re.fullmatch(rf"{re.escape(stage.name)}-\d+", name)]
            if stage.repeat and taken:
                raise ValueError(f"stage {taken[0]}: the repetitions of {stage.name} take such names; give another")
        return self

    @model_validator(mode="after")
    def _head(self) -> Self:
        for stage in self.stages:
            if (self.model.classification is not None) != (stage.loss.classification > 0):
                raise ValueError(
                    f"stage {stage.name}: model.classification and loss.classification above 0 go together; a head "
                    "without a loss would not train"
                )
        return self

    def stage(self, name: str) -> StageConfig:
        """Return a stage by its name. Raises InputError for a name that is none."""
        found = [stage for stage in self.stages if stage.name == name]
        if not found:
            names = ", ".join(stage.name for stage in self.stages)
            raise InputError(f"--stage {name}: experiment {self.name} has the stages {names}")
        return found[0]


class BatchError(ValueError):
    """A batch that cannot be divided over the ranks."""


def accumulation(stage: StageConfig, world: int) -> int:
    """Return the micro-steps per optimizer step. Raises BatchError, naming valid values, where none divides."""
    unit = world * stage.micro_batch
    if stage.global_batch % unit == 0:
        return stage.global_batch // unit
    below = stage.global_batch // unit * unit
    near = " or ".join(str(value) for value in (below, below + unit) if value)
    divisors = [m for m in range(1, stage.global_batch + 1) if stage.global_batch % (m * world) == 0]
    micro = min(divisors, key=lambda m: abs(m - stage.micro_batch), default=None)
    other = f", or micro_batch: {micro}" if micro else ""
    raise BatchError(
        f"stage {stage.name}: global_batch {stage.global_batch} is not a multiple of {world} ranks x micro_batch "
        f"{stage.micro_batch}; set global_batch: {near}{other}"
    )
