"""Optimizers, learning-rate schedules and the moving average of weights."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, assert_never

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pneumo_dist.config.optim import ScheduleConfig
from pneumo_dist.config.stage import StageConfig

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
            sgd = torch.optim.SGD(parameters, momentum=config.momentum, **options)
            _fill_momentum(sgd)
            return sgd
        case _:
            assert_never(config.name)


def step_if(optimizer: torch.optim.Optimizer, is_good: torch.Tensor) -> None:
    """Take an optimizer step if `is_good`, a single bool on the device, is true.

    Fused kernels read it on the device, as they do for torch.amp.GradScaler. Other optimizers wait for it.
    """
    if not optimizer.defaults["fused"]:
        if is_good:
            optimizer.step()
        return
    optimizer.found_inf = (~is_good).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load an optimizer's saved state, but compute steps as the present config says, fused or not."""
    groups = [
        {**group, "fused": present["fused"]}
        for group, present in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for values in optimizer.state.values():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                values[name] = value.clone()  # torch keeps the tensors of `saved`, which may be mapped from a file
    _fill_momentum(optimizer)


def _fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter of a fused SGD its momentum before the first step.

    The kernel would leave it uninitialized in a first step that is skipped, and does not accept that some parameters
    have one and others, which were frozen until now, have none. From zero, the first step has the same bits.
    """
    if not isinstance(optimizer, torch.optim.SGD) or not optimizer.defaults["fused"]:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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

    It starts at the model's weights. torch's AveragedModel replaces those by the weights after the first step. The
    tensors of both models are gathered once: load values into them, but do not replace them, as moving a model would.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        whole = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._means, self._values = [mean for mean, _ in floating], [value for _, value in floating]
        self._counts, self._counted = [count for count, _ in whole], [value for _, value in whole]

    @torch.no_grad()
    def update(self) -> None:
        """Average in the model's weights after an optimizer step."""
        self._average(self._means, self._values, None)
        if self._counts:
            torch._foreach_copy_(self._counts, self._counted)
