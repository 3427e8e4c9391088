"""What the trainer costs beside a bare loop, and how soon it saves, stops, goes on and learns.

    python -m benchmarks.trainer --work /tmp/trainer-benchmark
    python -m benchmarks.trainer --work /tmp/trainer-benchmark --only steps --turns 15
    python -m benchmarks.trainer --work /tmp/trainer-benchmark --quick

Run it from the root of the repository; its processes train on the CPU, two ranks of one thread each unless a row says
otherwise. Films are synthetic ones in the SIIM layout, made once in the --work folder. What is compared alternates in
one run, so that a noisy neighbour hits all of it; compare the ratios, not the seconds. Nothing else may run beside it:
two ranks on two cores leave no room. --quick shows that every part works; its figures mean nothing.

    steps    the trainer's step rate over that of a bare PyTorch loop with the same network, loss, DDP, optimizer,
             clipping, autocast and synthetic input, in the same processes
    saving   what a checkpoint, written while training goes on, adds to the steps after it
    stop     from SIGTERM to the exit of launch/train.sh
    resume   from the start of launch/train.sh to its first step, resumed and new
    memory   the peak of a rank that validates N and 8 N films
    quality  minutes to a Dice of 0.6 for this trainer and for a plain loop (benchmarks/plain_loop.py)
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.trainer_quality import GOAL, measure_quality
from benchmarks.trainer_shared import FilmSet, Report, run_worker, spread
from benchmarks.trainer_stops import measure_resume, measure_stop

RANKS = 2
LEAST_RATE, MOST_SAVING, MOST_MEMORY = 0.97, 0.03, 0.02
# The first steps of a run fill caches and, in Adam, make its state.
WARM_STEPS = 3
SAVE_MINUTES = 10.0
MEMORY_FACTOR = 8
# What the networks take does not matter here, where input is ready: the films only give an epoch its length.
RESNET34: Mapping[str, Any] = {
    "name": "benchmark",
    "model": {"arch": "unet", "encoder": "resnet34"},
    "data": {"loader": "synthetic"},
    "image_size": 128,
    "global_batch": 8,
    "micro_batch": 4,
    "eval_batch": 4,
    "optim": {"name": "adam", "lr": 1e-4, "clip_norm": 0.1},
    "stages": [{"name": "main", "epochs": 1}],
}
SMALL: Mapping[str, Any] = {
    **RESNET34,
    "model": {
        "arch": "unet",
        "encoder": "resnet18",
        "in_channels": 1,
        "decoder_channels": [32, 32, 16, 16, 8],
    },
    "image_size": 64,
}


@dataclass(frozen=True)
class Counts:
    """How much is measured."""

    turns: int = 15
    steps: int = 12
    saving_turns: int = 2
    saves: int = 6
    save_every: int = 12
    stops: int = 7
    resumes: int = 5
    memory_films: int = 128
    memory_turns: int = 3
    seeds: int = 3
    cap: float = 360.0
    goal: float = GOAL


QUICK = Counts(
    turns=1,
    steps=4,
    saving_turns=1,
    saves=1,
    save_every=4,
    stops=1,
    resumes=1,
    memory_films=8,
    memory_turns=1,
    seeds=1,
    cap=60.0,
    goal=0.02,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/trainer-benchmark"), help="folder for films and runs")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {','.join(PARTS)} (all)")
    parser.add_argument("--quick", action="store_true", help="as little of everything as shows that it works")
    parser.add_argument("--turns", type=int, help=f"pairs of turns of the steps (default {Counts.turns})")
    parser.add_argument("--seeds", type=int, help=f"seeds of the quality (default {Counts.seeds})")
    parser.add_argument("--cap", type=float, help=f"seconds that end a run of the quality (default {Counts.cap:.0f})")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--only {arguments.only}: choose from {','.join(PARTS)}")
    given = {name: getattr(arguments, name) for name in ("turns", "seeds", "cap") if getattr(arguments, name)}
    counts = replace(QUICK if arguments.quick else Counts(), **given)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {_processor()}, {os.cpu_count()} cores")
    report = Report()
    for part in parts:
        PARTS[part](report, work, counts)
    print(f"\n{len(report.missed)} targets missed{': ' if report.missed else ''}{'; '.join(report.missed)}")
    return 0


def _processor() -> str:
    """Return the processor's name and whether `amp: auto` means bf16 on it."""
    from pneumo_dist.ranks.precision import resolve_amp

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, amp auto: {resolve_amp('auto', torch.device('cpu'))}"


