"""Time to quality: minutes until the films of a fold that was not trained on are segmented well enough.

Each run starts from random weights in a fresh process and is over when the Dice of fold 0's positive films, at the
triplet with the best mean Dice, first reaches the goal at an epoch's end, or at the cap. Its time begins when its first
step is done and counts training, validation and checkpoints. Both loops use the same two cores.
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

from benchmarks.trainer_shared import ROOT, FilmSet, Report, environment, step_times, torchrun, write_config

# SIIM's share of positive films is 22 %; the films are stored at twice the side that the network takes, as there.
FILMS = FilmSet(films=480, size=192, positive_rate=0.22, folds=4)
RANKS, CORES = 2, 2
GOAL = 0.6
LEAST_RATIO = 2.0
POLL_SECONDS = 0.2
OURS, PLAIN = "this trainer", "plain loop"
# Recipe C's batch, loss and augmentation, and Adam, on a smaller network and smaller films, from random weights: hence
# ten times the recipe's learning rate, which is for ImageNet's weights. Its schedule is left out on both sides: it
# counts epochs of 10,364 films, and would be down to an eighteenth of the rate before hundreds of films are learnt.
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
# What each way takes away from this trainer.
WAYS: Mapping[str, tuple[str, ...]] = {
    OURS: (),
    "without the sampler": ("sample_rate=null",),
    "in float32": ("amp=float32",),
    "with the torch loader": ("data.loader=torch",),
}


@dataclass(frozen=True)
class Reached:
    """Seconds from the first step to the goal, infinite where the cap came first, and the epochs until then."""

    seconds: float
    epochs: int


def measure_quality(report: Report, work: Path, seeds: int, cap: float, goal: float) -> None:
    """Run each way with each seed, in turns."""
    shards = FILMS.shards(work)
    taken: dict[str, list[Reached]] = {way: [] for way in (*WAYS, PLAIN)}
    for seed in range(seeds):
        for way, reached in taken.items():
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
    medians = {way: statistics.median(each.seconds for each in reached) for way, reached in taken.items()}
    for way, reached in taken.items():
        epochs = statistics.median(each.epochs for each in reached)
        singles = ", ".join(_minutes(each.seconds, cap) for each in reached)
        report.row(way, f"{_minutes(medians[way], cap)} ({singles}), {epochs:.0f} epochs")
    for way, median in medians.items():
        if way == OURS:
            continue
        # 0 where this trainer is over the cap itself.
        ratio, mark = min(median, cap) / medians[OURS], "> " if math.isinf(median) else ""
        target = (f">= {LEAST_RATIO:.0f} x", ratio >= LEAST_RATIO) if way == PLAIN else ("", None)
        report.row(f"{way} / {OURS}", f"{mark}{ratio:.2f} x", *target)


def _minutes(seconds: float, cap: float) -> str:
    return f"> {cap / 60:.1f} min" if math.isinf(seconds) else f"{seconds / 60:.2f} min"


def plain_turn(folder: Path, config: Path, shards: Path, seed: int, cap: float, goal: float) -> Reached:
    """Run `benchmarks.plain_loop` with one thread a core, as torch would choose."""
    out = folder / "plain.json"
    command = [sys.executable, "-m", "benchmarks.plain_loop", "--shards", shards, "--config", config, "--out", out]
    command += ["--seed", seed, "--goal", goal, "--cap", cap]
    with (folder / "plain.log").open("wb") as log:
        subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(CORES), stdout=log, stderr=log, check=True)
    epochs = json.loads(out.read_text())
    seconds, positive_dice = epochs[-1]
    return Reached(seconds if positive_dice >= goal and seconds <= cap else math.inf, len(epochs))


def trainer_turn(
    folder: Path, config: Path, shards: Path, overrides: tuple[str, ...], cap: float, goal: float
) -> Reached:
    """Run `pneumo_dist train` until metrics.jsonl shows the goal; take the times from its TensorBoard events."""
    arguments = ["train", "--cpu", "--config", config, "--fold", 0, "--shards", shards, "--runs", folder / "runs"]
    arguments += [word for override in overrides for word in ("--set", override)]
    stage = folder / "runs/quality/fold0/main"
    with (folder / "trainer.log").open("wb") as log:
        command = torchrun(RANKS, "pneumo_dist", *arguments)
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        try:
            _watch(process, stage / "metrics.jsonl", cap, goal)
        finally:
            process.kill()  # its ranks die with it
            process.wait()
    dices = _positive_dices(stage / "metrics.jsonl")
    first, ends = step_times(stage)[0], step_times(stage, "epoch/positive_dice")
    for number, (end, dice) in enumerate(zip(ends, dices, strict=False)):
        if dice >= goal and end - first <= cap:
            return Reached(end - first, number + 1)
    return Reached(math.inf, len(dices))


def _watch(process: "subprocess.Popen[bytes]", metrics: Path, cap: float, goal: float) -> None:
    """Wait until the goal is reached, or until the cap after the first epoch's end."""
    started: float | None = None
    while started is None or time.monotonic() - started < cap:
        time.sleep(POLL_SECONDS)
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself, exit code {process.returncode}; see {metrics.parents[3]}")
        dices = _positive_dices(metrics)
        if started is None and dices:
            started = time.monotonic()
        if any(dice >= goal for dice in dices):
            return


def _positive_dices(metrics: Path) -> list[float]:
    """Return the positive Dice of each validated epoch so far."""
    with contextlib.suppress(FileNotFoundError):
        lines = metrics.read_text().splitlines()
        return [json.loads(line)["positive_dice"] for line in lines if "positive_dice" in line]
    return []
