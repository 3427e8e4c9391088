"""Single optimizer steps: accumulation, skipped steps, clipping, averages, freezing, and an exact resume."""

import io
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from builders import experiment_of
from gpu.learners import parts_of
from tools.equality import same_bits

from benchmarks.host_waits import counted_waits
from pneumo_dist.data.films import Batch
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.precision import Resolved
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Learner, Step

ALONE = Ranks.alone()
SIZE = 32
FCN = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 6, 8)}}
FCN_NORM = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 6, 8), "norm": True}}
UNET = {"arch": "unet", "encoder": "tu-mobilenetv3_small_050", "in_channels": 1, "decoder_channels": (8, 8, 8, 8, 8)}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0}


def learner_of(
    model: dict[str, Any] | None = None,
    amp: Resolved = "float32",
    seed: int = 0,
    fused: bool | None = None,
    **stage: Any,
) -> Learner:
    plain = {"image_size": SIZE, "global_batch": 4, "micro_batch": 2, "epochs": 6, **stage}
    experiment = experiment_of(plain, model=model or FCN, runtime={"fused": fused})
    torch.manual_seed(seed)
    made = Learner(experiment, experiment.stages[0], ALONE, amp, build_model(experiment.model, pretrained=False))
    made.start_epoch(0)
    return made


