"""Schema of an experiment. `load.py` loads it from YAML."""

import re
import sys
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pneumo_dist.config.loss import TERMS
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.schema import FilePath, Mean, Minutes, Name, Schema, Sha256, Std
from pneumo_dist.config.stage import StageConfig
from shards.errors import InputError

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
