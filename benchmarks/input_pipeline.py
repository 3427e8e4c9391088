"""Measure whether the loaders are fast enough, starve the network, grow in memory or start late.

    python -m benchmarks.input_pipeline --work /tmp/input-benchmark
    python -m benchmarks.input_pipeline --work /tmp/input-benchmark --only rates --repeats 9
    python -m benchmarks.input_pipeline --work /tmp/input-benchmark --only training,memory,start

Run it from the root of the repository. Films are phantoms in the SIIM layout, made once in the --work folder; every
run rebuilds the shards, so they fit the code. All figures come from one run on the CPU. What is compared takes turns,
each in a fresh process, so other load on the machine affects everything alike: compare the ratios of the medians, not
the images per second. Run nothing else at the same time: two threads on two cores leave no room.

The reference is what public solutions do: torch's DataLoader, cv2.imdecode in colour, albumentations with the resize
last. It applies the augmentation of recipe A (A. Anuar, 2019) in the same order, with the equivalent arguments of
albumentations 2.0.8. Where the versions differ: ElasticTransform has no alpha_affine (alpha 120 and sigma 6 remain),
OpticalDistortion has no shift_limit, contrast and brightness are one transform with the other limit at 0, and edges
mirror the film, as in configs/recipe_a.yaml. It reads the same shards in the same order, and its float32 batches have
the same shape. With the resize first, it augments smaller images than the recipe does, so that row has no target.
"""

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks import ROOT
from benchmarks.common import (
    FilmSet,
    Report,
    Value,
    cpu_seconds,
    in_fresh_process,
    machine,
    memory_mib,
    parser_of,
    single_threaded,
    step_times,
    train_on_all,
    train_on_repeated,
)
from benchmarks.input_maps import measure_maps
from benchmarks.reference_films import RECIPE_A, ReferenceFilms, recipe_a
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import train_batches
from pneumo_dist.data.plan import EpochPlan, FoldSplit
from shards.dataset.table import Shards

BATCH = 8
# More than any way prefetches.
WARM_BATCHES = 8
SMALL = 256
TRAINING = (
    "model.encoder_weights=null",
    f"image_size={SMALL}",
    "global_batch=2",
    "micro_batch=2",
    "eval_batch=2",
    "epochs=1",
    "sample_rate=0.35",
    "data.threads=1",
)
WARM_STEPS = 3
PARTS = ("rates", "maps", "training", "memory", "start")
OURS = ("dali", "torch")
NOT_ELASTIC = "dali, grid and optical distortion alone"
LAST, FIRST = "albumentations, resize last", "albumentations, resize first"
CODECS = {"png": 1.4, "jpeg": 1.5}  # minimum ratio of DALI's rate to the reference's
MEMORY_EPOCHS, MEMORY_REPEATS = 20, 8
START_FILMS, START_EPOCH, START_STEP = 10_675, 50, 37


@dataclass(frozen=True)
class Pace:
    """Images or steps per second, CPU milliseconds per image, and the share of time spent waiting for batches."""

    rate: float
    cpu_ms: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class Input:
    """Input of a turn: folder of shards, side of images in pixels, number of threads or workers, and random seed."""

    folder: Path
    size: int
    threads: int
    seed: int = 0

    def plan(self, stage: StageConfig, split: FoldSplit | None = None, world: int = 1) -> EpochPlan:
        return EpochPlan(split or train_on_all(Shards(self.folder)), stage, self.seed, world)

    def stage(self, epochs: int, **changes: Any) -> StageConfig:
        values = {"epochs": epochs, "global_batch": BATCH, "micro_batch": BATCH, "augment": RECIPE_A, **changes}
        return StageConfig(name="benchmark", image_size=self.size, **values)

    def spec(self, loader: str) -> InputSpec:
        return InputSpec(self.size, 3, DataConfig.model_validate({"loader": loader, "threads": self.threads}))


def main() -> int:
    parser = parser_of(__doc__, "input", PARTS)
    parser.add_argument("--films", type=int, default=48, help="number of phantom films (default 48)")
    parser.add_argument("--size", type=int, default=1024, help="side of films and stored images (default 1024)")
    parser.add_argument("--input", type=int, default=512, help="side of the network's input (default 512)")
    parser.add_argument("--threads", type=int, default=2, help="number of DALI threads or workers (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way to load (default 5)")
    parser.add_argument("--training-repeats", type=int, default=3, help="turns of each way to train (default 3)")
    parser.add_argument("--torch-threads", type=int, default=2, help="torch threads in training (default 2)")
    parser.add_argument("--batches", type=int, default=32, help="batches of 8 in a turn of the rates (default 32)")
    arguments = parser.parse_args()
    single_threaded()
    versions = machine(torch, cv2, albumentations)
    print(f"{versions}, {arguments.films} films of {arguments.size} px")
    report = Report()
    measures = {
        "rates": measure_rates,
        "maps": lambda report, _: measure_maps(report),
        "training": measure_training,
        "memory": measure_memory,
        "start": measure_start,
    }
    for part in arguments.only:
        measures[part](report, arguments)
    report.finish()
    return 0


