"""Optimizer steps that `benchmarks.gpu` times: those of the project's trainer, and those of a plain loop."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Before any import of albumentations: it would ask the network for a newer version of itself.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.gpu_cards import Card, card_of
from benchmarks.gpu_store import WAYS, Task
from benchmarks.input_pipeline import RECIPE_A, _calm, _repeated
from benchmarks.plain_loop import PlainFilms
from pneumo_dist.config.experiment import DataConfig, Experiment, RuntimeConfig, StageConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import train_batches
from pneumo_dist.data.plan import EpochPlan
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.precision import configure, resolve_amp
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Learner
from shards.dataset.table import Shards

# Films of the plan: those that there are, named again and again.
PLANNED = 4096
LOSS = {"bce": 3, "dice": 1, "focal": 4}


@dataclass(frozen=True)
class Settings:
    """How a row is measured: task, device, folders of shards by codec, and what rows before it have found.

    `batch` None is the largest that fits, `most_batch` at most; `peaks` overrides the table of cards. `encoder` takes
    the place of a shipped experiment's own.
    """

    task: Task
    device: str
    shards: dict[str, str]
    layout: bool
    batch: int | None
    warm: int
    steps: int
    profiled: int
    most_batch: int
    peaks: str | None
    encoder: str | None = None

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read settings as `benchmarks.gpu` writes them."""
        found = json.loads(path.read_text())
        return cls(**{**found, "task": Task(**found["task"])})

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
    """Optimizer steps of a loop: `take` takes one and returns its loss, which waits for the device.

    `take_synthetic` takes one on a batch that is there already.
    """

    take: Callable[[], float]
    take_synthetic: Callable[[], float]
    amp: str


Maker = Callable[[Settings, int], Steps]


def stage_of(size: int, batch: int) -> StageConfig:
    """Return the stage that is trained: recipe A's augmentation, recipe C's loss, Adam."""
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
    """Return steps of the project's trainer, without its logs."""
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
    ready = films(settings, way.codec, experiment.data.model_copy(update={"loader": "synthetic"}), stage)
    done = itertools.count()

    def take(source: Iterator[Batch]) -> float:
        return learner.step(itertools.islice(source, 1), 1, next(done), torch.manual_seed).losses[0]

    return Steps(lambda: take(batches), lambda: take(ready), amp)


def films(settings: Settings, codec: str, data: DataConfig, stage: StageConfig) -> Iterator[Batch]:
    """Return the batches of a stage, by the configured loader, on the device."""
    shards = Shards(Path(settings.shards[codec]))
    plan = EpochPlan(_repeated(shards, max(PLANNED, stage.global_batch)), stage, 0, 1)
    input_spec = InputSpec(stage.image_size, 3, data, settings.ranks.device_id)
    return train_batches(shards, plan, input_spec, rank=0, epoch=0, step=0)


def plain_steps(settings: Settings, batch: int) -> Steps:
    """Return steps of a loop as public solutions write it (recipe C): no autocast, IEEE float32, the loss shown.

    Its input is generous: as many worker processes as there are cores, and pinned memory.
    """
    task, device = settings.task, settings.ranks.device
    configure(RuntimeConfig(tf32=False))
    model = build_model(ModelConfig(encoder=task.network), pretrained=False).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    stage = stage_of(task.size, batch)
    shards = Shards(Path(settings.shards["png"]))
    rows = np.resize(np.arange(len(shards), dtype=np.int64), max(PLANNED, 64 * batch))
    loader = DataLoader(
        PlainFilms(shards, rows, task.size, training=True),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=cores(),
        worker_init_fn=_calm,
        multiprocessing_context="fork",
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    batches = ((images, masks) for _ in itertools.count() for images, masks, _ in loader)
    ready = (torch.randn(batch, 3, task.size, task.size), torch.zeros(batch, 1, task.size, task.size))

    def take(images: torch.Tensor, masks: torch.Tensor) -> float:
        images, masks = images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        loss = combo_loss(model(images), masks, stage.loss)["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss)

    return Steps(lambda: take(*next(batches)), lambda: take(*ready), "float32")


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def timed(take: Callable[[], object], warm: int, count: int) -> list[float]:
    """Return the seconds of `count` steps after `warm` others."""
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


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
