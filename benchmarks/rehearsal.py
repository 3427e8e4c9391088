"""Rehearse one rank of 8, 128 and 1,024 in a single process: what it opens, reads, sends and holds.

    python -m benchmarks.rehearsal
    python -m benchmarks.rehearsal --world 8 --films 20000 --markdown

The rank trains an epoch of two steps with `train_fold`, validates, saves, and predicts the test films, with a tiny
network on a table of 250,000 films that repeats a few phantoms. No other rank exists: messages are counted, not sent.
The messages of a step are counted once more for the heavy networks, whose synchronised batch norm and gradients decide
them. docs/scaling.md contains the tables that --markdown prints.
"""

import argparse
import contextlib
import gc
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch

from benchmarks import ROOT
from benchmarks.common import FilmSet, in_fresh_process
from benchmarks.gpu_shipped import synthetic_batch
from benchmarks.gpu_steps import seed_torch
from benchmarks.rehearsal_ranks import Messages, rehearsal
from benchmarks.scaling import markdown, plain
from pneumo_dist.config.ensemble import alone
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.data.plan import EpochPlan, split_fold
from pneumo_dist.network.build import build_model
from pneumo_dist.predict.ensemble import resolve
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.ranks.watchdog import PREDICTION, TRAINING
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.lineage import training_digest
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.step import Learner
from shards.dataset.manifest import MANIFEST
from shards.dataset.mapped import tables_folder
from shards.dataset.table import TABLE, Shards, save_table
from shards.files import sha256_file

WORLDS, FILMS = (8, 128, 1024), 250_000
TEST_SHARE, FOLDS, SIZE = 26, 5, 64
HEAVY = ("heavy_se_resnext50", "heavy_se_resnext101", "heavy_senet154")


@dataclass
class Opened:
    """Files below some folders that a rank opens: how many, how many bytes it reads of them, and how many it maps."""

    files: int = 0
    read: int = 0
    mapped: int = 0


@dataclass(frozen=True)
class Rehearsed:
    """What one rank opens and reads before its first batch, and its messages by phase and kind."""

    start: Opened
    messages: list[tuple[str, str, Messages]]


@dataclass(frozen=True)
class Held:
    """Memory that a large table adds to a rank that trains a fold, in MiB: its own, and shared with other ranks."""

    own: float
    shared: float


def repeated(films: Path, out: Path, count: int, trained: int | None = None) -> Path:
    """Write a dataset whose table has `count` rows, which repeat the films of a small one under other keys.

    A fifth is in each fold. With `trained`, fold 0 trains on that many films only; the holdout takes the others.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(films, out)
    few, numbers = Shards(films), np.arange(count)
    whole = few.table.take(pa.array(numbers % len(few)))
    is_test, folds = numbers % TEST_SHARE == 0, numbers % FOLDS
    splits = np.where(is_test, "test", "train").astype(object)
    if trained is not None:
        splits[np.flatnonzero((splits == "train") & (folds != 0))[trained:]] = "holdout"
    # As random as real keys: a table of a few bytes per film would be refused as a decompression bomb.
    keys = pa.array([hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in numbers])
    changed: dict[str, Any] = dict.fromkeys(("key", "image_id", "group", "film_group"), keys)
    changed["split"], changed["fold"] = pa.array(splits), pa.array(folds, pa.int32(), mask=splits != "train")
    for name, values in changed.items():
        whole = whole.set_column(whole.schema.get_field_index(name), whole.schema.field(name), values)
    save_table(out / TABLE, whole)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["counts"] |= {split: int((splits == split).sum()) for split in ("train", "holdout", "test")}
    manifest["table_sha256"] = sha256_file(out / TABLE)
    (out / MANIFEST).write_text(json.dumps(manifest))
    return out


def experiment_of(world: int) -> Experiment:
    """Return an experiment whose step takes one film on each rank."""
    stage = {"image_size": SIZE, "epochs": 1, "micro_batch": 1, "global_batch": world, "eval_batch": 16, "top_k": 1}
    return Experiment.model_validate(
        {
            "name": "rehearsal",
            "amp": "float32",
            "model": {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 4, 8), "norm": True}},
            "data": {"loader": "torch", "threads": 1},
            "stages": [{"name": "main", **stage, "optim": {"ema_decay": 0.99}}],
        }
    )


@contextmanager
def opened_below(folders: Sequence[Path]) -> Iterator[Opened]:
    """Count what this process opens below some folders. Files are read whole, except for tars and mapped tables."""
    opened, is_counting = Opened(), True
    memory_map = pa.memory_map

    def is_below(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and any(Path(path).is_relative_to(folder) for folder in folders)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if is_counting and event == "open" and is_below(arguments[0]):
            opened.files += 1
            path = Path(arguments[0])
            opened.read += path.stat().st_size if path.is_file() and path.suffix != ".tar" else 0

    def counted(path: str) -> Any:
        if is_below(path):
            opened.files += 1
            length = Path(path).stat().st_size
            # A stored table is mapped only to be decoded, so all of it is read.
            if path.endswith(TABLE):
                opened.read += length
            else:
                opened.mapped += length
        return memory_map(path)

    sys.addaudithook(audited)
    with mock.patch("pyarrow.memory_map", counted):
        yield opened
    is_counting = False


def rehearsed(world: int, dataset: str, folder: str) -> Rehearsed:
    """Train, validate, save and predict as rank 0 of `world` ranks. It runs in its own process."""
    torch.set_num_threads(1)
    out, experiment = Path(folder), experiment_of(world)
    with rehearsal(world) as ranks, opened_below((Path(dataset), tables_folder())) as opened:
        start: list[Opened] = []

        def noted(phase: str) -> None:
            if phase == TRAINING and not start:
                start.append(replace(opened))

        def first_group_only(films: int) -> None:
            # After the messages of the first group of films, as nobody predicts the other ranks' films.
            if any(phase == PREDICTION for phase, _ in ranks.traffic.messages):
                raise _EnoughError

        ranks.traffic.on_phase = noted
        shards = Shards(Path(dataset))
        runs = out / "runs"
        train_fold(FoldRun(experiment, 0, shards, runs / experiment.name / "fold0", ranks), Experiment.model_dump_json)
        config = alone(experiment, None, 1, hflip=False).model_copy(update={"loader": "torch"})
        ensemble = resolve(config, runs, [0], ranks, not_averaged)
        with contextlib.suppress(_EnoughError):
            predict(ensemble, shards, out / "predictions", ranks, PredictOptions("test"), first_group_only)
    messages = [(phase, kind, count) for (phase, kind), count in ranks.traffic.messages.items()]
    return Rehearsed(start[0], messages)


class _EnoughError(Exception):
    pass


def not_averaged(member: object, fold: object) -> Path:
    """Refuse to average weights, which no member of the rehearsal asks for."""
    raise AssertionError(f"{member} of {fold} averages weights")


def held(dataset: str) -> Held:
    """Return the memory that a dataset's table takes in a rank that trains a fold. It runs in its own process."""
    before = memory_mb()
    shards = Shards(Path(dataset))
    split = split_fold(shards, 0, always_train=False)
    (stage,) = experiment_of(8).stages
    order = EpochPlan(split, stage, 0, 8).order(0)
    training_digest(shards, 0, always_train=False)
    for row in order[:100]:
        shards.text(int(row), "key"), shards.grid(int(row)), shards.label(int(row))
    for member, what in itertools.product(("image", "mask"), ("offset", "size", "crc32")):
        shards.column(f"{member}_{what}")
    gc.collect()
    after = memory_mb()
    return Held(after.own - before.own, after.shared - before.shared)