def batch_of(count: int, seed: int = 0) -> Batch:
    """Films of noise, each with a different rectangle as its mask."""
    chance = np.random.default_rng(seed)
    images = torch.from_numpy(chance.normal(0.5, 1, (count, 1, SIZE, SIZE)).astype(np.float32))
    masks = torch.zeros(count, 1, SIZE, SIZE)
    for film in range(count):
        top, left, height, width = chance.integers(2, SIZE // 2, 4).tolist()
        masks[film, 0, top : top + height, left : left + width] = 1
    return Batch(images + masks, masks, np.arange(count))


def no_seed(micro: int) -> None:
    pass


def take(learner: Learner, batches: Sequence[Batch], done: int = 0) -> Step:
    return learner.step(iter(batches), len(batches), done, no_seed)


def copied(state: Any) -> Any:
    """A state as read from a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def distance(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The norm of the change of all weights."""
    return math.sqrt(sum(float((after[name] - before[name]).double().square().sum()) for name in before))


# Accumulation


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_make_the_step_of_the_whole_batch(micro: int) -> None:
    loss = {"bce": 3, "dice": 1, "focal": 4, "lovasz": 0.5, "dice_over": "image"}
    whole = learner_of(optim=SGD, loss=loss, global_batch=8, micro_batch=8)
    split = learner_of(optim=SGD, loss=loss, global_batch=8, micro_batch=micro)
    batch = batch_of(8)
    before = copied(split.model.state_dict())
    one, other = take(whole, [batch]), take(split, parts_of(batch, micro))
    assert distance(before, split.model.state_dict()) > 1e-2
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(split.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert other.losses == pytest.approx(one.losses, rel=1e-5)
    assert whole.terms == ("loss", "bce", "dice", "focal", "lovasz")
    assert (other.overlap, other.pixels) == (one.overlap, one.pixels)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)


def test_no_gradient_is_left_over_for_the_next_step() -> None:
    learner = learner_of(optim=SGD)
    take(learner, parts_of(batch_of(4), 2))
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_overlap_and_pixels_are_counted_at_half() -> None:
    learner = learner_of(optim={**SGD, "lr": 1.0})
    batch = batch_of(4)
    for _ in range(5):
        take(learner, [batch])
    with torch.no_grad():
        predicted = torch.sigmoid(learner.model(batch.images)) > 0.5
    step = take(learner, parts_of(batch, 2))
    truth = batch.masks > 0
    assert step.overlap == int((predicted & truth).sum())
    assert step.pixels == int(predicted.sum() + truth.sum())


def test_each_micro_step_is_seeded_before_it_computes() -> None:
    seeded: list[int] = []
    learner = learner_of({**FCN, "fcn": {"widths": (4, 6, 8), "dropout": 0.5}}, optim=SGD)

    def step(seeds: Sequence[int]) -> tuple[float, ...]:
        def seed(micro: int) -> None:
            seeded.append(micro)
            torch.manual_seed(seeds[micro])

        before = copied(learner.model.state_dict())
        losses = learner.step(iter(parts_of(batch_of(4), 2)), 2, 0, seed).losses
        learner.model.load_state_dict(before)
        return losses

    first, again, other = step([5, 6]), step([5, 6]), step([5, 7])
    assert seeded == [0, 1] * 3
    assert first == again != other


# Skipped steps


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_step_without_a_finite_gradient_changes_nothing(place: int, value: float, fused: bool) -> None:
    learner = learner_of(FCN_NORM, fused=fused, optim={"name": "adam", "lr": 0.1, "ema_decay": 0.5})
    take(learner, parts_of(batch_of(4), 2))
    batches = parts_of(batch_of(4, seed=1), 2)
    batches[place].images[0, 0, 3, 3] = value
    before = copied(learner.state())
    step = take(learner, batches, done=1)
    assert step.is_bad and not step.overflowed and not math.isfinite(step.grad_norm)
    assert same_bits(learner.state(), before), "weights, statistics, averages and moments must stay"
    step = take(learner, parts_of(batch_of(4, seed=2), 2), done=2)
    assert not step.is_bad and math.isfinite(step.grad_norm) and math.isfinite(step.losses[0])
    for part in ("model", "averaged", "optimizer"):
        assert not same_bits(learner.state()[part], before[part])


@pytest.mark.parametrize("fused", [False, True])
def test_overflow_of_the_scaler_is_no_bad_step_until_the_scale_is_low(fused: bool) -> None:
    learner = learner_of(FCN_NORM, amp="fp16", fused=fused, optim={"name": "adam", "lr": 0.1, "ema_decay": 0.5})
    batch = batch_of(4)
    batch.images[0, 0, 3, 3] = math.inf
    before = {name: copied(part) for name, part in learner.state().items() if name != "scaler"}
    scales = []
    for done in range(30):
        scales.append(learner.scaler.get_scale())
        step = take(learner, parts_of(batch, 2), done)
        assert step.overflowed == (scales[-1] > 1.0) and step.is_bad == (not step.overflowed)
        assert step.scale == learner.scaler.get_scale() == scales[-1] / 2
        if step.is_bad:
            break
    assert scales[0] > 1.0 and scales[-1] <= 1.0
    after = learner.state()
    # The moments exist, and are zero: a fused optimizer makes them also for a step that the device skips.
    assert all(same_bits(after[name], before[name]) for name in before if name != "optimizer" or not fused)
    assert all(not bool(value.any()) for moments in after["optimizer"]["state"].values() for value in moments.values())


@pytest.mark.parametrize("amp", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("optim", ["adam", "adamw", "sgd"])
def test_host_waits_once_in_a_step(optim: str, amp: Resolved) -> None:
    """Counted on the CPU, with what a GPU does by default: a fused optimizer."""
    settings = {"name": optim, "lr": 0.01, "ema_decay": 0.9, "clip_norm": 1.0, "clip_value": 0.5}
    loss = {"bce": 3, "dice": 1, "focal": 4, "lovasz": 0.5}
    learner = learner_of(FCN_NORM, amp, fused=True, optim=settings, loss=loss)
    for done in range(3):
        batches = parts_of(batch_of(4, seed=done), 2)
        with counted_waits() as waits:
            step = take(learner, batches, done)
        assert waits.count == 1 and not step.is_bad


def test_waits_of_an_optimizer_that_is_not_fused_are_counted() -> None:
    learner = learner_of(FCN_NORM, fused=False, optim={"name": "adam", "lr": 0.01})
    parameters = len(list(learner.model.parameters()))
    with counted_waits() as waits:
        take(learner, parts_of(batch_of(4), 2))
    assert waits.count >= 2 + parameters


# Clipping and the learning rate


@pytest.mark.parametrize("limit", [None, 0.01, 1e6])
def test_gradient_norm_is_clipped_and_reported_before_clipping(limit: float | None) -> None:
    learner = learner_of(optim={**SGD, "lr": 0.5, "clip_norm": limit})
    before = copied(learner.model.state_dict())
    step = take(learner, parts_of(batch_of(4), 2))
    assert step.grad_norm > 0.02
    expected = 0.5 * min(step.grad_norm, limit or math.inf)
    assert distance(before, learner.model.state_dict()) == pytest.approx(expected, rel=1e-4)


def test_gradient_values_are_clipped_after_its_norm() -> None:
    """With plain SGD, no weight moves by more than the rate times the limit, and small gradients are unchanged."""
    moves = []
    for limit in (None, 1e-3):
        learner = learner_of(optim={**SGD, "lr": 0.5, "clip_value": limit})
        before = copied(learner.model.state_dict())
        take(learner, parts_of(batch_of(4), 2))
        after = learner.model.state_dict()
        moves.append({name: before[name] - after[name] for name, _ in learner.model.named_parameters()})
    free, limited = moves
    assert max(float(move.abs().max()) for move in free.values()) > 5e-4
    for name, move in free.items():
        torch.testing.assert_close(limited[name], move.clamp(-5e-4, 5e-4), rtol=0, atol=1e-7)


def test_warm_up_lowers_the_applied_rate() -> None:
    moved = []
    for warmup in (0, 4):
        learner = learner_of(optim=SGD, schedule={"warmup_steps": warmup})
        before = copied(learner.model.state_dict())
        step = take(learner, parts_of(batch_of(4), 2), done=1)
        moved.append(distance(before, learner.model.state_dict()))
        assert step.lr == pytest.approx(0.1 * (2 / 4 if warmup else 1))
        assert learner.optimizer.param_groups[0]["lr"] == 0.1
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-4)


# The moving average


def test_average_includes_each_good_step_and_is_evaluated() -> None:
    learner = learner_of(FCN_NORM, optim={**SGD, "ema_decay": 0.75})
    assert learner.average is not None and learner.evaluated is learner.average.model is not learner.model
    naive = {name: value.double() for name, value in copied(learner.model.state_dict()).items()}
    for done in range(5):
        batches = parts_of(batch_of(4, seed=done), 2)
        if done == 2:
            batches[1].images[:] = math.nan
        step = take(learner, batches, done)
        assert step.is_bad == (done == 2)
        if not step.is_bad:
            for name, value in learner.model.state_dict().items():
                mixed = 0.75 * naive[name] + 0.25 * value.double()
                naive[name] = mixed if value.is_floating_point() else value.double()
    found = learner.evaluated.state_dict()
    for name, value in naive.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
    assert same_bits(learner.state()["averaged"], found)


def test_model_is_evaluated_if_there_is_no_average() -> None:
    learner = learner_of()
    assert learner.evaluated is learner.model and learner.state()["averaged"] is None


# The mean of the last epochs

SWA: dict[str, Any] = {"epochs": 5, "optim": {**SGD, "swa_epochs": 3}}


def end_epoch(learner: Learner, epoch: int) -> bool:
    """Train an epoch of two steps, and add its weights to the mean."""
    learner.start_epoch(epoch)
    for done in range(2 * epoch, 2 * epoch + 2):
        take(learner, parts_of(batch_of(4, seed=done), 2), done)
    return learner.average_epoch(epoch)


def test_last_epochs_are_averaged_equally_and_evaluated() -> None:
    learner = learner_of(FCN_NORM, **SWA)
    ends: list[dict[str, torch.Tensor]] = []
    for epoch in range(5):
        is_averaged = end_epoch(learner, epoch)
        assert is_averaged == (epoch >= 2)
        if not is_averaged:
            assert learner.evaluated is learner.model and learner.state()["averaged"] is None
            continue
        ends.append({name: value.double() for name, value in copied(learner.model.state_dict()).items()})
        found = learner.state()["averaged"]
        assert same_bits(learner.evaluated.state_dict(), found) and learner.evaluated is not learner.model
        moved = distance(found, learner.model.state_dict())
        assert moved == 0 if epoch == 2 else moved > 1e-3
        for name, _ in learner.model.named_parameters():
            mean = torch.stack([end[name] for end in ends]).mean(0)
            torch.testing.assert_close(found[name].double(), mean, rtol=1e-6, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in learner.evaluated.parameters())


def test_epoch_that_ends_twice_is_averaged_once() -> None:
    learner = learner_of(FCN_NORM, **SWA)
    for epoch in range(4):
        end_epoch(learner, epoch)
    before = copied(learner.state())
    assert learner.average_epoch(3)
    again = learner_of(FCN_NORM, seed=99, **SWA)
    again.restore(copied(before))
    assert again.average_epoch(3)
    assert same_bits(learner.state(), before) and same_bits(again.state(), before)


@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
def test_mean_of_a_resumed_learner_has_the_same_bits(stopped: int) -> None:
    straight, before = learner_of(FCN_NORM, **SWA), learner_of(FCN_NORM, **SWA)
    after = learner_of(FCN_NORM, seed=99, **SWA)
    for epoch in range(stopped):
        end_epoch(straight, epoch), end_epoch(before, epoch)
    for learner in (straight, before):
        learner.start_epoch(stopped)
        take(learner, parts_of(batch_of(4, seed=50), 2), 2 * stopped)  # a step of the next epoch
    after.restore(copied(before.state()))
    assert same_bits(after.state(), straight.state())
    for learner in (straight, after):
        for epoch in range(stopped, 5):
            end_epoch(learner, epoch)
    assert straight.state()["averaged_epochs"] == 3
    assert same_bits(after.state(), straight.state())


# Freezing


@pytest.mark.parametrize("model", [FCN_NORM, UNET])
def test_encoder_is_unchanged_in_its_frozen_epochs_and_trains_after_them(model: dict[str, Any]) -> None:
    learner = learner_of(model, optim={"name": "adamw", "lr": 0.01, "weight_decay": 0.1}, freeze_encoder_epochs=2)
    encoder, decoder = (learner.model.get_submodule(name) for name in ("encoder", "decoder"))
    for epoch in range(4):
        learner.start_epoch(epoch)
        before = copied(encoder.state_dict()), copied(decoder.state_dict())
        for done in range(2):
            take(learner, parts_of(batch_of(4, seed=done), 2))
        still = [torch.equal(value, before[0][name]) for name, value in encoder.state_dict().items()]
        assert all(still) if epoch < 2 else not any(still)
        assert not any(torch.equal(value, before[1][name]) for name, value in decoder.state_dict().items())
        learner.model.eval()
        learner.model.train()  # as after a validation


@pytest.mark.parametrize("frozen_epochs", [0, 1])
@pytest.mark.parametrize("model", [FCN_NORM, UNET])
def test_frozen_batch_norm_keeps_statistics_and_weights(model: dict[str, Any], frozen_epochs: int) -> None:
    """Also in an encoder that trains from a later epoch on, and after a validation."""
    optim = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "ema_decay": 0.5}
    learner = learner_of(model, optim=optim, freeze_batch_norm=True, freeze_encoder_epochs=frozen_epochs)
    norms = {name for name, layer in learner.model.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)}
    for epoch in range(2):
        learner.start_epoch(epoch)
        before = copied(learner.model.state_dict())
        take(learner, parts_of(batch_of(4, seed=epoch), 2))
        after = learner.model.state_dict()
        kept = {name for name in after if torch.equal(after[name], before[name])}
        assert {name for name in after if name.rpartition(".")[0] in norms} <= kept
        if epoch >= frozen_epochs:
            assert {name for name in after if name.rpartition(".")[0] not in norms}.isdisjoint(kept)
        learner.model.eval()
        learner.model.train()


