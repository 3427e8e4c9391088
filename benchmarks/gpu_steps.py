"""Optimizer steps for `benchmarks.gpu` to time: the trainer's, and those of a plain loop."""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.common import single_threaded, train_on_repeated
from benchmarks.gpu_cards import Card, card_of
from benchmarks.gpu_store import STORED, WAYS, Task
from benchmarks.reference_films import RECIPE_A, ReferenceFilms, recipe_c
from pneumo_dist.config.experiment import DataConfig, Experiment, RuntimeConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import train_batches
from pneumo_dist.data.plan import EpochPlan
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.precision import configure, resolve_amp
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Learner
from shards.dataset.table import Shards

# Number of films in the plan, which repeats the stored ones.
PLANNED = 4096
LOSS = {"bce": 3, "dice": 1, "focal": 4}
# 64 images of 1024 px with 32 channels overflow the index of torch's channels-last upsampling.
MOST_BATCH = 48


@dataclass(frozen=True)
class Counts:
    """Number of films, steps and images that a row measures, and the size of stored films."""

    films: int = 64
    stored: int = STORED
    warm: int = 10
    steps: int = 30
    profiled: int = 5
    most_batch: int = MOST_BATCH


QUICK = Counts(films=12, stored=128, warm=1, steps=2, profiled=2, most_batch=2)


@dataclass(frozen=True)
class Settings:
    """How to measure a row: task, device, shards by codec, counts, and the results of earlier rows.

    `batch` None means the largest that fits, up to `counts.most_batch`. `peaks` overrides the table of cards. `encoder`
    replaces that of a shipped experiment.
    """

    task: Task
    device: str
    shards: dict[str, str]
    layout: bool
    batch: int | None
    counts: Counts
    peaks: str | None
    encoder: str | None = None

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read the file that `benchmarks.gpu` writes."""
        values = json.loads(path.read_text())
        return cls(**{**values, "task": Task(**values["task"]), "counts": Counts(**values["counts"])})

    @property
    def ranks(self) -> Ranks:
        device = torch.device("cuda", 0) if self.device == "cuda" else torch.device("cpu")
        return Ranks.alone(device)

    @property
    def card(self) -> Card | None:
        return card_of(torch.cuda.get_device_name(0) if self.device == "cuda" else "", self.peaks)

    @property
    def channels_last(self) -> bool:
        way = WAYS[self.task.way]
        return self.layout if way.layout is None else way.layout


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of a loop: `take` runs one and returns its loss, which waits for the device.

    `take_synthetic` runs one on a batch that needs no loading.
    """

    take: Callable[[], float]
    take_synthetic: Callable[[], float]
    amp: str


Maker = Callable[[Settings, int], Steps]


def stage_of(size: int, batch: int) -> StageConfig:
    """Return the stage to train: recipe A's augmentation, recipe C's loss, Adam."""
    return StageConfig.model_validate(
        {
            "name": "gpu",
            "image_size": size,
            "global_batch": batch,
            "micro_batch": batch,
            "epochs": 1000,
            "augment": RECIPE_A,
            "loss": LOSS,
            "optim": {"name": "adam", "lr": 1e-4, "clip_norm": 1.0},
        }
    )


def learner_steps(settings: Settings, batch: int) -> Steps:
    """Return steps of the trainer, without its logs."""
    task, way, ranks = settings.task, WAYS[settings.task.way], settings.ranks
    stage = stage_of(task.size, batch)
    experiment = Experiment.model_validate(
        {
            "name": "gpu",
            "amp": way.amp,
            "model": {"encoder": task.network},
            "data": {"loader": way.loader, "channels_last": settings.channels_last, "threads": cores()},
            "runtime": {"compile": way.compile, "fused": True},
            "stages": [stage],
        }
    )
    configure(experiment.runtime)
    amp = resolve_amp(experiment.amp, ranks.device)
    learner = Learner(experiment, stage, ranks, amp, build_model(experiment.model, pretrained=False))
    learner.start_epoch(0)
    batches = films(settings, way.codec, experiment.data, stage)
    synthetic = films(settings, way.codec, experiment.data.model_copy(update={"loader": "synthetic"}), stage)
    done = itertools.count()

    def take(source: Iterator[Batch]) -> float:
        return learner.step(itertools.islice(source, 1), 1, next(done), seed_torch).losses[0]

    return Steps(lambda: take(batches), lambda: take(synthetic), amp)


def seed_torch(seed: int) -> None:
    torch.manual_seed(seed)


def films(settings: Settings, codec: str, data: DataConfig, stage: StageConfig) -> Iterator[Batch]:
    """Return batches of a stage from the configured loader, on the device."""
    shards = Shards(Path(settings.shards[codec]))
    plan = EpochPlan(train_on_repeated(shards, max(PLANNED, stage.global_batch)), stage, 0, 1)
    input_spec = InputSpec(stage.image_size, 3, data, settings.ranks.device_id)
    return train_batches(shards, plan, input_spec, rank=0, epoch=0, step=0)


def plain_steps(settings: Settings, batch: int) -> Steps:
    """Return steps of a loop as public solutions write it (recipe C): no autocast, IEEE float32, the loss read back.

    Its input has every advantage: one worker process per core, and pinned memory.
    """
    task, device = settings.task, settings.ranks.device
    configure(RuntimeConfig(tf32=False))
    model = build_model(ModelConfig(encoder=task.network), pretrained=False).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    stage = stage_of(task.size, batch)
    shards = Shards(Path(settings.shards["png"]))
    rows = np.resize(np.arange(len(shards), dtype=np.int64), max(PLANNED, 64 * batch))
    loader = DataLoader(
        ReferenceFilms(shards, rows, task.size, recipe_c()),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=cores(),
        worker_init_fn=single_threaded,
        multiprocessing_context="fork",
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    batches = ((images, masks) for _ in itertools.count() for images, masks, _ in loader)
    synthetic = (torch.randn(batch, 3, task.size, task.size), torch.zeros(batch, 1, task.size, task.size))

    def take(images: torch.Tensor, masks: torch.Tensor) -> float:
        images, masks = images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        loss = combo_loss(model(images), masks, stage.loss)["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss)

    return Steps(lambda: take(*next(batches)), lambda: take(*synthetic), "float32")


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0))


def timed(take: Callable[[], object], warm: int, count: int) -> list[float]:
    """Return the durations of `count` steps, after `warm` others, in seconds."""
    for _ in range(warm):
        take()
    durations = []
    for _ in range(count):
        synchronize()
        start = time.perf_counter()
        take()
        synchronize()
        durations.append(time.perf_counter() - start)
    return durations


def rate_facts(durations: Sequence[float], batch: int) -> dict[str, Any]:
    """Return the columns of a row that follow from the durations of its steps."""
    return {
        "batch": batch,
        "images_per_s": batch * len(durations) / sum(durations),
        "step_s": statistics.median(durations),
        "steps": len(durations),
        "threads": cores(),
    }


def synchronize() -> None:
    """Wait for the GPU if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