def _in_turns(ways: dict[str, Callable[[int], Value]], repeats: int) -> dict[str, list[Value]]:
    results: dict[str, list[Value]] = {way: [] for way in ways}
    for turn in range(repeats):
        for way, run in ways.items():
            results[way].append(run(turn))
    return results


# --- rates


def measure_rates(report: Report, arguments: argparse.Namespace) -> None:
    """Time the loaders alone, in steady state, from page cache."""
    for codec, least in CODECS.items():
        folder = FilmSet(arguments.films, arguments.size).shards(arguments.work, codec=codec)

        def run(way: str, turn: int, folder: Path = folder) -> Pace:
            source = Input(folder, arguments.input, arguments.threads, seed=turn)
            return in_fresh_process(load_turn, source, way, arguments.batches)

        ways = (*OURS, NOT_ELASTIC, LAST, FIRST)
        turns = _in_turns({way: partial(run, way) for way in ways}, arguments.repeats)
        report.title(
            f"{codec}, {arguments.size} px to {arguments.input} px, recipe A, batch {BATCH}, {arguments.threads} "
            f"threads or workers, median of {arguments.repeats} turns of {arguments.batches} batches"
        )
        for way, paces in turns.items():
            text = f"{_rate(paces):.1f} images/s, CPU {_cpu_ms(paces):.1f} ms"
            report.row(way, text, _range([pace.rate for pace in paces]))
        for way, other in (*itertools.product(OURS, (LAST, FIRST)), ("dali", NOT_ELASTIC)):
            value = _rate(turns[way]) / _rate(turns[other])
            text = f"{value:.2f} x, CPU {_cpu_ms(turns[way]) / _cpu_ms(turns[other]):.2f} x"
            goal = (f">= {least} x", value >= least) if (way, other) == ("dali", LAST) else ("", None)
            report.row(f"{codec}: {way} / {other}", text, *goal)


def _rate(paces: Sequence[Pace]) -> float:
    return statistics.median(pace.rate for pace in paces)


def _cpu_ms(paces: Sequence[Pace]) -> float:
    return statistics.median(pace.cpu_ms for pace in paces)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g}-{max(values):.3g}"


def load_turn(source: Input, way: str, count: int) -> Pace:
    """Measure the images per second of one way, and its CPU milliseconds per image, over `count` batches."""
    total = WARM_BATCHES + count
    is_ours = way not in (LAST, FIRST)
    batches = _ours(source, way) if is_ours else _reference(source, total, resize_first=way == FIRST)
    for _ in range(WARM_BATCHES):
        next(batches)
    start, cpu_start = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        next(batches)
    images, seconds, cpu_time = count * BATCH, time.perf_counter() - start, cpu_seconds() - cpu_start
    if not is_ours:
        for _ in batches:  # the reference's workers may abort if they are stopped while busy
            pass
    return Pace(images / seconds, cpu_ms=cpu_time / images * 1e3)


def _ours(source: Input, way: str) -> Iterator[Batch]:
    loader, distortion = way, RECIPE_A.distortion
    if way == NOT_ELASTIC:
        loader, distortion = "dali", distortion.model_copy(update={"elastic": None})
    augment = RECIPE_A.model_copy(update={"distortion": distortion})
    plan = source.plan(source.stage(epochs=1000, augment=augment))
    return train_batches(Shards(source.folder), plan, source.spec(loader), rank=0, epoch=0, step=0)


def _reference(source: Input, count: int, resize_first: bool) -> Iterator[Any]:
    """Yield `count` batches, and enough further ones to keep the workers busy until then."""
    torch.manual_seed(source.seed)
    plan, shards = source.plan(source.stage(epochs=1000)), Shards(source.folder)
    batches = [rows.tolist() for _, _, rows in itertools.islice(plan.micro_batches(0, 0, 0), count + WARM_BATCHES)]
    films = ReferenceFilms(shards, np.arange(len(shards)), source.size, recipe_a(), resize_first)
    workers = source.threads
    return iter(DataLoader(films, batch_sampler=batches, num_workers=workers, worker_init_fn=single_threaded))


# --- training


def measure_training(report: Report, arguments: argparse.Namespace) -> None:
    """Compare optimizer steps of `pneumo_dist train` on films with those on synthetic batches."""
    folder = FilmSet(arguments.films, arguments.size).shards(arguments.work, SMALL)

    def run(loader: str, turn: int) -> Pace:
        return in_fresh_process(train_turn, folder, loader, arguments.torch_threads)

    turns = _in_turns({way: partial(run, way) for way in ("dali", "synthetic")}, arguments.training_repeats)
    report.title(
        f"Training seunet from shards of {SMALL} px, batch 2, recipe A, CPU, threads: torch {arguments.torch_threads}, "
        f"DALI 1; median of {arguments.training_repeats} turns; waiting includes the pipeline's start"
    )
    for way, paces in turns.items():
        wait = statistics.median(pace.waited for pace in paces)
        report.row(way, f"{_rate(paces):.3f} steps/s, waited {wait:.1%}", _range([pace.rate for pace in paces]))
    value = _rate(turns["dali"]) / _rate(turns["synthetic"])
    report.row("step rate, dali / synthetic", f"{value:.3f} x", ">= 0.95 x", value >= 0.95)