def memory_mb() -> Held:
    """Return this process's own and shared resident memory in MiB."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return Held(own / 1024, (kilobytes["Rss"] - own) / 1024)


def step_messages(name: str, world: int) -> list[tuple[str, str, Messages]]:
    """Return the messages of one optimizer step of a heavy experiment with synchronised batch norm."""
    torch.set_num_threads(1)
    overrides = ["model.encoder_weights=null", f"image_size={SIZE}", "model.sync_batch_norm=true", "micro_batch=2"]
    experiment = load_config(ROOT / "configs" / f"{name}.yaml", [*overrides, f"global_batch={2 * world}"]).experiment
    stage = experiment.stages[0]
    with rehearsal(world) as ranks:
        learner = Learner(experiment, stage, ranks, "float32", build_model(experiment.model, pretrained=False))
        learner.start_epoch(0)
        ranks.beat(TRAINING)
        learner.step([synthetic_batch(experiment, stage, ranks.device)], 1, stage.schedule.warmup_steps, seed_torch)
    return [(phase, kind, count) for (phase, kind), count in ranks.traffic.messages.items() if phase == TRAINING]


# --- what is printed


def world_lines(worlds: Sequence[int], results: Sequence[Rehearsed]) -> list[list[str]]:
    """Return a line per phase and kind of message, with a column of each world."""
    lines = [["phase", "messages", *(f"{world:,} ranks" for world in worlds)]]
    opened = [[f"{each.start.files} files", size(each.start.read)] for each in results]
    lines.append(["start", "files opened, bytes read", *map(", ".join, opened)])
    found = [{(phase, kind): count for phase, kind, count in each.messages} for each in results]
    for key in found[0]:
        cells = [f"{each[key].count:,}: {size(each[key].sent)} out, {size(each[key].received)} in" for each in found]
        lines.append([*key, *cells])
    return lines


def step_lines(counted: Mapping[str, Sequence[tuple[str, str, Messages]]]) -> list[list[str]]:
    """Return a line per heavy network: the all-reduces of a step and their bytes."""
    lines = [["network", "all-reduces per step", "bytes"]]
    for name, messages in counted.items():
        sums = [count for _, kind, count in messages if kind == "all-reduce"]
        lines.append([name, str(sum(each.count for each in sums)), size(sum(each.sent for each in sums))])
    return lines


def size(count: float) -> str:
    """Return a number of bytes as text."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, nargs="+", default=WORLDS, help="numbers of ranks (default %(default)s)")
    parser.add_argument("--films", type=int, default=FILMS, help="films in the table (default %(default)s)")
    parser.add_argument("--networks", nargs="*", choices=HEAVY, default=HEAVY, help="networks whose step is counted")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/scaling.md")
    arguments = parser.parse_args()
    form = markdown if arguments.markdown else plain
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        few = FilmSet(24, SIZE, 0.5).shards(work)
        results = []
        for world in arguments.world:
            data = repeated(few, work / "shards", arguments.films, trained=2 * world)
            results.append(in_fresh_process(rehearsed, world, str(data), str(work / f"world{world}")))
            shutil.rmtree(work / f"world{world}")
        print(form(world_lines(arguments.world, results)))
        whole = str(repeated(few, work / "shards", arguments.films))
        in_fresh_process(held, whole)  # as the first rank of a node, which decodes the table
        memory = in_fresh_process(held, whole)
    print(
        f"\nA table of {arguments.films:,} films takes {memory.own:.0f} MiB of a rank and {memory.shared:.0f} shared.\n"
    )
    counted = {name: in_fresh_process(step_messages, name, 8) for name in arguments.networks}
    print(form(step_lines(counted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
