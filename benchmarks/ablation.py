"""What shortens the demo's training: time to a positive Dice of 0.6 with changes to its old config. Resumable.

    python -m benchmarks.ablation --work ablation                 everything that is missing, then the table
    python -m benchmarks.ablation --work ablation --only batch    the changes whose names begin so
    python -m benchmarks.ablation --work ablation --table         the table of what is there, for docs/quality.md

Each run trains fold 0 of the demo's films to its end, on two ranks of one thread as the demo does, with three seeds.
The time runs from the end of the first step, and includes validation and checkpoints. The measure is the positive Dice
of the validation films at the triplet with the best mean Dice.
"""

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import BASELINE
from benchmarks.ablation_rows import CHANGES, NONE, Change
from benchmarks.common import torchrun, write_config
from benchmarks.curves import Point, curve_of, seconds_to
from benchmarks.race_films import shards_of
from benchmarks.race_job import run_logged
from shards.files import write_json

SEEDS = (0, 1, 2)
GOAL, RANKS = 0.6, 2


@dataclass(frozen=True)
class Run:
    """One training: a point for each epoch, in seconds from the end of the first step."""

    curve: tuple[Point, ...]

    @property
    def seconds_to_goal(self) -> float:
        """Seconds to the first epoch whose positive Dice reaches the goal, infinite if none does."""
        return seconds_to(self.curve, GOAL)

    @property
    def best(self) -> tuple[float, float]:
        """Positive and mean Dice of the epoch with the best mean Dice, whose checkpoint predicts."""
        best = max(self.curve, key=lambda epoch: epoch.dice)
        return best.positive_dice, best.dice


def train(change: Change, seed: int, work: Path) -> Run:
    """Train fold 0 with a change and return its curve. Raises RuntimeError with its log if it fails."""
    folder = work / "runs" / f"{change.name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    config = config_of(change, seed, folder)
    words = ["train", "--cpu", "--config", config, "--fold", "0", "--runs", folder / "runs"]
    words += ["--shards", shards_of(work)]
    words += [word for setting in change.settings for word in ("--set", setting)]
    run_logged(torchrun(RANKS, "pneumo_dist", *words), folder / "train.log")
    fold = folder / "runs/run/fold0"
    stages = [fold / stage["name"] for stage in yaml.safe_load((fold / "config.yaml").read_text())["stages"]]
    for stage in stages:  # gigabytes, and nothing reads them
        shutil.rmtree(stage / "checkpoints")
    return Run(curve_of(stages))


def config_of(change: Change, seed: int, folder: Path) -> Path:
    """Write the old config with a seed, and with the stages of a change; its settings are for `--set`."""
    experiment: dict[str, Any] = {"base": str(BASELINE), "name": "run", "seed": seed}
    if change.stages:
        experiment["stages"] = [dict(stage) for stage in change.stages]
    return write_config(folder / "run.yaml", experiment)


def _result(change: Change, seed: int, work: Path) -> Path:
    return work / "results" / f"{change.name}-{seed}.json"


def runs_of(change: Change, work: Path) -> dict[int, Run]:
    """Return the stored runs of a change by seed."""
    paths = {seed: _result(change, seed, work) for seed in SEEDS}
    return {
        seed: Run(tuple(Point(*epoch) for epoch in json.loads(path.read_text())))
        for seed, path in paths.items()
        if path.exists()
    }


def table(work: Path) -> str:
    """Return docs/quality.md's table: a row for each change."""
    lines = [
        "| change | seconds to 0.6 | ratio to the demo | positive Dice | mean Dice | seconds in all |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    demo = runs_of(NONE, work)
    for change in CHANGES:
        runs = runs_of(change, work)
        cells = _cells(runs, demo) if len(runs) == len(SEEDS) == len(demo) else ["not measured"] * 5
        lines.append(f"| {change.text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(runs: dict[int, Run], demo: dict[int, Run]) -> list[str]:
    seconds = [runs[seed].seconds_to_goal for seed in SEEDS]
    ratios = [runs[seed].seconds_to_goal / demo[seed].seconds_to_goal for seed in SEEDS]
    positive, mean = zip(*(runs[seed].best for seed in SEEDS), strict=True)
    ends = statistics.median(runs[seed].curve[-1].seconds for seed in SEEDS)
    ratio = statistics.median(ratios)
    return [
        f"{_seconds(statistics.median(seconds))} ({', '.join(map(_seconds, seconds))})",
        f"{ratio:.2f} x" if math.isfinite(ratio) else "",
        f"{statistics.mean(positive):.3f} ({', '.join(f'{each:.3f}' for each in positive)})",
        f"{statistics.mean(mean):.3f}",
        f"{ends:.0f}",
    ]


def _seconds(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, one training at a time with all seeds in turn, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of films, runs and results")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of the changes' names")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    options = parser.parse_args(arguments)
    work = options.work.resolve()
    changes = [change for change in CHANGES if change.name.startswith(tuple(options.only))]
    for seed, change in [] if options.table else [(seed, change) for seed in SEEDS for change in changes]:
        path = _result(change, seed, work)
        if path.exists():
            continue
        run = train(change, seed, work)
        write_json(path, run.curve)
        print(f"{change.name}, seed {seed}: {_seconds(run.seconds_to_goal)} s, {run.best[0]:.3f}", flush=True)
    print(table(work))


if __name__ == "__main__":
    main()
