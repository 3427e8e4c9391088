"""What a row of `benchmarks.gpu` measures; one process measures one row.

python -m benchmarks.gpu_rows SETTINGS.json FOUND.json
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from benchmarks.gpu_batch import forget, largest_batch
from benchmarks.gpu_cards import Card
from benchmarks.gpu_kernels import kernel_facts
from benchmarks.gpu_roofline import Operator, roofline_seconds, seconds_by_name, total_flops, trace
from benchmarks.gpu_shipped import shipped_row
from benchmarks.gpu_steps import Maker, Settings, cores, films, learner_steps, plain_steps, stage_of, synchronize, timed
from benchmarks.gpu_store import LOADER, LOADERS, SHIPPED_WAYS, WAYS
from benchmarks.input_pipeline import Films, UsualFilms, _calm
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.ranks.processes import die_with_parent
from shards.dataset.table import Shards

LOADER_BATCH = 16
# Worker processes that are far ahead would be measured instead of the rate at which they work.
WARM_PER_WORKER, TIMED_PER_WORKER = 3, 6
SHOWN_OPERATORS = 8


def main() -> int:
    die_with_parent()
    settings = Settings.read(Path(sys.argv[1]))
    cv2.setNumThreads(0)
    if settings.device == "cuda":
        torch.cuda.set_device(0)
    if settings.task.network == LOADER:
        found = loader_row(settings)
    elif settings.task.way in SHIPPED_WAYS:
        found = shipped_row(settings)
    else:
        found = network_row(settings)
    Path(sys.argv[2]).write_text(json.dumps(found))
    return 0


def network_row(settings: Settings) -> dict[str, Any]:
    """Measure steps of a network: speed, memory, idle share, and the roofline where the step is an eager one."""
    way = WAYS[settings.task.way]
    make: Maker = plain_steps if way.loader == "plain" else learner_steps
    # The trainer's ways are compared at one batch, which the first of them has found.
    batch = settings.batch or largest_batch(settings, make)
    forget()
    steps = make(settings, batch)
    durations = timed(steps.take, settings.warm, settings.steps)
    found: dict[str, Any] = {
        "batch": batch,
        "images_per_s": batch * len(durations) / sum(durations),
        "step_s": statistics.median(durations),
        "steps": len(durations),
        "threads": cores(),
        "amp": steps.amp,
        "channels_last": settings.channels_last,
    }
    if settings.device == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found["reserved_memory_gb"] = torch.cuda.max_memory_reserved() / 1e9
        found |= kernel_facts(steps.take, settings.profiled)
    if not way.compile:
        found |= roofline_facts(trace(steps.take_synthetic), settings.card, batch, tf32=way.loader != "plain")
    return found


def roofline_facts(operators: Sequence[Operator], card: Card | None, batch: int, tf32: bool) -> dict[str, Any]:
    """Return a step's work per image, and the rate at which the card's limits would let it run."""
    found: dict[str, Any] = {
        "operators": len(operators),
        "gflop_per_image": total_flops(operators) / batch / 1e9,
        "gb_per_image": sum(operator.bytes for operator in operators) / batch / 1e9,
    }
    if card is None:
        return found
    bound = roofline_seconds(operators, card, tf32)
    shares = {name: seconds / bound for name, seconds in seconds_by_name(operators, card, tf32).items()}
    return found | {
        "roofline_images_per_s": batch / bound,
        "peak_half_tflops": card.half,
        "bandwidth_gb_per_s": card.bandwidth,
        "peaks_from": card.source,
        "roofline_shares": dict(itertools.islice(shares.items(), SHOWN_OPERATORS)),
    }


def loader_row(settings: Settings) -> dict[str, Any]:
    """Measure how many decoded and augmented images a second a loader hands over, from page cache."""
    codec, threads, batch = LOADERS[settings.task.way], cores(), min(LOADER_BATCH, settings.most_batch)
    batches: Iterator[Any]
    if settings.task.way.startswith("plain"):
        batches, ahead = plain_batches(settings, codec, batch, threads), threads
    else:
        data = DataConfig(loader="dali", threads=threads)
        batches, ahead = films(settings, codec, data, stage_of(settings.task.size, batch)), data.prefetch
    warm = max(settings.warm, WARM_PER_WORKER * ahead)
    count = max(settings.steps, TIMED_PER_WORKER * ahead)
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
    """Return batches of recipe A as public solutions make them, from one worker process a core."""
    folder = Path(settings.shards[codec])
    usual = UsualFilms(Films(folder, settings.task.size, workers), resize_first=False)
    rows = itertools.cycle(range(len(Shards(folder))))
    listed = ([next(rows) for _ in range(batch)] for _ in itertools.count())
    loader: Any = DataLoader(
        usual, batch_sampler=listed, num_workers=workers, worker_init_fn=_calm, multiprocessing_context="fork"
    )
    return iter(loader)


if __name__ == "__main__":
    sys.exit(main())
