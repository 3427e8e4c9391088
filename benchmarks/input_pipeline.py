"""How fast the loaders are, and whether they starve the network, grow in memory or start late.

    python -m benchmarks.input_pipeline --work /tmp/input-benchmark
    python -m benchmarks.input_pipeline --work /tmp/input-benchmark --only rates --repeats 9
    python -m benchmarks.input_pipeline --work /tmp/input-benchmark --only training,memory,start

Run it from the root of the repository. Films are synthetic ones in the SIIM layout, made once in the --work folder;
shards are built anew, so that they fit the code. All figures come from one run on the CPU; those that are compared are
medians of turns, each in a fresh process, so that a noisy neighbour hits all of them; compare the ratios, not the
images per second. Nothing else may run beside it: two threads on two cores leave no room.

The reference is what public solutions do: torch's DataLoader, cv2.imdecode in colour, albumentations with the resize
last. It does the augmentation of recipe A (A. Anuar, 2019) in its order, with the arguments that mean it in
albumentations 2.0.8. Where versions differ: its ElasticTransform has no alpha_affine (alpha 120 and sigma 6 remain),
its OpticalDistortion no shift_limit; contrast and brightness are one transform with the other part at 0; edges mirror
the film, as in configs/recipe_a.yaml. It reads the same shards in the same order, and its float32 batches have the same
shape. With the resize first it works on smaller pictures than the recipe says: given without a target.
"""

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

# Before any import of albumentations: it would ask the network for a newer version of itself.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset

from benchmarks.shards import ROOT, SALT, Report, _films, _sources, _status
from pneumo_dist.config.augment import AugmentConfig, Distortion
from pneumo_dist.config.experiment import DataConfig, StageConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import train_batches
from pneumo_dist.data.plan import EpochPlan, FoldSplit
from shards.build.build import build
from shards.build.options import BuildOptions
from shards.dataset.table import Shards

RECIPE_A = AugmentConfig(border="reflect", distortion=Distortion(p=0.3))
BATCH = 8
# More than all ways make ahead.
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
PARTS = ("rates", "training", "memory", "start")
OURS = ("dali", "torch")
LAST, FIRST = "albumentations, resize last", "albumentations, resize first"
CODECS = {"png": 1.4, "jpeg": 1.5}  # and how many times the reference's rate DALI's must be
MEMORY_EPOCHS, MEMORY_REPEATS = 20, 8
START_FILMS, START_EPOCH, START_STEP = 10_675, 50, 37
Value = TypeVar("Value")


@dataclass(frozen=True)
class Pace:
    """Images or steps a second; CPU milliseconds an image; share of the time that was spent waiting for batches."""

    rate: float
    processor: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class Films:
    """What a turn loads: a folder of shards, the input's side, threads or workers, and the seed of its draws."""

    folder: Path
    size: int
    threads: int
    seed: int = 0

    def plan(self, stage: StageConfig, split: FoldSplit | None = None, world: int = 1) -> EpochPlan:
        return EpochPlan(split or _split(Shards(self.folder)), stage, self.seed, world)

    def stage(self, epochs: int, **changes: Any) -> StageConfig:
        chosen = {"epochs": epochs, "global_batch": BATCH, "micro_batch": BATCH, "augment": RECIPE_A, **changes}
        return StageConfig(name="benchmark", image_size=self.size, **chosen)

    def input(self, loader: str) -> InputSpec:
        return InputSpec(self.size, 3, DataConfig.model_validate({"loader": loader, "threads": self.threads}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/input-benchmark"), help="folder for films and shards")
    parser.add_argument("--films", type=int, default=48, help="synthetic films (default 48)")
    parser.add_argument("--size", type=int, default=1024, help="side of films and stored images (default 1024)")
    parser.add_argument("--input", type=int, default=512, help="side of the network's input (default 512)")
    parser.add_argument("--threads", type=int, default=2, help="DALI threads, or worker processes (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way to load (default 5)")
    parser.add_argument("--training-repeats", type=int, default=3, help="turns of each way to train (default 3)")
    parser.add_argument("--torch-threads", type=int, default=2, help="torch's own when training (default 2)")
    parser.add_argument("--batches", type=int, default=32, help="batches of 8 that a turn of the rates counts (32)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {','.join(PARTS)} (all)")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--only {arguments.only}: choose from {','.join(PARTS)}")
    cv2.setNumThreads(0)
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}, albumentations "
        f"{A.__version__}, {platform.machine()}, {os.cpu_count()} cores, {arguments.films} films of {arguments.size} px"
    )
    report = Report()
    measures = {"rates": measure_rates, "training": measure_training, "memory": measure_memory, "start": measure_start}
    for part in parts:
        measures[part](report, arguments)
    print(f"\n{len(report.missed)} targets missed{': ' if report.missed else ''}{'; '.join(report.missed)}")
    return 0


