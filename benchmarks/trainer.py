"""Measure the trainer's overhead over a bare loop, and how soon it saves, stops, resumes and learns.

    python -m benchmarks.trainer --work /tmp/trainer-benchmark
    python -m benchmarks.trainer --work /tmp/trainer-benchmark --only steps --turns 15
    python -m benchmarks.trainer --work /tmp/trainer-benchmark --quick

Run it from the root of the repository. It trains on the CPU, with two ranks of one thread each unless a row says
otherwise. Films are phantoms in the SIIM layout, made once in the --work folder. What is compared alternates within one
run, so other load on the machine affects everything alike: compare the ratios, not the seconds. Run nothing else at the
same time: two ranks need both cores. --quick checks that every part works; its figures mean nothing.

    steps    the trainer's step rate, compared with a bare PyTorch loop with the same network, loss, DDP, optimizer,
             clipping, autocast and synthetic input, in the same processes
    saving   the time that writing a checkpoint in the background adds to the following steps
    stop     from SIGTERM to the exit of launch/train.sh
    resume   from the start of launch/train.sh to its first step, resumed and new
    memory   peak memory of a rank that validates N and 8 N films
    quality  minutes to a Dice of 0.6, for this trainer and for a plain loop (benchmarks/plain_loop.py)
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import FilmSet, Report, machine, parser_of, run_on_cpu, spread, torchrun, write_config
from benchmarks.trainer_quality import GOAL, measure_quality
from benchmarks.trainer_stops import measure_resume, measure_stop
from pneumo_dist.ranks.precision import resolve_amp

RANKS = 2
LEAST_RATE, MOST_SAVING, MOST_MEMORY = 0.97, 0.03, 0.02
# The first steps of a run fill caches and create Adam's state.
WARM_STEPS = 3
SAVE_MINUTES = 10.0
MEMORY_FACTOR = 8
# With synthetic input, the films only determine the length of an epoch.
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
    "model": {"arch": "unet", "encoder": "resnet18", "in_channels": 1, "decoder_channels": [32, 32, 16, 16, 8]},
    "image_size": 64,
}


@dataclass(frozen=True)
class Counts:
    """Number of turns, steps, films and so on of each part."""

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


_ONCE = dict.fromkeys(("turns", "saving_turns", "saves", "stops", "resumes", "memory_turns", "seeds"), 1)
QUICK = replace(Counts(**_ONCE), steps=4, save_every=4, memory_films=8, cap=60.0, goal=0.02)


def main() -> int:
    parser = parser_of(__doc__, "trainer", [*PARTS])
    parser.add_argument("--quick", action="store_true", help="check that every part works; its figures mean nothing")
    parser.add_argument("--turns", type=int, help=f"pairs of turns of the steps (default {Counts.turns})")
    parser.add_argument("--seeds", type=int, help=f"number of seeds of the quality (default {Counts.seeds})")
    parser.add_argument("--cap", type=float, help=f"maximum seconds of a quality run (default {Counts.cap:.0f})")
    arguments = parser.parse_args()
    changes = {name: getattr(arguments, name) for name in ("turns", "seeds", "cap") if getattr(arguments, name)}
    counts = replace(QUICK if arguments.quick else Counts(), **changes)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print(f"{machine(torch)}, amp auto: {resolve_amp('auto', torch.device('cpu'))}")
    report = Report()
    for part in arguments.only:
        PARTS[part](report, work, counts)
    report.finish()
    return 0


def shards_for(steps: int, work: Path) -> Path:
    """Return shards in ten folds, whose training films are enough for this number of steps and few more."""
    films = -(-steps * RESNET34["global_batch"] * 10 // 9) + 16
    return FilmSet(films, size=64, seed=1).shards(work, folds=10)


def run_worker(part: str, experiment: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """Run one part of `benchmarks.trainer_worker` on all ranks; return the result of its rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder) / "settings.json", Path(folder) / "result.json"
        config = write_config(Path(folder) / "experiment.yaml", experiment)
        paths = {"config": str(config), "folder": folder, "result": str(result)}
        request.write_text(json.dumps({**settings, **paths}))
        run_on_cpu(torchrun(RANKS, "benchmarks.trainer_worker", part, request))
        return json.loads(result.read_text())


# --- steps


