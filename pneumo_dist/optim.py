"""Optimizers and learning-rate schedules, torch's own, by configuration."""

from collections.abc import Iterable
from typing import assert_never

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from pneumo_dist.config import OptimConfig, StageConfig

Schedule = LRScheduler | ReduceLROnPlateau


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer over `parameters`."""
    match config.name:
        case "adam":
            return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        case "sgd":
            return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
        case _:
            assert_never(config.name)


def make_schedule(optimizer: torch.optim.Optimizer, stage: StageConfig) -> Schedule:
    """Return the configured schedule, stepped once an epoch after validation."""
    config = stage.schedule
    match config.name:
        case "constant":
            return ConstantLR(optimizer, factor=1.0, total_iters=1)
        case "plateau":
            return ReduceLROnPlateau(
                optimizer,
                mode="max",
                factor=config.factor,
                patience=config.patience,
                threshold=config.threshold,
                min_lr=config.min_lr,
            )
        case "cosine":
            return CosineAnnealingLR(optimizer, T_max=config.t_max or stage.epochs, eta_min=config.min_lr)
        case _:
            assert_never(config.name)


def step_schedule(schedule: Schedule, score: float) -> None:
    """Advance a schedule by one epoch that ended with this validation score."""
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(score)
    else:
        schedule.step()