def _shards(arguments: argparse.Namespace, codec: str, size: int) -> Path:
    return built_shards(arguments.work, arguments.films, arguments.size, codec, size)


def built_shards(work: Path, films: int, film_size: int, codec: str, size: int) -> Path:
    """Build so many films with a side of `film_size` pixels, stored with `size`, once a run; return the folder."""
    out = work / f"shards-{codec}-{films}-{film_size}-{size}"
    if out not in _BUILT:
        made = _films(work, films, film_size)
        shutil.rmtree(out, ignore_errors=True)
        build(_sources(made), out, BuildOptions(image_size=size, codec=codec), SALT)
        _BUILT.add(out)
    return out


_BUILT: set[Path] = set()


def _split(shards: Shards) -> FoldSplit:
    """Train on all films, validate on none."""
    rows = np.arange(len(shards), dtype=np.int64)
    positive = shards.column("has_mask").astype(bool)
    areas = shards.column("mask_area")[positive]
    return FoldSplit(rows, rows[positive], rows[~positive], rows[:0], areas)


def _repeated(shards: Shards, count: int) -> FoldSplit:
    """Train on `count` films, 22 % of them positive, by naming the few that there are again and again."""
    few, positives = _split(shards), count * 2 // 9
    return FoldSplit(
        np.resize(few.train, count),
        np.resize(few.positives, positives),
        np.resize(few.negatives, count - positives),
        few.validation,
        np.resize(few.areas, positives),
    )


def _alone(call: Callable[..., Value], *arguments: object) -> Value:
    """Return what a call returns in a fresh process."""
    # A pool's workers may not have children of their own; those of an executor may.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), cv2.setNumThreads, (0,)) as pool:
        return pool.submit(call, *arguments).result()


def _in_turns(ways: dict[str, Callable[[int], Value]], repeats: int) -> dict[str, list[Value]]:
    taken: dict[str, list[Value]] = {way: [] for way in ways}
    for turn in range(repeats):
        for way, run in ways.items():
            taken[way].append(run(turn))
    return taken


# --- rates


def measure_rates(report: Report, arguments: argparse.Namespace) -> None:
    """Time the loaders alone, in steady state, from page cache."""
    for codec, least in CODECS.items():
        folder = _shards(arguments, codec, arguments.size)

        def run(way: str, turn: int, folder: Path = folder) -> Pace:
            films = Films(folder, arguments.input, arguments.threads, seed=turn)
            return _alone(load_turn, films, way, arguments.batches)

        taken = _in_turns({way: partial(run, way) for way in (*OURS, LAST, FIRST)}, arguments.repeats)
        report.title(
            f"{codec}, {arguments.size} px to {arguments.input} px, recipe A, batch {BATCH}, {arguments.threads} "
            f"threads or workers, median of {arguments.repeats} turns of {arguments.batches} batches"
        )
        for way, paces in taken.items():
            text = f"{_rate(paces):.1f} images/s, CPU {_processor(paces):.1f} ms"
            report.row(way, text, _range([pace.rate for pace in paces]))
        for way, other in itertools.product(OURS, (LAST, FIRST)):
            value = _rate(taken[way]) / _rate(taken[other])
            text = f"{value:.2f} x, CPU {_processor(taken[way]) / _processor(taken[other]):.2f} x"
            goal = (f">= {least} x", value >= least) if (way, other) == ("dali", LAST) else ("", None)
            report.row(f"{codec}: {way} / {other}", text, *goal)


def _rate(paces: Sequence[Pace]) -> float:
    return statistics.median(pace.rate for pace in paces)


def _processor(paces: Sequence[Pace]) -> float:
    return statistics.median(pace.processor for pace in paces)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g}-{max(values):.3g}"


def load_turn(films: Films, way: str, count: int) -> Pace:
    """Return the images/s of one way, and its CPU milliseconds an image."""
    in_time = WARM_BATCHES + count
    batches = _ours(films, way) if way in OURS else _reference(films, in_time, resize_first=way == FIRST)
    for _ in range(WARM_BATCHES):
        next(batches)
    start, worked = time.perf_counter(), _processor_seconds()
    for _ in range(count):
        next(batches)
    images, spent, worked = count * BATCH, time.perf_counter() - start, _processor_seconds() - worked
    if way not in OURS:
        for _ in batches:  # the reference's workers may abort where they are ended at work
            pass
    return Pace(images / spent, processor=worked / images * 1e3)


