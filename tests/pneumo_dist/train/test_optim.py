"""Learning rates compared with closed forms, the moving average with a naive loop, and optimizers by name."""

import copy
import math
import random
from typing import Any

import pytest
import torch
from tools.equality import same_bits
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.train.optim import (
    MovingAverage,
    make_optimizer,
    make_schedule,
    restore_optimizer,
    step_if,
    step_schedule,
    warmed_up,
)

LR = 0.1
EPOCHS = 30


def stage_of(**values: Any) -> StageConfig:
    return StageConfig.model_validate({"name": "main", "epochs": EPOCHS, "optim": {"lr": LR}, **values})


def rates(
    schedule: dict[str, Any], scores: list[float], losses: list[float] | None = None, **values: Any
) -> list[float]:
    """Return the learning rate before the first epoch and after each."""
    stage = stage_of(schedule=schedule, **values)
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))], stage)
    made = make_schedule(optimizer, stage)
    found = [float(optimizer.param_groups[0]["lr"])]
    for score, loss in zip(scores, losses or [0.0] * len(scores), strict=True):
        optimizer.step()
        step_schedule(made, stage.schedule, score, loss)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def constant(epoch: int) -> float:
    return LR


def cosine(epoch: int, low: float, period: int) -> float:
    return low + (LR - low) * (1 + math.cos(math.pi * epoch / period)) / 2


def restarts(epoch: int, low: float, first: int, factor: int) -> float:
    start, period = 0, first
    while epoch >= start + period:
        start, period = start + period, period * factor
    return cosine(epoch - start, low, period)


def multistep(epoch: int, milestones: tuple[int, ...], factor: float) -> float:
    return LR * math.prod(factor for milestone in milestones if epoch >= milestone)


def poly(epoch: int, last: int, power: float) -> float:
    return float(LR * (1 - min(epoch, last) / last) ** power)


CLOSED = [
    ({"name": "constant"}, constant, ()),
    ({"name": "cosine", "min_lr": 0.01}, cosine, (0.01, EPOCHS)),
    ({"name": "cosine", "min_lr": 1e-4, "t_max": 8}, cosine, (1e-4, 8)),
    ({"name": "restarts", "min_lr": 0.002, "t_max": 5}, restarts, (0.002, 5, 1)),
    ({"name": "restarts", "min_lr": 0.002, "t_max": 4, "t_mult": 2}, restarts, (0.002, 4, 2)),
    ({"name": "restarts", "min_lr": 0.002}, restarts, (0.002, EPOCHS, 1)),
    ({"name": "multistep", "milestones": (3, 5, 6, 21), "factor": 0.75}, multistep, ((3, 5, 6, 21), 0.75)),
    ({"name": "poly", "power": 0.9}, poly, (EPOCHS, 0.9)),
    ({"name": "poly", "power": 2.0, "t_max": 7}, poly, (7, 2.0)),
]


@pytest.mark.parametrize(
    ("schedule", "closed", "arguments"), CLOSED, ids=lambda value: getattr(value, "__name__", str(value)[:60])
)
def test_rate_of_each_epoch_equals_the_closed_form(
    schedule: dict[str, Any], closed: Any, arguments: tuple[Any, ...]
) -> None:
    found = rates(schedule, [0.5] * EPOCHS)
    expected = [closed(epoch, *arguments) for epoch in range(EPOCHS + 1)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def naive_plateau(values: list[float], sign: int, schedule: dict[str, Any]) -> list[float]:
    """Rates of a plateau schedule. `sign` is 1 if higher is better; a gain is relative to the best so far."""
    lr, best, stale, found = LR, None, 0, [LR]
    for value in values:
        if best is None or sign * value > sign * best * (1 + sign * schedule["threshold"]):
            best, stale = value, 0
        else:
            stale += 1
        if stale > schedule["patience"]:
            lr, stale = max(lr * schedule["factor"], schedule["min_lr"]), 0
        found.append(lr)
    return found


@pytest.mark.parametrize("watch", ["score", "loss"])
@pytest.mark.parametrize(("patience", "threshold"), [(0, 1e-7), (1, 0.02), (3, 1e-4)])
def test_plateau_follows_its_metric_only(watch: str, patience: int, threshold: float) -> None:
    schedule = {"name": "plateau", "factor": 0.6, "patience": patience, "threshold": threshold, "min_lr": 0.004}
    chance = random.Random(patience)
    rising = [0.4 + 0.01 * epoch + chance.uniform(-0.04, 0.04) for epoch in range(EPOCHS)]
    falling = [2.0 - 0.02 * epoch + chance.uniform(-0.1, 0.1) for epoch in range(EPOCHS)]
    found = rates({**schedule, "watch": watch}, rising, falling)
    by_score, by_loss = naive_plateau(rising, 1, schedule), naive_plateau(falling, -1, schedule)
    assert by_score != by_loss, "the two histories cannot tell score and loss apart"
    assert found == pytest.approx(by_score if watch == "score" else by_loss, rel=1e-12)


def test_plateau_reduces_after_its_patience_and_never_below_min_lr() -> None:
    schedule = {"name": "plateau", "factor": 0.1, "patience": 1, "threshold": 0.0, "min_lr": 0.005}
    found = rates(schedule, [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.7])
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.005, 0.005])