def train_turn(folder: Path, loader: str, threads: int) -> Pace:
    """Train an epoch; return its steps per second without the first steps, and the share of time it waited."""
    from pneumo_dist.config.load import dump_resolved, load_config
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.runs.fold_run import FoldRun
    from pneumo_dist.train.fold import train_fold

    # One per core by default, in addition to the default of data.threads: what a user with two cores gets.
    torch.set_num_threads(threads)
    config = load_config(ROOT / "configs" / "seunet.yaml", [*TRAINING, f"data.loader={loader}"])
    experiment = config.experiment.model_copy(update={"stages": config.experiment.stages[:1]})
    stage = experiment.stages[0]
    ranks = Ranks.alone()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        train_fold(FoldRun(experiment, 0, Shards(folder), Path(out), ranks), lambda _: dump_resolved(config))
        times = step_times(Path(out) / stage.name)[WARM_STEPS:]
        record = json.loads((Path(out) / stage.name / "metrics.jsonl").read_text().splitlines()[-1])
    return Pace((len(times) - 1) / (times[-1] - times[0]), waited=record["data_wait_share"])


# --- memory


def measure_memory(report: Report, arguments: argparse.Namespace) -> None:
    """Compare the memory of a process in its first epoch with that in later epochs."""
    films = MEMORY_REPEATS * arguments.films
    report.title(f"VmRSS of the training process, after each batch, {MEMORY_EPOCHS} epochs of {films} films, recipe A")
    folder = FilmSet(arguments.films, arguments.size).shards(arguments.work)
    for loader in OURS:
        epochs = in_fresh_process(memory_turn, Input(folder, SMALL, arguments.threads), loader)
        usual, most = [[measure(epoch) for epoch in epochs] for measure in (statistics.median, max)]
        growth = max(usual[1:]) / usual[0] - 1
        text = f"{usual[0]:.1f} MB, then at most {max(usual[1:]):.1f} MB, last {usual[-1]:.1f} MB"
        report.row(f"{loader}: median of epoch 1", text)
        report.row(f"{loader}: growth of the median", f"{growth:+.2%}", "<= 2 %", growth <= 0.02)
        report.row(f"{loader}: maximum in epoch 1, in all", f"{most[0]:.1f} MB, {max(most):.1f} MB")


def memory_turn(source: Input, loader: str) -> list[list[float]]:
    """Return the memory of this process after each batch of each epoch, in MiB.

    The plan repeats the films, because the first epoch would otherwise be too short to reach its full memory.
    """
    shards = Shards(source.folder)
    plan = source.plan(source.stage(MEMORY_EPOCHS), train_on_repeated(shards, MEMORY_REPEATS * len(shards)))
    batches = train_batches(shards, plan, source.spec(loader), rank=0, epoch=0, step=0)
    steps = [plan.steps(epoch) for epoch in range(MEMORY_EPOCHS)]
    return [[memory_mib("VmRSS") for _ in itertools.islice(batches, count)] for count in steps]


# --- start


def measure_start(report: Report, arguments: argparse.Namespace) -> None:
    """Time a start in the middle of a long stage, as after a requeue."""
    folder = FilmSet(arguments.films, arguments.size).shards(arguments.work)
    source = Input(folder, arguments.input, arguments.threads)
    report.title(
        f"From building the plan ({START_FILMS:,} films, rank 1 of 2) to the first batch of epoch {START_EPOCH}, step "
        f"{START_STEP}, in a fresh process after imports, median of {arguments.repeats}"
    )

    def run(loader: str, turn: int) -> float:
        return in_fresh_process(start_turn, source, loader)

    for way, seconds in _in_turns({way: partial(run, way) for way in OURS}, arguments.repeats).items():
        value = statistics.median(seconds)
        report.row(way, f"{value:.2f} s, at most {max(seconds):.2f} s", "< 2 s", value < 2)


def start_turn(source: Input, loader: str) -> float:
    """Return the seconds to the first batch of a plan that repeats the films many times."""
    import pneumo_dist.data.dali
    import pneumo_dist.data.torch_loader  # noqa: F401

    shards = Shards(source.folder)
    split = train_on_repeated(shards, START_FILMS)
    start = time.perf_counter()
    stage = source.stage(epochs=60, global_batch=2 * BATCH, sample_rate=0.8, sample_rate_end=0.4, size_classes=4)
    plan = source.plan(stage, split, world=2)
    next(train_batches(shards, plan, source.spec(loader), rank=1, epoch=START_EPOCH, step=START_STEP))
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
