"""Measure time to quality: the minutes until a network segments the held-out films of a fold well enough.

Each run starts from random weights in a fresh process. It ends at the end of the first epoch in which the Dice of fold
0's positive films, at the triplet with the best mean Dice, reaches the goal, or at the cap. The time starts at the end
of the first step, and includes training, validation and checkpoints. Both loops use the same two cores.
"""

import contextlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.common import FilmSet, Report, cpu_environment, torchrun, wait_for, write_config
from benchmarks.curves import curve_of, seconds_to

# As in SIIM, 22 % of the films are positive, and films are stored at twice the side of the network's input.
FILMS = FilmSet(films=480, size=192, positive_rate=0.22, seed=1)
RANKS, CORES = 2, 2
GOAL = 0.6
LEAST_RATIO = 2.0
POLL_SECONDS = 0.2
OURS, PLAIN = "this trainer", "plain loop"
# Recipe C's batch, loss and augmentation, and Adam, with a smaller network and smaller films. Training starts from
# random weights, so the learning rate is ten times the recipe's, which is meant for ImageNet's weights. Neither side
# uses the recipe's schedule: it assumes epochs of 10,364 films, and would reduce the rate to an eighteenth too early.
EXPERIMENT: Mapping[str, Any] = {
    "name": "quality",
    "model": {"arch": "unet", "encoder": "resnet18", "decoder_channels": [128, 64, 32, 16, 16]},
    "image_size": 96,
    "global_batch": 8,
    "micro_batch": 8 // RANKS,
    "eval_batch": 16,
    "optim": {"name": "adam", "lr": 1e-3},
    "loss": {"bce": 3, "dice": 1, "focal": 4},
    "augment": {
        "hflip": 0.5,
        "shift_scale_rotate": {"p": 0.5, "shift": 0, "scale": 0, "rotate": 10},
        "tone": {"p": 0},
    },
    "top_k": 1,
    "stages": [{"name": "main", "epochs": 1000, "sample_rate": 0.8}],
}
# The overrides of each way, which remove one feature of this trainer.
WAYS: Mapping[str, tuple[str, ...]] = {
    OURS: (),
    "without the sampler": ("sample_rate=null",),
    "in float32": ("amp=float32",),
    "with the torch loader": ("data.loader=torch",),
}


@dataclass(frozen=True)
class Reached:
    """Seconds from the first step to the goal, infinite if the cap came first, and the number of epochs until then."""

    seconds: float
    epochs: int


def measure_quality(report: Report, work: Path, seeds: int, cap: float, goal: float) -> None:
    """Run each way with each seed, in turn."""
    shards = FILMS.shards(work, folds=4)
    runs: dict[str, list[Reached]] = {way: [] for way in (*WAYS, PLAIN)}
    for seed in range(seeds):
        for way, reached in runs.items():
            folder = work / "quality"
            shutil.rmtree(folder, ignore_errors=True)
            config = write_config(folder / "quality.yaml", {**EXPERIMENT, "seed": seed})
            if way == PLAIN:
                reached.append(plain_turn(folder, config, shards, seed, cap, goal))
            else:
                reached.append(trainer_turn(folder, config, shards, WAYS[way], cap, goal))
            print(
                f"    seed {seed}, {way}: {_minutes(reached[-1].seconds, cap)}, {reached[-1].epochs} epochs", flush=True
            )
    report.title(
        f"From the first step to a Dice of {goal} on fold 0's positive films, {CORES} cores, medians of {seeds} seeds"
    )
    medians = {way: statistics.median(each.seconds for each in reached) for way, reached in runs.items()}
    for way, reached in runs.items():
        epochs = statistics.median(each.epochs for each in reached)
        singles = ", ".join(_minutes(each.seconds, cap) for each in reached)
        report.row(way, f"{_minutes(medians[way], cap)} ({singles}), {epochs:.0f} epochs")
    for way, median in medians.items():
        if way == OURS:
            continue
        # 0 if this trainer itself exceeds the cap.
        ratio, mark = min(median, cap) / medians[OURS], "> " if math.isinf(median) else ""
        target = (f">= {LEAST_RATIO:.0f} x", ratio >= LEAST_RATIO) if way == PLAIN else ("", None)
        report.row(f"{way} / {OURS}", f"{mark}{ratio:.2f} x", *target)


def _minutes(seconds: float, cap: float) -> str:
    return f"> {cap / 60:.1f} min" if math.isinf(seconds) else f"{seconds / 60:.2f} min"


def plain_turn(folder: Path, config: Path, shards: Path, seed: int, cap: float, goal: float) -> Reached:
    """Run `benchmarks.plain_loop` with one thread per core, torch's default."""
    out = folder / "plain.json"
    command = [sys.executable, "-m", "benchmarks.plain_loop", "--shards", shards, "--config", config, "--out", out]
    command += ["--seed", seed, "--goal", goal, "--cap", cap]
    with (folder / "plain.log").open("wb") as log:
        subprocess.run(
            list(map(str, command)), cwd=ROOT, env=cpu_environment(CORES), stdout=log, stderr=log, check=True
        )
    epochs = json.loads(out.read_text())
    seconds, positive_dice, _ = epochs[-1]
    return Reached(seconds if positive_dice >= goal and seconds <= cap else math.inf, len(epochs))


def trainer_turn(
    folder: Path, config: Path, shards: Path, overrides: tuple[str, ...], cap: float, goal: float
) -> Reached:
    """Run `pneumo_dist train` until metrics.jsonl reaches the goal; read the times from its TensorBoard events."""
    arguments = ["train", "--cpu", "--config", config, "--fold", 0, "--shards", shards, "--runs", folder / "runs"]
    arguments += [word for override in overrides for word in ("--set", override)]
    stage = folder / "runs/quality/fold0/main"
    with (folder / "trainer.log").open("wb") as log:
        command = torchrun(RANKS, "pneumo_dist", *arguments)
        process = subprocess.Popen(command, cwd=ROOT, env=cpu_environment(), stdout=log, stderr=log)
        try:
            _watch(process, stage / "metrics.jsonl", cap, goal)
        finally:
            process.kill()  # its ranks die with it
            process.wait()
    curve = curve_of([stage])
    seconds = seconds_to(curve, goal, cap)
    return Reached(seconds, sum(point.seconds <= seconds for point in curve))


def _watch(process: "subprocess.Popen[bytes]", metrics: Path, cap: float, goal: float) -> None:
    """Wait until the goal is reached, or until the cap, counted from the end of the first epoch."""
    wait_for(process, lambda: bool(_positive_dices(metrics)), POLL_SECONDS)
    end = time.monotonic() + cap
    wait_for(process, lambda: max(_positive_dices(metrics)) >= goal or time.monotonic() > end, POLL_SECONDS)


def _positive_dices(metrics: Path) -> list[float]:
    """Return the positive Dice of each epoch validated so far."""
    with contextlib.suppress(FileNotFoundError):
        lines = metrics.read_text().splitlines()
        return [json.loads(line)["positive_dice"] for line in lines if "positive_dice" in line]
    return []