@pytest.mark.parametrize(("scale", "expected"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_rate_follows_the_global_batch_as_configured(scale: str, expected: float) -> None:
    stage = stage_of(optim={"lr": LR, "lr_scale": scale, "lr_batch": 4}, global_batch=16, micro_batch=1)
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))], stage)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)


def test_rate_without_lr_batch_is_unchanged() -> None:
    assert stage_of(global_batch=32).optim.scaled_lr(32) == LR


@pytest.mark.parametrize("schedule", [{"name": "cosine", "min_lr": 1e-3}, {"name": "constant"}])
def test_warm_up_lowers_the_rate_during_its_steps_only(schedule: dict[str, Any]) -> None:
    steps, warmup = 3, 7
    stage = stage_of(schedule={**schedule, "warmup_steps": warmup}, epochs=5)
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))], stage)
    made = make_schedule(optimizer, stage)
    plain = rates(schedule, [0.5] * 5, epochs=5)
    for epoch in range(5):
        for step in range(steps):
            done = epoch * steps + step
            with warmed_up(optimizer, stage.schedule, done):
                during = optimizer.param_groups[0]["lr"]
                optimizer.step()
            assert during == pytest.approx(plain[epoch] * min(1.0, (done + 1) / warmup), rel=1e-12)
            assert optimizer.param_groups[0]["lr"] == plain[epoch], "the schedule's rate must be found unchanged"
        step_schedule(made, stage.schedule, 0.5, 0.5)
        assert optimizer.param_groups[0]["lr"] == plain[epoch + 1]


def test_rate_is_restored_after_a_step_that_fails() -> None:
    stage = stage_of(schedule={"warmup_steps": 10})
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))], stage)
    with pytest.raises(ZeroDivisionError), warmed_up(optimizer, stage.schedule, 0):
        raise ZeroDivisionError
    assert optimizer.param_groups[0]["lr"] == LR


def small_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 1, 1))


def test_moving_average_equals_a_naive_loop() -> None:
    torch.manual_seed(0)
    model, decay = small_model(), 0.9
    average = MovingAverage(model, decay)
    naive = {name: value.double().clone() for name, value in model.state_dict().items()}
    for _ in range(12):
        model(torch.randn(2, 1, 5, 5) + 3.0)  # changes the batch norm's buffers
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        for name, value in model.state_dict().items():
            is_whole = not value.is_floating_point()
            naive[name] = value.double() if is_whole else decay * naive[name] + (1 - decay) * value.double()
    found = average.model.state_dict()
    assert int(found["1.num_batches_tracked"]) == 12
    for name, value in naive.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-5)
        assert name.endswith("tracked") or not torch.allclose(found[name], model.state_dict()[name], atol=1e-3)