def _ours(films: Films, loader: str) -> Iterator[Batch]:
    plan = films.plan(films.stage(epochs=1000))
    return train_batches(Shards(films.folder), plan, films.input(loader), rank=0, epoch=0, step=0)


def _reference(films: Films, count: int, resize_first: bool) -> Iterator[Any]:
    """Yield `count` batches, and as many more as keep the workers busy until then."""
    torch.manual_seed(films.seed)
    plan = films.plan(films.stage(epochs=1000))
    listed = [rows.tolist() for _, _, rows in itertools.islice(plan.micro_batches(0, 0, 0), count + WARM_BATCHES)]
    return iter(
        DataLoader(
            UsualFilms(films, resize_first), batch_sampler=listed, num_workers=films.threads, worker_init_fn=_calm
        )
    )


def _calm(_: int) -> None:
    cv2.setNumThreads(0)


class UsualFilms(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Films as public solutions make them: image (3, size, size) normalised, mask (1, size, size)."""

    def __init__(self, films: Films, resize_first: bool) -> None:
        self._shards = Shards(films.folder)
        moves, resize = recipe_a(), A.Resize(films.size, films.size)
        steps = [resize, *moves] if resize_first else [*moves, resize]
        self._transform = A.Compose([*steps, A.Normalize(), ToTensorV2()])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = (np.frombuffer(self._shards.read(index, member), np.uint8) for member in ("image", "mask"))
        colour, grey = cv2.imdecode(image, cv2.IMREAD_COLOR), cv2.imdecode(mask, cv2.IMREAD_GRAYSCALE)
        made = self._transform(image=colour, mask=grey)
        return made["image"], (made["mask"] > 127).float()[None]


def recipe_a() -> list[Any]:
    """Return recipe A's augmentation, in its order, in the words of albumentations 2.0.8."""
    mirrored = {"border_mode": cv2.BORDER_REFLECT_101}
    tone = [
        A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.2, p=1),
        A.RandomGamma(gamma_limit=(80, 120), p=1),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0, p=1),
    ]
    distortion = [
        A.ElasticTransform(alpha=120, sigma=6, p=1, **mirrored),
        A.GridDistortion(num_steps=5, distort_limit=0.3, p=1, **mirrored),
        A.OpticalDistortion(distort_limit=2, p=1, **mirrored),
    ]
    turn = A.Affine(
        scale=(0.9, 1.1), keep_ratio=True, translate_percent=(-0.0625, 0.0625), rotate=(-45, 45), p=0.5, **mirrored
    )
    return [A.HorizontalFlip(p=0.5), A.OneOf(tone, p=0.3), A.OneOf(distortion, p=0.3), turn]


def _processor_seconds() -> float:
    """Return the CPU time so far of this process and its worker processes."""
    workers = [worker.pid for worker in multiprocessing.active_children()]
    ticks = 0
    for number in (os.getpid(), *workers):
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# --- training


def measure_training(report: Report, arguments: argparse.Namespace) -> None:
    """Time optimizer steps of `pneumo_dist train`'s own loop with films against those with one ready batch."""
    folder = _shards(arguments, "png", SMALL)

    def run(loader: str, turn: int) -> Pace:
        return _alone(train_turn, folder, loader, arguments.torch_threads)

    taken = _in_turns({way: partial(run, way) for way in ("dali", "synthetic")}, arguments.training_repeats)
    report.title(
        f"Training seunet from shards of {SMALL} px, batch 2, recipe A, CPU, threads: torch {arguments.torch_threads}, "
        f"DALI 1; median of {arguments.training_repeats} turns; waiting includes the pipeline's start"
    )
    for way, paces in taken.items():
        wait = statistics.median(pace.waited for pace in paces)
        report.row(way, f"{_rate(paces):.3f} steps/s, waited {wait:.1%}", _range([pace.rate for pace in paces]))
    value = _rate(taken["dali"]) / _rate(taken["synthetic"])
    report.row("step rate, dali / synthetic", f"{value:.3f} x", ">= 0.95 x", value >= 0.95)


