"""Optimizers by name and learning rates against known values."""

import math

import pytest
import torch

from pneumo_dist.config import OptimConfig, StageConfig
from pneumo_dist.optim import make_optimizer, make_schedule, step_schedule


def rates(schedule: dict[str, object], scores: list[float], epochs: int = 10) -> list[float]:
    """Return the learning rate before the first epoch and after each."""
    stage = StageConfig.model_validate({"name": "main", "epochs": epochs, "optim": {"lr": 0.1}, "schedule": schedule})
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))], stage.optim)
    made = make_schedule(optimizer, stage)
    found = [float(optimizer.param_groups[0]["lr"])]
    for score in scores:
        optimizer.step()
        step_schedule(made, score)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def test_constant_stays() -> None:
    assert rates({"name": "constant"}, [0.5] * 12) == [0.1] * 13


@pytest.mark.parametrize("t_max", [None, 4])
def test_cosine_falls_from_lr_to_min_lr_over_its_epochs(t_max: int | None) -> None:
    found = rates({"name": "cosine", "min_lr": 0.01, "t_max": t_max}, [0.0] * 4, epochs=4 if t_max is None else 40)
    expected = [0.01 + 0.09 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(5)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_plateau_reduces_after_its_patience_and_never_below_min_lr() -> None:
    schedule = {"name": "plateau", "factor": 0.1, "patience": 1, "threshold": 0.0, "min_lr": 0.005}
    found = rates(schedule, [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.7])
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.005, 0.005])


def test_plateau_takes_a_higher_score_for_a_gain() -> None:
    assert rates({"name": "plateau", "patience": 0}, [0.1, 0.2, 0.3]) == [0.1] * 4


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizer_is_torchs_own_with_the_configured_values(name: str, kind: type) -> None:
    config = OptimConfig.model_validate({"name": name, "lr": 0.2, "weight_decay": 0.3, "momentum": 0.7})
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))], config)
    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 0.2 and optimizer.defaults["weight_decay"] == 0.3
    if name == "sgd":
        assert optimizer.defaults["momentum"] == 0.7