def test_moving_average_has_the_bits_of_one_over_state_dicts() -> None:
    torch.manual_seed(0)
    model, decay = small_model(), 0.99
    average, naive = MovingAverage(model, decay), copy.deepcopy(model)
    lerp = get_ema_multi_avg_fn(decay)
    other = {name: value.clone() for name, value in small_model().state_dict().items()}
    for step in range(6):
        model(torch.randn(2, 1, 5, 5))
        if step == 3:
            # As on a resume: values are loaded into the tensors that were gathered.
            for loaded in (model, average.model, naive):
                loaded.load_state_dict(other)
        average.update()
        pairs = list(zip(naive.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        with torch.no_grad():
            lerp([mean for mean, _ in floating], [value for _, value in floating], None)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)
        assert same_bits(average.model.state_dict(), naive.state_dict())
    assert not same_bits(naive.state_dict(), other)


def test_moving_average_is_separate_from_the_model_and_never_trains() -> None:
    model = small_model()
    average = MovingAverage(model, 0.5)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in average.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_is_torchs_with_the_configured_values(name: str, kind: type, fused: bool) -> None:
    stage = stage_of(optim={"name": name, "lr": 0.2, "weight_decay": 0.3, "momentum": 0.7})
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = make_optimizer([parameter], stage, fused)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["params"] == [parameter]
    assert optimizer.defaults["lr"] == 0.2 and optimizer.defaults["weight_decay"] == 0.3
    assert bool(optimizer.defaults["fused"]) == fused
    if name == "sgd":
        assert optimizer.defaults["momentum"] == 0.7


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", 1 - 0.1 * (2 + 0.5)),  # coupled: the decay is part of the gradient
        ("adamw", 1 * (1 - 0.1 * 0.5) - 0.1),  # decoupled: the decay is outside the normalised gradient
        ("adam", 1 - 0.1),  # coupled, and lost in the normalisation of the first step
    ],
)
def test_weight_decay_is_coupled_in_adam_and_sgd_and_decoupled_in_adamw(name: str, expected: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = make_optimizer([parameter], stage_of(optim={"name": name, "lr": 0.1, "weight_decay": 0.5}))
    parameter.grad = torch.full((1,), 2.0, dtype=torch.float64)
    optimizer.step()
    assert float(parameter.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_step_is_taken_if_it_is_good_and_skipped_otherwise(name: str, fused: bool) -> None:
    """Also if the first step is skipped: the next one is then the first."""
    stage = stage_of(optim={"name": name, "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9})
    made = [torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2)]
    skipping, plain = (make_optimizer([parameter], stage, fused) for parameter in made)
    bad = 0
    for step, is_good in enumerate([False, True, False, True, True]):
        before = [made[0].detach().clone(), copy.deepcopy(skipping.state_dict()["state"])]
        for parameter in made:
            parameter.grad = torch.full_like(parameter, 1.0 + step) if is_good else torch.full_like(parameter, math.nan)
        step_if(skipping, torch.tensor(is_good))
        if is_good:
            plain.step()
        elif bad:
            assert same_bits([made[0].detach(), skipping.state_dict()["state"]], before)
        bad += not is_good
        assert same_bits(made[0].detach(), made[1].detach())
    assert bad == 2 and not torch.equal(made[0].detach(), torch.linspace(-1, 1, 5))
    assert same_bits(skipping.state_dict()["state"], plain.state_dict()["state"])
    assert not hasattr(skipping, "found_inf")


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_optimizer_is_the_plain_one_and_trains_parameters_that_were_frozen(name: str) -> None:
    stage = stage_of(optim={"name": name, "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9})
    made = [[torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2)] for _ in range(2)]
    optimizers = [
        make_optimizer(parameters, stage, fused) for parameters, fused in zip(made, (False, True), strict=True)
    ]
    for step in range(4):
        for parameters, optimizer in zip(made, optimizers, strict=True):
            for parameter in parameters if step > 1 else parameters[:1]:
                parameter.grad = torch.full_like(parameter, 1.0 + step)
            optimizer.step()
    for plain, fused in zip(*made, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("saved_fused", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_restored_optimizer_is_fused_as_configured(name: str, fused: bool, saved_fused: bool) -> None:
    """A checkpoint of an earlier version was not fused on a GPU, where the default now is."""
    stage = stage_of(optim={"name": name, "lr": 0.1, "momentum": 0.9})
    made = [[torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))] for _ in range(2)]
    saved, fresh = (
        make_optimizer(each, stage, is_fused) for each, is_fused in zip(made, (saved_fused, fused), strict=True)
    )
    made[0][0].grad = torch.ones(3)
    saved.step()
    state = copy.deepcopy(saved.state_dict())
    restore_optimizer(fresh, state)
    assert bool(fresh.param_groups[0]["fused"]) == fused
    for parameter in (*made[0], *made[1]):
        parameter.grad = torch.ones_like(parameter)
    made[1][0].data.copy_(made[0][0].data)
    saved.step(), fresh.step()
    for expected, found in zip(*made, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