def measure_steps(report: Report, work: Path, counts: Counts) -> None:
    """Compare step rates, turn by turn, for a network of usual size and for a small one."""
    shards = shards_for(WARM_STEPS + counts.steps, work)
    for name, experiment, target in (("resnet34, 128 px", RESNET34, LEAST_RATE), ("resnet18, 64 px", SMALL, None)):
        settings = {"shards": str(shards), "turns": counts.turns, "warm": WARM_STEPS}
        turns = run_worker("steps", experiment, settings)
        report.title(
            f"U-Net {name}, batch {experiment['global_batch']}, {RANKS} ranks, synthetic input, "
            f"{counts.turns} pairs of {len(turns[0]['bare'])} steps"
        )
        for loop in ("trainer", "bare"):
            report.row(loop, f"{spread([statistics.mean(turn[loop]) for turn in turns], '.3f')} s per step")
        rates = [statistics.mean(turn["bare"]) / statistics.mean(turn["trainer"]) for turn in turns]
        steady = [statistics.median(turn["bare"]) / statistics.median(turn["trainer"]) for turn in turns]
        value = statistics.median(rates)
        goal = ("", None) if target is None else (f">= {target}", value >= target)
        report.row("step rate, trainer / bare", spread(rates, ".3f"), *goal)
        report.row("the same, by the median step of each turn", spread(steady, ".3f"))


# --- saving


def measure_saving(report: Report, work: Path, counts: Counts) -> None:
    """Compare the steps after a save with later, undelayed ones, and scale the cost to the default interval."""
    every, saves = counts.save_every, counts.saves
    shards = shards_for(every * (saves + 1) + 1, work)
    stage = {"name": "main", "epochs": 1, "save_every": every}
    settings = {"shards": str(shards), "turns": counts.saving_turns}
    turns = run_worker("saving", {**RESNET34, "stages": [stage]}, settings)
    # Duration k starts when step k + 1 is done, so duration `every` - 1 includes the save after step `every`.
    intervals = [
        turn[every * number - 1 : every * (number + 1) - 1] for turn in turns for number in range(1, saves + 1)
    ]
    half = every // 2
    costs = [sum(steps[:half]) - half * statistics.median(steps[half:]) for steps in intervals]
    medians = [statistics.median(steps[number] for steps in intervals) for number in range(every)]
    cost = statistics.median(costs)
    report.title(f"A checkpoint of U-Net resnet34 and Adam's state, after every {every} steps, {len(costs)} saves")
    report.row("steps after a save, 1st, 2nd, …", " ".join(f"{seconds:.2f}" for seconds in medians[:half]) + " s")
    report.row("later steps", f"{statistics.median(medians[half:]):.2f} s")
    report.row("a save costs", f"{spread(costs)} s")
    share = cost / (SAVE_MINUTES * 60)
    report.row(
        f"share at one save in {SAVE_MINUTES:.0f} minutes", f"{share:.2%}", f"< {MOST_SAVING:.0%}", share < MOST_SAVING
    )
    report.row(f"shortest epoch whose end's save costs {MOST_SAVING:.0%}", f"{cost / MOST_SAVING:.0f} s")


# --- memory


def measure_memory(report: Report, work: Path, counts: Counts) -> None:
    """Compare the peak memory of fresh ranks that validate few films with that of ranks that validate many."""
    few, many = counts.memory_films, counts.memory_films * MEMORY_FACTOR
    shards = FilmSet(films=2 * many + 64, size=64, seed=1).shards(work, folds=2)
    experiment = {**SMALL, "data": {"loader": "dali"}}
    peaks: dict[int, list[Mapping[str, float]]] = {few: [], many: []}
    for _ in range(counts.memory_turns):
        for films, turns in peaks.items():
            turns.append(run_worker("memory", experiment, {"shards": str(shards), "films": films}))
    report.title(f"VmHWM of the larger of {RANKS} ranks, validation at 64 px, {counts.memory_turns} fresh runs of each")
    for films, turns in peaks.items():
        before, after = (statistics.median(turn[when] for turn in turns) for when in ("before", "after"))
        report.row(f"{films} films", f"{before:.0f} MiB, then {after:.0f} MiB")
    least, most = (statistics.median(turn["after"] for turn in turns) for turns in peaks.values())
    growth = most / least - 1
    report.row(f"{MEMORY_FACTOR} times the films", f"{growth:+.1%}", f"<= {MOST_MEMORY:.0%}", growth <= MOST_MEMORY)
    report.row("that is, per film", f"{(most - least) * 1024 / (many - few):.1f} KiB")


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
