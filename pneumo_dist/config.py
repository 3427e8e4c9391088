"""The schema of an experiment: one file, an ordered list of stages, every value checked.

`config_file.py` loads it from YAML. All models are frozen and refuse unknown keys.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Schema(BaseModel):
    """Frozen, without extra keys; the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Schema):
    """A segmentation_models_pytorch network with one output map."""

    arch: str = "unet"
    """Architecture, by the library's name: unet, unetplusplus, fpn, deeplabv3plus, …"""
    encoder: str = "resnet34"
    """Encoder, by the library's name: resnet34, se_resnext50_32x4d, senet154, tu-…"""
    encoder_weights: Literal["imagenet"] | None = None
    """Pretrained encoder weights, fetched by the library on rank 0; null starts from scratch."""
    in_channels: Literal[1, 3] = 3
    """Channels the encoder takes; the grey film is repeated for 3."""
    decoder_channels: tuple[int, ...] | None = None
    """Widths of the decoder blocks; null is the library's default."""
    decoder_use_norm: bool | Literal["batchnorm", "identity", "instancenorm"] | None = None
    """Normalisation in the decoder; false is none; null is the library's default."""
    decoder_attention_type: Literal["scse"] | None = None
    """Attention in the decoder blocks."""
    decoder_interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    """Upsampling in the decoder; null is the library's default."""


class LossConfig(Schema):
    """A weighted sum: bce·BCE + dice·(1 − Dice) + focal·Focal, computed in float32."""

    bce: Annotated[float, Field(ge=0)] = 1.0
    """Weight of binary cross-entropy, mean over pixels."""
    dice: Annotated[float, Field(ge=0)] = 1.0
    """Weight of 1 − Dice over the micro-batch as one vector."""
    focal: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the focal loss, no alpha, mean over pixels."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Focusing exponent of the focal loss."""
    dice_epsilon: Positive = 1e-6
    """Added to numerator and denominator of Dice."""

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.bce + self.dice + self.focal <= 0:
            raise ValueError("at least one loss weight must be above 0")
        return self


class OptimConfig(Schema):
    """Optimizer and gradient clipping."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer, torch's own."""
    lr: Positive = 1e-4
    """Learning rate at the stage's start."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay (coupled in adam and sgd, decoupled in adamw)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    clip_norm: Positive | None = None
    """Largest norm of the whole gradient; null does not clip."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 20
    """Steps in a row with a non-finite gradient that end the run."""


class ScheduleConfig(Schema):
    """Learning rate over the epochs of a stage."""

    name: Literal["constant", "plateau", "cosine"] = "constant"
    """constant; plateau = ReduceLROnPlateau on the validation score; cosine = CosineAnnealingLR."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """plateau: factor of a reduction."""
    patience: Annotated[int, Field(ge=0)] = 2
    """plateau: epochs without a gain before a reduction."""
    threshold: Annotated[float, Field(ge=0)] = 1e-7
    """plateau: smallest relative gain."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-7
    """plateau and cosine: lowest learning rate."""
    t_max: Annotated[int, Field(ge=1)] | None = None
    """cosine: epochs of half a period; null is the stage's epochs."""


class ShiftScaleRotate(Schema):
    """Shift, scale and rotate about the centre in one draw."""

    p: Probability = 0.5
    """Probability."""
    shift: Probability = 0.0625
    """Largest shift along each axis, as a share of the side."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of scale: factors from 1 − scale to 1 + scale."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 45.0
    """Largest rotation, degrees."""


class BrightnessContrast(Schema):
    """Brightness and contrast in one draw."""

    p: Probability = 0.3
    """Probability."""
    brightness: Probability = 0.2
    """Largest shift, as a share of full scale."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest change of contrast: factors from 1 − contrast to 1 + contrast, about mid-grey."""


class AugmentConfig(Schema):
    """Augmentation of training films; its parameters depend on (seed, epoch, key) alone."""

    hflip: Probability = 0.5
    """Probability of a horizontal flip."""
    shift_scale_rotate: ShiftScaleRotate = ShiftScaleRotate()
    brightness_contrast: BrightnessContrast = BrightnessContrast()


class DataConfig(Schema):
    """How images reach the network."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means on a scale of 0 to 1 (ImageNet's)."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Channel standard deviations on a scale of 0 to 1 (ImageNet's)."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of the DALI pipeline, per rank."""
    prefetch: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches that the pipeline prepares ahead."""


class StageConfig(Schema):
    """One stage of training; each starts from the best checkpoint of the one before."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Name of the stage and of its folder."""
    image_size: Annotated[int, Field(ge=32, multiple_of=32)] = 512
    """Side of the network's square input, pixels."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Most epochs of the stage."""
    early_stop: Annotated[int, Field(ge=1)] | None = None
    """Epochs without a better score that end the stage; null never."""
    global_batch: Annotated[int, Field(ge=1)] = 8
    """Films per optimizer step, over all ranks."""
    micro_batch: Annotated[int, Field(ge=1)] = 2
    """Films per rank and forward pass."""
    eval_batch: Annotated[int, Field(ge=1)] = 8
    """Films per forward pass of validation and prediction."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of positive films in an epoch; null takes every film once."""
    always_train: bool = False
    """Also train on the films marked always_train."""
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    top_k: Annotated[int, Field(ge=1)] = 3
    """Checkpoints kept by validation score."""
    save_every: Annotated[int, Field(ge=1)] = 500
    """Optimizer steps between checkpoints within an epoch."""


class Experiment(Schema):
    """Everything that decides a training run but the fold, the shards and the machine."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Name of the experiment and of its folder."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of order, augmentation, initial weights and dropout."""
    amp: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    """Autocast type: auto is bf16 where the hardware has it, else fp16 with a scaler on GPU, float32 on CPU."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    """Ordered stages; a stage's keys at the file's top level are defaults for all of them."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ: {', '.join(names)}")
        return self


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
        f"stage {stage.name}: global_batch {stage.global_batch} is no multiple of {world} ranks x micro_batch "
        f"{stage.micro_batch}; set global_batch: {near}{other}"
    )