def train_turn(folder: Path, loader: str, threads: int) -> Pace:
    """Return the steps/s of an epoch by TensorBoard's times, its first steps left out, and the share that it waited."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from pneumo_dist.config.load import dump_resolved, load_config
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.runs.fold_run import FoldRun
    from pneumo_dist.train.fold import train_fold

    # By default one a core, beside the default of data.threads: what a user of two cores has.
    torch.set_num_threads(threads)
    config = load_config(ROOT / "configs" / "seunet.yaml", [*TRAINING, f"data.loader={loader}"])
    experiment = config.experiment.model_copy(update={"stages": config.experiment.stages[:1]})
    stage = experiment.stages[0]
    ranks = Ranks.alone()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        train_fold(FoldRun(experiment, 0, Shards(folder), Path(out), ranks), lambda _: dump_resolved(config))
        events = EventAccumulator(str(Path(out) / stage.name / "tensorboard")).Reload()
        times = [event.wall_time for event in events.Scalars("train_step/loss")][WARM_STEPS:]
        record = json.loads((Path(out) / stage.name / "metrics.jsonl").read_text().splitlines()[-1])
    return Pace((len(times) - 1) / (times[-1] - times[0]), waited=record["data_wait_share"])


# --- memory


def measure_memory(report: Report, arguments: argparse.Namespace) -> None:
    """Compare the memory of a process in its first epoch with that in later ones."""
    films = MEMORY_REPEATS * arguments.films
    report.title(
        f"VmRSS of the process that trains, after each batch, {MEMORY_EPOCHS} epochs of {films} films, recipe A"
    )
    folder = _shards(arguments, "png", arguments.size)
    for loader in OURS:
        epochs = _alone(memory_turn, Films(folder, SMALL, arguments.threads), loader)
        usual, most = [[measure(epoch) for epoch in epochs] for measure in (statistics.median, max)]
        growth = max(usual[1:]) / usual[0] - 1
        text = f"{usual[0]:.1f} MB, then at most {max(usual[1:]):.1f} MB, last {usual[-1]:.1f} MB"
        report.row(f"{loader}: median of epoch 1", text)
        report.row(f"{loader}: growth of the median", f"{growth:+.2%}", "<= 2 %", growth <= 0.02)
        report.row(f"{loader}: most in epoch 1, in all", f"{most[0]:.1f} MB, {max(most):.1f} MB")


def memory_turn(films: Films, loader: str) -> list[list[float]]:
    """Return the megabytes of this process after each batch, epoch by epoch.

    The films stand several times in the plan: an epoch of a few batches would not yet hold what later ones hold.
    """
    shards = Shards(films.folder)
    plan = films.plan(films.stage(MEMORY_EPOCHS), _repeated(shards, MEMORY_REPEATS * len(shards)))
    batches = train_batches(shards, plan, films.input(loader), rank=0, epoch=0, step=0)
    steps = [plan.steps(epoch) for epoch in range(MEMORY_EPOCHS)]
    return [[_status("VmRSS") for _ in itertools.islice(batches, count)] for count in steps]


# --- start


def measure_start(report: Report, arguments: argparse.Namespace) -> None:
    """Time a start in the middle of a long stage, as after a requeue."""
    folder = _shards(arguments, "png", arguments.size)
    films = Films(folder, arguments.input, arguments.threads)
    report.title(
        f"From building the plan ({START_FILMS:,} films, rank 1 of 2) to the first batch of epoch {START_EPOCH}, step "
        f"{START_STEP}, in a fresh process after imports, median of {arguments.repeats}"
    )
    taken = _in_turns(
        {way: partial(lambda way, turn: _alone(start_turn, films, way), way) for way in OURS}, arguments.repeats
    )
    for way, seconds in taken.items():
        value = statistics.median(seconds)
        report.row(way, f"{value:.2f} s, at most {max(seconds):.2f} s", "< 2 s", value < 2)


def start_turn(films: Films, loader: str) -> float:
    """Return the seconds to the first batch; the films stand many times in the plan."""
    import pneumo_dist.data.dali
    import pneumo_dist.data.torch_loader  # noqa: F401

    shards = Shards(films.folder)
    split = _repeated(shards, START_FILMS)
    start = time.perf_counter()
    stage = films.stage(epochs=60, global_batch=2 * BATCH, sample_rate=0.8, sample_rate_end=0.4, size_classes=4)
    plan = films.plan(stage, split, world=2)
    next(train_batches(shards, plan, films.input(loader), rank=1, epoch=START_EPOCH, step=START_STEP))
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