# Resuming from a state


HEAD = {**UNET, "classification": {"dropout": 0.3}}
ADAMW = {"name": "adamw", "lr": 0.01, "ema_decay": 0.9, "clip_norm": 0.5, "weight_decay": 0.01}
MOMENTUM = {**ADAMW, "name": "sgd"}
PLATEAU = {"name": "plateau", "patience": 0, "warmup_steps": 5}
RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plateau": (HEAD, {"optim": ADAMW, "schedule": PLATEAU, "loss": {"classification": 0.5}}),
    "cosine": (FCN_NORM, {"optim": {**ADAMW, "name": "adam"}, "schedule": {"name": "cosine", "warmup_steps": 3}}),
    "restarts": (
        UNET,
        {"optim": ADAMW, "schedule": {"name": "restarts", "t_max": 2, "warmup_steps": 1}, "freeze_encoder_epochs": 1},
    ),
    "poly": (FCN_NORM, {"optim": MOMENTUM, "schedule": {"name": "poly", "warmup_steps": 9}}),
    "multistep": (
        FCN_NORM,
        {"optim": MOMENTUM, "schedule": {"name": "multistep", "milestones": (1, 2), "factor": 0.5}},
    ),
}
PER_EPOCH, STEPS = 3, 7


def seed_micro_step(done: int, micro: int) -> None:
    torch.manual_seed(10 * done + micro)


