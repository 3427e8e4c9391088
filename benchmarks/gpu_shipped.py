"""The optimizer step of an experiment in configs/ as one of eight ranks takes it: its rate, its waits and its parts."""

import itertools
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.gpu_kernels import kernel_facts
from benchmarks.gpu_steps import Settings, cores, synchronize, timed
from benchmarks.gpu_store import GRAPHS, LAYOUT, SHIPPED_WAYS
from benchmarks.shards import ROOT
from pneumo_dist.config.experiment import Experiment, StageConfig
from pneumo_dist.config.load import load_config
from pneumo_dist.data.films import Batch
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.ddp import restore_buffers
from pneumo_dist.ranks.precision import configure, resolve_amp
from pneumo_dist.train.optim import make_optimizer
from pneumo_dist.train.step import Learner


def shipped_row(settings: Settings) -> dict[str, Any]:
    """Measure an experiment's own step on ready input: rate, idle share, waits for the GPU by line, and its parts."""
    experiment, stage = own_stage(settings)
    configure(experiment.runtime)
    device = settings.ranks.device
    amp = resolve_amp(experiment.amp, device)
    learner = Learner(experiment, stage, settings.ranks, amp, build_model(experiment.model, pretrained=False))
    if settings.task.way == GRAPHS:
        learner.model.compile(mode="reduce-overhead")
    learner.start_epoch(0)
    batch, done = ready_batch(experiment, stage, device), itertools.count(stage.schedule.warmup_steps)

    def take() -> float:
        return learner.step([batch], 1, next(done), torch.manual_seed).losses[0]

    durations = timed(take, settings.warm, settings.steps)
    found: dict[str, Any] = {
        "batch": stage.micro_batch,
        "images_per_s": stage.micro_batch * len(durations) / sum(durations),
        "step_s": statistics.median(durations),
        "steps": len(durations),
        "threads": cores(),
        "amp": amp,
        "channels_last": experiment.data.channels_last,
    }
    if settings.device == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found["waits"] = waits(take, settings.profiled)
        found |= kernel_facts(take, settings.profiled)
    return found | {"parts": parts(learner, stage, settings.warm, settings.steps)}


def own_stage(settings: Settings) -> tuple[Experiment, StageConfig]:
    """Return an experiment and its first stage; a step of it is one forward pass, as on eight ranks."""
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


def ready_batch(experiment: Experiment, stage: StageConfig, device: torch.device) -> Batch:
    """Return noise with a square as every mask, on the device."""
    shape = (stage.micro_batch, experiment.model.in_channels, stage.image_size, stage.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    if experiment.data.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    masks = torch.zeros((shape[0], 1, *shape[2:]), dtype=torch.uint8, device=device)
    masks[:, :, shape[2] // 4 : shape[2] // 2, shape[2] // 4 : shape[2] // 2] = 1
    return Batch(images, masks, torch.arange(stage.micro_batch).numpy())


# --- waits


def waits(take: Callable[[], object], steps: int) -> dict[str, float]:
    """Return how often a step makes the host wait for the GPU, by the lines of the project and of torch that do."""
    seen: Counter[str] = Counter()

    def note(
        message: Any, kind: Any, name: str, line: int, file: TextIO | None = None, text: str | None = None
    ) -> None:
        if "synchroniz" in str(message) and (place := place_of(traceback.extract_stack()[:-1])) is not None:
            seen[place] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        with watched():
            for _ in range(steps):
                take()
    return {place: count / steps for place, count in seen.most_common()}


@contextmanager
def watched() -> Iterator[None]:
    """Have torch warn of every call that waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def place_of(stack: Sequence[traceback.FrameSummary]) -> str | None:
    """Name the innermost line of the project and, where torch was called from it in Python, of torch.

    None for what the project did not ask for, as torch's own words about the counting.
    """
    frames = [frame for frame in stack if Path(frame.filename).name != "warnings.py"]
    own = [short for frame in frames if (short := _short(frame, "pneumo_dist"))]
    last = _short(frames[-1], "torch")
    return " > ".join([own[-1], *([last] if last else [])]) if own else None


def _short(frame: traceback.FrameSummary, package: str) -> str | None:
    """Return file, line and function of a frame of a package, None of another's."""
    _, found, rest = frame.filename.rpartition(f"/{package}/")
    return f"{package}/{rest}:{frame.lineno} {frame.name}" if found else None


# --- parts


def parts(learner: Learner, stage: StageConfig, warm: int, count: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of what a step does beside forward and backward: until the host goes on, and in all.

    Both optimizers are measured, on gradients of noise.
    """
    model = learner.model
    average = learner.average
    made: dict[str, Callable[[], object]] = {}
    if average is not None:
        made["ema"] = lambda: average.update(model)
    made["copies of buffers"] = lambda: [buffer.clone() for buffer in model.buffers()]
    copies = [buffer.clone() for buffer in model.buffers()]
    made["buffers put back"] = lambda: restore_buffers(model, copies)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    limit = stage.optim.clip_norm or 1.0
    made["clipping"] = lambda: torch.nn.utils.clip_grad_norm_(trained, limit)
    for name, fused in (("optimizer", False), ("optimizer, fused", True)):
        made[name] = make_optimizer(trained, stage, fused).step
    found = {name: part_ms(call, warm, count) for name, call in made.items()}
    return {name: {"host_ms": host, "done_ms": done} for name, (host, done) in found.items()}


def part_ms(call: Callable[[], object], warm: int, count: int) -> tuple[float, float]:
    """Return the median milliseconds until a call returns, and until the device has done what it asked for."""
    for _ in range(warm):
        call()
    taken = []
    for _ in range(count):
        synchronize()
        start = time.perf_counter()
        call()
        returned = time.perf_counter()
        synchronize()
        taken.append((returned - start, time.perf_counter() - start))
    host, done = (1000 * statistics.median(values) for values in zip(*taken, strict=True))
    return host, done
