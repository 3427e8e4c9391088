"""The rows of benchmarks.ablation: benchmarks/baseline.yaml with one change, and with those that helped together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """A change to the baseline.

    Attributes:
        name: Its name, also of its runs.
        text: What changes, for the table.
        settings: Values of `--set`.
        stages: Stages in the place of the baseline's.
    """

    name: str
    text: str
    settings: tuple[str, ...] = ()
    stages: tuple[Mapping[str, Any], ...] = ()


NONE = Change("demo", "none: the demo until 2026-11-27")

_STAGE = {"sample_rate": 0.7, "schedule": {"name": "cosine", "min_lr": 1e-5}}
_SMALL_FIRST = (
    {**_STAGE, "name": "small", "image_size": 64, "epochs": 20, "schedule": {"name": "constant"}, "top_k": 1},
    {**_STAGE, "name": "main", "epochs": 15},
)
# Group norm helped most alone. In half of the epochs it needs a higher rate, and that a warm-up.
_FAST = ("model.norm=group_ws", "optim.lr=0.003", "schedule.warmup_steps=10", "epochs=15")
SHIPPED = Change(
    *("fast-both", "the same with `loss.dice_films: positive` and without focal: the demo since"),
    (*_FAST, "loss.focal=0", "loss.dice_films=positive"),
)

CHANGES = (
    NONE,
    Change("adamw", "optimizer: AdamW, weight decay 0.01", ("optim.name=adamw", "optim.weight_decay=0.01")),
    Change("sgd", "optimizer: SGD with momentum, rate 0.1", ("optim.name=sgd", "optim.lr=0.1")),
    Change("rate-3e-3", "rate 3e-3", ("optim.lr=0.003",)),
    Change("constant", "schedule: constant rate", ("schedule.name=constant",)),
    Change("poly", "schedule: polynomial", ("schedule.name=poly",)),
    Change("warm-up", "warm-up of 15 steps, then rate 3e-3", ("optim.lr=0.003", "schedule.warmup_steps=15")),
    Change("ema", "moving average of the weights, decay 0.9", ("optim.ema_decay=0.9",)),
    Change("batch-8", "batch of 8", ("global_batch=8", "micro_batch=4")),
    Change("batch-4", "batch of 4", ("global_batch=4", "micro_batch=2")),
    Change("small-first", "20 epochs at 64 px, then 15 at 128 px", stages=_SMALL_FIRST),
    Change("narrow", "decoder half as wide", ("model.decoder_channels=[64, 32, 16, 8, 8]",)),
    Change("fpn", "decoder: FPN", ("model.arch=fpn", "model.decoder_channels=null")),
    Change("group-norm", "`model.norm: group_ws`", ("model.norm=group_ws",)),
    Change("dice-positive", "`loss.dice_films: positive`", ("loss.dice_films=positive",)),
    Change("without-focal", "loss without focal", ("loss.focal=0",)),
    Change("dice-3", "loss with three times the Dice", ("loss.dice=3",)),
    Change("every-film", "no sampler: every film once in an epoch", ("sample_rate=null", "epochs=22")),
    Change("sampler-1", "sampler: positive films alone", ("sample_rate=1", "epochs=43")),
    Change("fused", "`runtime.fused`: one kernel for the optimizer", ("runtime.fused=true",)),
    Change("float32", "`amp: float32` instead of bfloat16", ("amp=float32",)),
    Change("channels-last", "`data.channels_last`", ("data.channels_last=true",)),
    Change("flips", "augmentation: flips alone", ("augment.shift_scale_rotate.p=0", "augment.tone.p=0")),
    Change("fast", "15 epochs of group norm at rate 3e-3 after 10 steps of warm-up", _FAST),
    Change("fast-dice-positive", "the same with `loss.dice_films: positive`", (*_FAST, "loss.dice_films=positive")),
    Change("fast-without-focal", "the same without focal", (*_FAST, "loss.focal=0")),
    SHIPPED,
    Change(
        *("fast-batch-8", "12 epochs of the same with a batch of 8, 20 steps of warm-up"),
        (*_FAST, "epochs=12", "schedule.warmup_steps=20", "global_batch=8", "micro_batch=4"),
    ),
)