def run(learner: Learner, first: int, last: int) -> list[Step]:
    """Make steps `first` to `last` in epochs of three steps."""
    steps = []
    for done in range(first, last):
        if done % PER_EPOCH == 0 or done == first:
            learner.start_epoch(done // PER_EPOCH)
        batches = parts_of(batch_of(4, seed=done), 2)
        if done == 1:
            batches[0].images[:] = math.nan
        steps.append(learner.step(iter(batches), 2, done, partial(seed_micro_step, done)))
        if done % PER_EPOCH == PER_EPOCH - 1:
            learner.end_epoch(0.5 - done / 100, 1.0)
    return steps


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("stopped", [2, PER_EPOCH, 5])
@pytest.mark.parametrize("name", RESUMED)
def test_resumed_learner_ends_with_the_same_bits(name: str, stopped: int, fused: bool | None) -> None:
    model, stage = RESUMED[name]
    straight = learner_of(model, fused=fused, **stage)
    expected = run(straight, 0, STEPS)
    before = learner_of(model, fused=fused, **stage)
    taken = run(before, 0, stopped)
    after = learner_of(model, seed=99, fused=fused, **stage)  # other initial weights, which the state replaces
    after.restore(copied(before.state()))
    taken += run(after, stopped, STEPS)
    assert [repr(step) for step in taken] == [repr(step) for step in expected]
    assert same_bits(after.state(), straight.state())
    assert len({step.lr for step in expected}) > 1
