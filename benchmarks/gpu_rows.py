"""Measure one row of `benchmarks.gpu`, which starts this module as a separate process.

python -m benchmarks.gpu_rows SETTINGS.json ROW.json
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.common import single_threaded
from benchmarks.gpu_batch import largest_batch, release_memory
from benchmarks.gpu_cards import Card
from benchmarks.gpu_kernels import kernel_facts
from benchmarks.gpu_roofline import Operator, roofline_seconds, seconds_by_name, total_flops, trace
from benchmarks.gpu_shipped import shipped_row
from benchmarks.gpu_steps import (
    Maker,
    Settings,
    cores,
    films,
    learner_steps,
    plain_steps,
    rate_facts,
    stage_of,
    synchronize,
    timed,
)
from benchmarks.gpu_store import LOADER, LOADERS, SHIPPED_WAYS, WAYS
from benchmarks.reference_films import ReferenceFilms, recipe_a
from pneumo_dist.config.experiment import DataConfig
from shards.dataset.table import Shards
from shards.parent import die_with_parent

LOADER_BATCH = 16
# Enough batches that those which workers have prefetched do not count as work done in the time measured.
WARM_PER_WORKER, TIMED_PER_WORKER = 3, 6
SHOWN_OPERATORS = 8


def main() -> int:
    die_with_parent()
    settings = Settings.read(Path(sys.argv[1]))
    single_threaded()
    if settings.device == "cuda":
        torch.cuda.set_device(0)
    if settings.task.network == LOADER:
        row = loader_row(settings)
    elif settings.task.way in SHIPPED_WAYS:
        row = shipped_row(settings)
    else:
        row = network_row(settings)
    Path(sys.argv[2]).write_text(json.dumps(row))
    return 0


def network_row(settings: Settings) -> dict[str, Any]:
    """Measure steps of a network: speed, memory and idle share, and the roofline of an eager step."""
    way = WAYS[settings.task.way]
    make: Maker = plain_steps if way.loader == "plain" else learner_steps
    # All of the trainer's ways use the batch that the first one determined.
    batch = settings.batch or largest_batch(settings, make)
    release_memory()
    steps = make(settings, batch)
    durations = timed(steps.take, settings.counts.warm, settings.counts.steps)
    row = rate_facts(durations, batch) | {"amp": steps.amp, "channels_last": settings.channels_last}
    if settings.device == "cuda":
        row["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["reserved_memory_gb"] = torch.cuda.max_memory_reserved() / 1e9
        row |= kernel_facts(steps.take, settings.counts.profiled)
    if not way.compile:
        row |= roofline_facts(trace(steps.take_synthetic), settings.card, batch, tf32=way.loader != "plain")
    return row


def roofline_facts(operators: Sequence[Operator], card: Card | None, batch: int, tf32: bool) -> dict[str, Any]:
    """Return a step's work per image and, for a known card, the rate of its roofline."""
    facts: dict[str, Any] = {
        "operators": len(operators),
        "gflop_per_image": total_flops(operators) / batch / 1e9,
        "gb_per_image": sum(operator.bytes for operator in operators) / batch / 1e9,
    }
    if card is None:
        return facts
    bound = roofline_seconds(operators, card, tf32)
    shares = {name: seconds / bound for name, seconds in seconds_by_name(operators, card, tf32).items()}
    return facts | {
        "roofline_images_per_s": batch / bound,
        "peak_half_tflops": card.half,
        "bandwidth_gb_per_s": card.bandwidth,
        "peaks_from": card.source,
        "roofline_shares": dict(itertools.islice(shares.items(), SHOWN_OPERATORS)),
    }


def loader_row(settings: Settings) -> dict[str, Any]:
    """Measure how many decoded, augmented images per second a loader delivers from page cache."""
    codec, threads, batch = LOADERS[settings.task.way], cores(), min(LOADER_BATCH, settings.counts.most_batch)
    batches: Iterator[Any]
    if settings.task.way.startswith("plain"):
        batches, prefetched = plain_batches(settings, codec, batch, threads), threads
    else:
        data = DataConfig(loader="dali", threads=threads)
        batches, prefetched = films(settings, codec, data, stage_of(settings.task.size, batch)), data.prefetch
    warm = max(settings.counts.warm, WARM_PER_WORKER * prefetched)
    count = max(settings.counts.steps, TIMED_PER_WORKER * prefetched)
    for _ in range(warm):
        next(batches)
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    synchronize()
    spent = time.perf_counter() - start
    return {"batch": batch, "threads": threads, "batches": count, "images_per_s": batch * count / spent}


def plain_batches(settings: Settings, codec: str, batch: int, workers: int) -> Iterator[Any]:
    """Return batches of recipe A as public solutions load them, with one worker process per core."""
    shards = Shards(Path(settings.shards[codec]))
    films = ReferenceFilms(shards, np.arange(len(shards)), settings.task.size, recipe_a())
    rows = itertools.cycle(range(len(shards)))
    batches = ([next(rows) for _ in range(batch)] for _ in itertools.count())
    loader: Any = DataLoader(
        films,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=single_threaded,
        multiprocessing_context="fork",
    )
    return iter(loader)


if __name__ == "__main__":
    sys.exit(main())
