"""Optimizers, learning-rate schedules and the moving average of weights."""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, assert_never

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pneumo_dist.config.experiment import StageConfig
from pneumo_dist.config.optim import ScheduleConfig

Schedule = LRScheduler | ReduceLROnPlateau


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], stage: StageConfig, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the configured optimizer over `parameters`, its learning rate scaled to the global batch."""
    config = stage.optim
    lr = config.scaled_lr(stage.global_batch)
    options: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay, "fused": fused or None}
    match config.name:
        case "adam":
            return torch.optim.Adam(parameters, **options)
        case "adamw":
            return torch.optim.AdamW(parameters, **options)
        case "sgd":
            return torch.optim.SGD(parameters, momentum=config.momentum, **options)
        case _:
            assert_never(config.name)


def make_schedule(optimizer: torch.optim.Optimizer, stage: StageConfig) -> Schedule:
    """Return the configured schedule. It steps once per epoch, after validation."""
    config = stage.schedule
    epochs = config.t_max or stage.epochs
    match config.name:
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=1)
        case "plateau":
            return ReduceLROnPlateau(
                optimizer,
                mode="max" if config.watch == "score" else "min",
                factor=config.factor,
                patience=config.patience,
                threshold=config.threshold,
                min_lr=config.min_lr,
            )
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=config.min_lr)
        case "restarts":
            return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, epochs, config.t_mult, config.min_lr)
        case "multistep":
            return lr_scheduler.MultiStepLR(optimizer, list(config.milestones), config.factor)
        case "poly":
            return lr_scheduler.PolynomialLR(optimizer, total_iters=epochs, power=config.power)
        case _:
            assert_never(config.name)


def step_schedule(schedule: Schedule, config: ScheduleConfig, score: float, loss: float) -> None:
    """Advance a schedule by one epoch, given its validation score and loss."""
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(score if config.watch == "score" else loss)
    else:
        with warnings.catch_warnings():
            # A run that resumes at the end of an epoch has taken no step yet, which torch warns about.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            schedule.step()


@contextmanager
def warmed_up(optimizer: torch.optim.Optimizer, config: ScheduleConfig, done: int) -> Iterator[None]:
    """Lower the learning rates for one step while fewer than `warmup_steps` steps are done.

    The rates are restored afterwards, because schedules compute the next rate from the current one.
    """
    if done >= config.warmup_steps:
        yield
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= (done + 1) / config.warmup_steps
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class MovingAverage:
    """Exponential moving average of a model's parameters and floating-point buffers. Integer buffers are copied.

    It starts at the model's weights. torch's AveragedModel replaces those by the weights after the first step.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Average in the weights after an optimizer step."""
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._average([mean for mean, _ in floating], [value for _, value in floating], None)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)
