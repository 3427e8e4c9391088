"""The optimizer and the learning-rate schedule: values that make no sense, and the scaled learning rate."""

from typing import Any

import pydantic
import pytest

from pneumo_dist.config.optim import OptimConfig, ScheduleConfig


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0},
        {"name": "lion"},
        {"lr": float("inf")},
        {"lr": 1e30},
        {"clip_norm": float("inf")},
        {"lr_scale": "linear"},
        {"lr_scale": "cubic", "lr_batch": 4},
        {"ema_decay": 1},
        {"clip_norm": 0},
    ],
)
def test_bad_optimizers_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        OptimConfig.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "multistep", "milestones": [True]},
        {"name": "multistep"},
        {"name": "multistep", "milestones": (5, 3)},
        {"name": "multistep", "milestones": (3, 3)},
        {"name": "cosine", "t_max": 0},
        {"watch": "dice"},
    ],
)
def test_bad_schedules_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        ScheduleConfig.model_validate(values)


@pytest.mark.parametrize(("scale", "lr"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_learning_rate_scales_with_the_global_batch(scale: str, lr: float) -> None:
    optim = OptimConfig.model_validate({"lr": 0.1, "lr_scale": scale, "lr_batch": 4})
    assert optim.scaled_lr(16) == pytest.approx(lr) and optim.scaled_lr(4) == 0.1
