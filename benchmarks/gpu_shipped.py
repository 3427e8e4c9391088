"""Measure the optimizer step of a shipped experiment on one of its eight ranks: its rate, its waits and its parts."""

import itertools
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.gpu_kernels import kernel_facts
from benchmarks.gpu_steps import Settings, rate_facts, seed_torch, synchronize, timed
from benchmarks.gpu_store import GRAPHS, LAYOUT, SHIPPED_WAYS
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.buffers import KeptBuffers
from pneumo_dist.ranks.precision import configure, resolve_amp
from pneumo_dist.train.optim import make_optimizer
from pneumo_dist.train.step import Learner


def shipped_row(settings: Settings) -> dict[str, Any]:
    """Measure an experiment's step on synthetic input: rate, idle share, waits for the GPU by line, and parts."""
    experiment, stage = shipped_stage(settings)
    configure(experiment.runtime)
    device = settings.ranks.device
    amp = resolve_amp(experiment.amp, device)
    learner = Learner(experiment, stage, settings.ranks, amp, build_model(experiment.model, pretrained=False))
    if settings.task.way == GRAPHS:
        learner.model.compile(mode="reduce-overhead")
    learner.start_epoch(0)
    batch, done = synthetic_batch(experiment, stage, device), itertools.count(stage.schedule.warmup_steps)

    def take() -> float:
        return learner.step([batch], 1, next(done), seed_torch).losses[0]

    durations = timed(take, settings.counts.warm, settings.counts.steps)
    row = rate_facts(durations, stage.micro_batch) | {"amp": amp, "channels_last": experiment.data.channels_last}
    if settings.device == "cuda":
        row["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["waits"] = waits(take, settings.counts.profiled)
        row |= kernel_facts(take, settings.counts.profiled)
    return row | {"parts": parts(learner, stage, settings.counts.warm, settings.counts.steps)}


def shipped_stage(settings: Settings) -> tuple[Experiment, StageConfig]:
    """Return an experiment and its first stage, in which a step is one forward pass, as on eight ranks."""
    task = settings.task
    overrides = ["model.encoder_weights=null", f"image_size={task.size}", *SHIPPED_WAYS[task.way]]
    if settings.encoder is not None:
        overrides += [f"model.encoder={settings.encoder}"]
    overrides = [each for each in overrides if settings.device == "cuda" or not each.startswith("micro_batch")]
    experiment = load_config(ROOT / "configs" / f"{task.network}.yaml", overrides).experiment
    if task.way == LAYOUT:
        data = experiment.data.model_copy(update={"channels_last": not experiment.data.channels_last})
        experiment = experiment.model_copy(update={"data": data})
    stage = experiment.stages[0]
    return experiment, stage.model_copy(update={"global_batch": stage.micro_batch})


def synthetic_batch(experiment: Experiment, stage: StageConfig, device: torch.device) -> Batch:
    """Return a batch of noise, with a square as each mask, on the device."""
    shape = (stage.micro_batch, experiment.model.in_channels, stage.image_size, stage.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    if experiment.data.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    masks = torch.zeros((shape[0], 1, *shape[2:]), dtype=torch.uint8, device=device)
    masks[:, :, shape[2] // 4 : shape[2] // 2, shape[2] // 4 : shape[2] // 2] = 1
    return Batch(images, masks, torch.arange(stage.micro_batch).numpy())


# --- waits


def waits(take: Callable[[], object], steps: int) -> dict[str, float]:
    """Return how often per step the host waits for the GPU, by the line of code that waits."""
    counts: Counter[str] = Counter()

    def count_wait(message: Warning | str, *_: object, **__: object) -> None:
        if "synchroniz" in str(message) and (location := location_of(traceback.extract_stack()[:-1])) is not None:
            counts[location] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count_wait
        with sync_warnings():
            for _ in range(steps):
                take()
    return {location: count / steps for location, count in counts.most_common()}


@contextmanager
def sync_warnings() -> Iterator[None]:
    """Make torch warn about every call that waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def location_of(stack: Sequence[traceback.FrameSummary]) -> str | None:
    """Return the innermost line of this project in a stack, followed by the line of torch's Python code if any.

    None if no line of this project is in the stack, as in torch's warning about the sync debug mode itself.
    """
    frames = [frame for frame in stack if Path(frame.filename).name != "warnings.py"]
    project = [short for frame in frames if (short := _short(frame, "pneumo_dist"))]
    torch_line = _short(frames[-1], "torch")
    return " > ".join([project[-1], *([torch_line] if torch_line else [])]) if project else None


def _short(frame: traceback.FrameSummary, package: str) -> str | None:
    """Return file, line and function of a frame in this package, None for any other frame."""
    _, separator, rest = frame.filename.rpartition(f"/{package}/")
    return f"{package}/{rest}:{frame.lineno} {frame.name}" if separator else None


# --- parts


def parts(learner: Learner, stage: StageConfig, warm: int, count: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each part of a step other than forward and backward, on the host and in total.

    Both optimizers are measured, on random gradients.
    """
    model = learner.model
    average = learner.average
    calls: dict[str, Callable[[], object]] = {}
    if average is not None:
        calls["ema"] = average.update
    buffers = KeptBuffers(model)
    calls["copies of buffers"] = buffers.keep
    calls["buffers put back"] = buffers.restore
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    limit = stage.optim.clip_norm or 1.0
    calls["clipping"] = lambda: torch.nn.utils.clip_grad_norm_(trained, limit)
    for name, fused in (("optimizer", False), ("optimizer, fused", True)):
        calls[name] = make_optimizer(trained, stage, fused).step
    durations = {name: part_ms(call, warm, count) for name, call in calls.items()}
    return {name: {"host_ms": host, "done_ms": done} for name, (host, done) in durations.items()}


def part_ms(call: Callable[[], object], warm: int, count: int) -> tuple[float, float]:
    """Return the median milliseconds until a call returns, and until the device has finished its work."""
    for _ in range(warm):
        call()
    durations = []
    for _ in range(count):
        synchronize()
        start = time.perf_counter()
        call()
        returned = time.perf_counter()
        synchronize()
        durations.append((returned - start, time.perf_counter() - start))
    host, done = (1000 * statistics.median(values) for values in zip(*durations, strict=True))
    return host, done
