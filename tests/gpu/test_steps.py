"""Optimizer steps in every precision and layout, and compiled, on the CPU and on a GPU."""

import math
from typing import Any

import pytest
import torch
from gpu.learners import FCN_NORM, MODELS, SGD, UNET, batch_of, cases, copied, learner_of, parts_of, take, weights
from tools.equality import same_bits

from pneumo_dist.config.experiment import RuntimeConfig
from pneumo_dist.ranks.precision import Resolved, configure
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.epoch_log import EpochLog
from pneumo_dist.train.step import Learner


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The norm of the change of all weights."""
    return math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))


@pytest.mark.parametrize(("ranks", "model"), cases(["fcn"]), indirect=["ranks"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_steps_are_close_to_float32(ranks: Ranks, model: str, amp: Resolved) -> None:
    batches = parts_of(batch_of(4), 2)
    whole, half = learner_of(ranks, MODELS[model]), learner_of(ranks, MODELS[model], amp)
    start = weights(half)
    expected, found = take(whole, batches), take(half, batches)
    assert found.losses == pytest.approx(expected.losses, rel=0.05)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=0.2)
    assert not found.is_bad and not found.overflowed
    assert half.scaler.is_enabled() == (amp == "fp16")
    assert moved(start, weights(half)) == pytest.approx(moved(start, weights(whole)), rel=0.2)
    for name, parameter in half.model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.device.type == ranks.device.type, name
    losses = [take(half, batches, done).losses[0] for done in range(1, 13)]
    assert losses[-1] < 0.9 * losses[0], "it does not learn the films that it sees again and again"


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_recovers_from_an_overflow_by_halving_its_scale(ranks: Ranks, fused: bool) -> None:
    learner = learner_of(ranks, FCN_NORM, "fp16", runtime={"fused": fused}, optim={"name": "adam", "lr": 0.01})
    high = 2.0**40  # scaled gradients overflow fp16
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": high})
    before, steps = copied({k: v for k, v in learner.state().items() if k != "scaler"}), []
    for done in range(40):
        steps.append(take(learner, [batch_of(4)], done))
        if not steps[-1].overflowed:
            break
        after = learner.state()
        assert all(same_bits(copied(after[name]), before[name]) for name in before if name != "optimizer")
    assert len(steps) > 5 and all(step.overflowed and not step.is_bad for step in steps[:-1])
    assert not steps[-1].is_bad and math.isfinite(steps[-1].grad_norm)
    assert learner.scaler.get_scale() == high / 2 ** (len(steps) - 1)
    assert not same_bits(copied(learner.state()["model"]), before["model"])
    resumed = learner_of(ranks, FCN_NORM, "fp16", runtime={"fused": fused}, optim={"name": "adam", "lr": 0.01})
    resumed.restore(copied(learner.state()))
    assert resumed.scaler.get_scale() == learner.scaler.get_scale()
    assert not take(resumed, [batch_of(4)], len(steps)).overflowed


@pytest.mark.parametrize(("ranks", "model"), cases(["unet"], ["unet", "heavy"]), indirect=["ranks"])
def test_channels_last_changes_the_layout_and_not_the_step(ranks: Ranks, model: str) -> None:
    batch = batch_of(4)
    plain = learner_of(ranks, MODELS[model])
    last = learner_of(ranks, MODELS[model], data={"channels_last": True}, optim={**SGD, "ema_decay": 0.9})
    seen: list[tuple[torch.Size, bool]] = []

    def note(module: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.append((out.shape, out.is_contiguous(memory_format=torch.channels_last)))

    hooks = [layer.register_forward_hook(note) for layer in last.model.modules() if isinstance(layer, torch.nn.Conv2d)]
    for done in range(3):
        expected, found = take(plain, [batch], done), take(last, [batch], done)
        assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    for hook in hooks:
        hook.remove()
    # A map of one pixel or one channel has both layouts, whatever its strides.
    large = [is_last for shape, is_last in seen if shape[1] > 1 and shape[2] > 1]
    assert len(large) > 20 and all(large)
    kernels = [p for p in last.model.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    again = learner_of(ranks, MODELS[model], seed=9, data={"channels_last": True}, optim={**SGD, "ema_decay": 0.9})
    again.restore(copied(last.state()))
    assert same_bits(copied(again.state()), copied(last.state()))


@pytest.mark.slow
def test_compiled_step_is_close_to_the_eager_one_and_keeps_the_names_of_weights(ranks: Ranks) -> None:
    optim = {**SGD, "ema_decay": 0.9}
    eager, compiled = (
        learner_of(ranks, FCN_NORM, optim=optim, runtime={"compile": compile}) for compile in (False, True)
    )
    for done in range(3):
        batches = parts_of(batch_of(4, seed=done), 2)
        expected, found = take(eager, batches, done), take(compiled, batches, done)
        assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    state = copied(compiled.state())
    assert list(state["model"]) == list(eager.model.state_dict()) == list(state["averaged"])
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-2, atol=1e-4)
    images = batch_of(3).images.to(ranks.device)  # another size than in training, in evaluation mode
    for learner in (eager, compiled):
        learner.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled.model(images), eager.model(images), rtol=1e-2, atol=1e-3)
    eager.restore(state)


ADAM = {"name": "adam", "lr": 0.01, "ema_decay": 0.9, "clip_norm": 0.5}
WAYS: dict[str, tuple[Resolved, dict[str, Any], dict[str, Any]]] = {
    "adam": ("float32", ADAM, {}),
    "adam, fused": ("float32", ADAM, {"fused": True}),
    "adamw, fused, bf16": ("bf16", {**ADAM, "name": "adamw", "weight_decay": 0.01}, {"fused": True}),
    "sgd, fused": ("float32", {**SGD, "swa_epochs": 2}, {"fused": True}),
    "adam, fp16": ("fp16", ADAM, {}),
    "adam, fused, fp16": ("fp16", ADAM, {"fused": True}),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("ranks", "model"), cases(["fcn"]), indirect=["ranks"])
def test_resumed_steps_have_the_same_bits(ranks: Ranks, model: str, name: str) -> None:
    amp, optim, runtime = WAYS[name]
    configure(RuntimeConfig(deterministic=True, tf32=False))

    def made(seed: int) -> Learner:
        return learner_of(ranks, MODELS[model], amp, seed, runtime={**runtime, "deterministic": True}, optim=optim)

    straight, before, after = made(0), made(0), made(5)
    steps: tuple[list[str], list[str]] = ([], [])
    for done in range(5):
        batches = parts_of(batch_of(4, seed=done), 2)
        steps[0].append(repr(take(straight, batches, done)))
        if done == 2:
            after.restore(copied(before.state()))
        steps[1].append(repr(take(before if done < 2 else after, batches, done)))
    assert steps[0] == steps[1]
    assert same_bits(copied(after.state()), copied(straight.state()))


def test_peak_memory_of_a_gpu_is_reported_and_that_of_the_cpu_is_not(ranks: Ranks) -> None:
    learner = learner_of(ranks, UNET)
    log = EpochLog(learner.terms, 4, ranks)
    log.start()
    log.add(take(learner, [batch_of(4)]))
    log.stop()
    found = log.speed()
    assert found["peak_memory_mb"] > 50
    assert ("peak_gpu_memory_mb" in found) == (ranks.device.type == "cuda")
    if ranks.device.type == "cuda":
        parameters = sum(parameter.nbytes for parameter in learner.model.parameters()) / 2**20
        assert parameters < found["peak_gpu_memory_mb"] < torch.cuda.get_device_properties(0).total_memory / 2**20