def _epoch_of(steps: int) -> FilmSet:
    """Return films of which nine tenths, a fold's training part, are at least so many steps and little more."""
    return FilmSet(films=-(-steps * RESNET34["global_batch"] * 10 // 9) + 16, size=64, positive_rate=0.25, folds=10)


# --- steps


def measure_steps(report: Report, work: Path, counts: Counts) -> None:
    """Compare step rates, turn by turn, for a network of usual size and for a small one."""
    shards = _epoch_of(WARM_STEPS + counts.steps).shards(work)
    for name, experiment, target in (("resnet34, 128 px", RESNET34, LEAST_RATE), ("resnet18, 64 px", SMALL, None)):
        settings = {"shards": str(shards), "turns": counts.turns, "warm": WARM_STEPS}
        turns = run_worker("steps", RANKS, experiment, settings)
        report.title(
            f"U-Net {name}, batch {experiment['global_batch']}, {RANKS} ranks, synthetic input, "
            f"{counts.turns} pairs of {len(turns[0]['bare'])} steps"
        )
        for loop in ("trainer", "bare"):
            report.row(loop, f"{spread([statistics.mean(turn[loop]) for turn in turns], '.3f')} s a step")
        rates = [statistics.mean(turn["bare"]) / statistics.mean(turn["trainer"]) for turn in turns]
        steady = [statistics.median(turn["bare"]) / statistics.median(turn["trainer"]) for turn in turns]
        value = statistics.median(rates)
        goal = ("", None) if target is None else (f">= {target}", value >= target)
        report.row("step rate, trainer / bare", spread(rates, ".3f"), *goal)
        report.row("the same, by the median step of each turn", spread(steady, ".3f"))


# --- saving


def measure_saving(report: Report, work: Path, counts: Counts) -> None:
    """Compare the steps after a save with later ones, which no save delays, and scale to the default interval."""
    every, saves = counts.save_every, counts.saves
    shards = _epoch_of(every * (saves + 1) + 1).shards(work)
    stage = {"name": "main", "epochs": 1, "save_every": every}
    settings = {"shards": str(shards), "turns": counts.saving_turns}
    turns = run_worker("saving", RANKS, {**RESNET34, "stages": [stage]}, settings)
    # Duration k begins when step k + 1 is done: the save after step `every` is in duration `every` - 1.
    intervals = [
        turn[every * number - 1 : every * (number + 1) - 1] for turn in turns for number in range(1, saves + 1)
    ]
    half = every // 2
    costs = [sum(steps[:half]) - half * statistics.median(steps[half:]) for steps in intervals]
    places = [statistics.median(steps[place] for steps in intervals) for place in range(every)]
    cost = statistics.median(costs)
    report.title(f"A checkpoint of U-Net resnet34 and Adam's state, after every {every} steps, {len(costs)} saves")
    report.row("steps after a save, 1st, 2nd, …", " ".join(f"{seconds:.2f}" for seconds in places[:half]) + " s")
    report.row("later steps", f"{statistics.median(places[half:]):.2f} s")
    report.row("a save costs", f"{spread(costs)} s")
    share = cost / (SAVE_MINUTES * 60)
    report.row(
        f"share at one save in {SAVE_MINUTES:.0f} minutes", f"{share:.2%}", f"< {MOST_SAVING:.0%}", share < MOST_SAVING
    )
    report.row(f"shortest epoch whose end's save costs {MOST_SAVING:.0%}", f"{cost / MOST_SAVING:.0f} s")


# --- memory


def measure_memory(report: Report, work: Path, counts: Counts) -> None:
    """Compare the peak memory of fresh ranks that validate few films and many."""
    few, many = counts.memory_films, counts.memory_films * MEMORY_FACTOR
    shards = FilmSet(films=2 * many + 64, size=64, positive_rate=0.25, folds=2).shards(work)
    experiment = {**SMALL, "data": {"loader": "dali"}}
    peaks: dict[int, list[Mapping[str, float]]] = {few: [], many: []}
    for _ in range(counts.memory_turns):
        for films, found in peaks.items():
            settings = {"shards": str(shards), "films": films}
            found.append(run_worker("memory", RANKS, experiment, settings))
    report.title(f"VmHWM of the larger of {RANKS} ranks, validation at 64 px, {counts.memory_turns} fresh runs of each")
    for films, found in peaks.items():
        before, after = (statistics.median(each[when] for each in found) for when in ("before", "after"))
        report.row(f"{films} films", f"{before:.0f} MiB, then {after:.0f} MiB")
    least, most = (statistics.median(each["after"] for each in found) for found in peaks.values())
    growth = most / least - 1
    report.row(f"{MEMORY_FACTOR} times the films", f"{growth:+.1%}", f"<= {MOST_MEMORY:.0%}", growth <= MOST_MEMORY)
    report.row("that is, a film", f"{(most - least) * 1024 / (many - few):.1f} KiB")


Part = Callable[[Report, Path, Counts], None]
PARTS: dict[str, Part] = {
    "steps": measure_steps,
    "saving": measure_saving,
    "stop": lambda report, work, counts: measure_stop(report, work, counts.stops),
    "resume": lambda report, work, counts: measure_resume(report, work, counts.resumes),
    "memory": measure_memory,
    "quality": lambda report, work, counts: measure_quality(report, work, counts.seeds, counts.cap, counts.goal),
}

if __name__ == "__main__":
    sys.exit(main())
